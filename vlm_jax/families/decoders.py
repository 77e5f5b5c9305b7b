"""Llama-like decoders, which families share: fields of their configs, and rows of their tensors.

Released folders omit whatever their transformers version had as a default, and the defaults differ
by `model_type` (a Qwen2.5-VL text config without `rms_norm_eps` means 1e-5, a Llama one 1e-6). The
classes below hold the defaults of transformers' config classes, so that a sparse folder means here
what it means there. A field without a safe default is required.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import msgspec

from vlm_jax.config import DecoderConfig, VLMConfig
from vlm_jax.errors import ConfigError
from vlm_jax.families.base import Row
from vlm_jax.families.fields import Count, Depth, Epsilon, Factor, Ids, Object, Theta, divide, read

_Part = Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]
Section = tuple[_Part, _Part, _Part]


class Text(msgspec.Struct, kw_only=True):
    """Fields of a decoder, with the defaults of Llama."""

    biased_output: ClassVar[bool] = False  # whether attention_bias is of the output map too
    qk_norm: ClassVar[bool] = False
    vocab_size: Annotated[int, msgspec.Meta(ge=1, le=1 << 24)] = 32000
    hidden_size: Count = 4096
    intermediate_size: Count = 11008
    num_hidden_layers: Depth = 32
    num_attention_heads: Count = 32
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    rms_norm_eps: Epsilon = 1e-6
    rope_theta: Theta | None = 1e4
    rope_scaling: Object | None = None
    rope_parameters: Object | None = None
    max_position_embeddings: Annotated[int, msgspec.Meta(ge=1, le=1 << 31)] = 2048
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    # An explicit null is how a folder switches a sliding window off.
    sliding_window: Annotated[int, msgspec.Meta(ge=0)] | None = None
    use_sliding_window: bool | None = False
    eos_token_id: Ids = 2
    tie_word_embeddings: bool = False


class Llama(Text, kw_only=True):
    """A Llama or Vicuna decoder."""

    biased_output: ClassVar[bool] = True


class Mistral(Text, kw_only=True):
    """A Mistral decoder."""

    intermediate_size: Count = 14336
    num_key_value_heads: Count | None = 8
    max_position_embeddings: Annotated[int, msgspec.Meta(ge=1, le=1 << 31)] = 4096 * 32
    sliding_window: Annotated[int, msgspec.Meta(ge=0)] | None = 4096
    use_sliding_window: bool | None = True


class Qwen2(Text, kw_only=True):
    """A Qwen2 or Qwen2.5 decoder, which has biases without saying so."""

    vocab_size: Annotated[int, msgspec.Meta(ge=1, le=1 << 24)] = 151936
    intermediate_size: Count = 22016
    num_key_value_heads: Count | None = 32
    max_position_embeddings: Annotated[int, msgspec.Meta(ge=1, le=1 << 31)] = 32768
    attention_bias: bool = True
    eos_token_id: Ids = None


class Qwen3(Text, kw_only=True):
    """A Qwen3 decoder: queries and keys are normed, and heads have a width of their own."""

    biased_output: ClassVar[bool] = True
    qk_norm: ClassVar[bool] = True
    vocab_size: Annotated[int, msgspec.Meta(ge=1, le=1 << 24)] = 151936
    intermediate_size: Count = 22016
    num_key_value_heads: Count | None = 32
    head_dim: Count | None = 128
    max_position_embeddings: Annotated[int, msgspec.Meta(ge=1, le=1 << 31)] = 32768
    eos_token_id: Ids = None


TEXTS: dict[str, type[Text]] = {
    "llama": Llama,
    "mistral": Mistral,
    "qwen2": Qwen2,
    "qwen3": Qwen3,
}
"""Decoders by `model_type`."""


class _Rope(msgspec.Struct, kw_only=True):
    rope_type: str = "default"
    rope_theta: Theta
    factor: Factor | None = None
    mrope_section: Section | None = None
    mrope_interleaved: bool = False


def _rope(text: Text, where: str) -> _Rope:
    """Returns the rope fields, of either generation of configs."""
    stated = {**(text.rope_scaling or {}), **(text.rope_parameters or {})}
    stated["rope_type"] = stated.get("rope_type", stated.get("type", "default"))
    if stated.get("rope_theta") is None:
        stated["rope_theta"] = text.rope_theta
    where = f"{where}: rope parameters"
    rope = read(stated, _Rope, where)
    if rope.rope_type not in ("default", "mrope", "linear"):
        raise ConfigError(
            f"{where}: rope type {rope.rope_type!r} is not supported (default, mrope and linear "
            "are)."
        )
    if rope.rope_type == "linear" and rope.factor is None:
        raise ConfigError(f"{where}: rope type 'linear' needs a factor.")
    return rope


def decoder(text: Text, where: str, tied: bool) -> DecoderConfig:
    """Returns the decoder that a config's text fields describe.

    Args:
        text: the fields.
        where: what to call them in errors.
        tied: whether the head is the embedding table.

    Raises:
        ConfigError: they describe something that is not supported.
    """
    if text.hidden_act != "silu":
        raise ConfigError(f"{where}: hidden_act must be 'silu', not {text.hidden_act!r}.")
    if text.mlp_bias:
        raise ConfigError(f"{where}: mlp_bias=true is not supported.")
    window = text.sliding_window
    if text.use_sliding_window and window is not None and window < text.max_position_embeddings:
        raise ConfigError(
            f"{where}: sliding-window attention ({window}) is not supported; set "
            "use_sliding_window to false or sliding_window to null if the model is to run without."
        )
    rope = _rope(text, where)
    section = rope.mrope_section
    heads = text.num_attention_heads
    kv_heads = text.num_key_value_heads or heads
    head_dim = text.head_dim or divide(text.hidden_size, heads, where)
    if heads % kv_heads:
        raise ConfigError(f"{where}: {heads} query heads do not divide over {kv_heads} key heads.")
    if head_dim % 2:
        raise ConfigError(f"{where}: head_dim {head_dim} must be even for rotary positions.")
    if section is not None and sum(section) != head_dim // 2:
        raise ConfigError(
            f"{where}: mrope_section {section} must sum to head_dim / 2 = {head_dim // 2}."
        )
    return DecoderConfig(
        vocab_size=text.vocab_size,
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        num_layers=text.num_hidden_layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=text.rms_norm_eps,
        rope_theta=rope.rope_theta,
        rope_factor=(rope.factor or 1.0) if rope.rope_type == "linear" else 1.0,
        mrope_section=section,
        mrope_interleaved=rope.mrope_interleaved,
        qkv_bias=text.attention_bias,
        o_bias=text.attention_bias and text.biased_output,
        qk_norm=text.qk_norm,
        tie_embeddings=tied,
        max_positions=text.max_position_embeddings,
    )


def read_text(fields: Mapping[str, Any], where: str, default: str = "llama") -> Text:
    """Returns the fields of a `text_config`, by its `model_type`.

    Raises:
        ConfigError: the decoder is of no known kind, or a field is out of range.
    """
    kind = fields.get("model_type", default)
    if not isinstance(kind, str) or kind not in TEXTS:
        raise ConfigError(
            f"{where}: a {kind!r} text model is not supported ({', '.join(TEXTS)} are)."
        )
    return read(fields, TEXTS[kind], where)


def _tied(config: VLMConfig, layer: int) -> bool:
    return config.decoder.tie_embeddings


def _untied(config: VLMConfig, layer: int) -> bool:
    return not config.decoder.tie_embeddings


def _qkv_bias(config: VLMConfig, layer: int) -> bool:
    return config.decoder.qkv_bias


def _o_bias(config: VLMConfig, layer: int) -> bool:
    return config.decoder.o_bias


def _qk_norm(config: VLMConfig, layer: int) -> bool:
    return config.decoder.qk_norm


def _grouped(config: VLMConfig, layer: int) -> bool:
    return config.decoder.layer(layer).attention is None


def _latent(config: VLMConfig, layer: int) -> bool:
    return not _grouped(config, layer)


def _query_rank(config: VLMConfig, layer: int) -> bool:
    latent = config.decoder.layer(layer).attention
    return latent is not None and latent.query_rank is not None


def _whole_queries(config: VLMConfig, layer: int) -> bool:
    return not _query_rank(config, layer)


def _dense(config: VLMConfig, layer: int) -> bool:
    return config.decoder.layer(layer).mlp is None


def _experts(config: VLMConfig, layer: int) -> bool:
    return not _dense(config, layer)


def _router_bias(config: VLMConfig, layer: int) -> bool:
    experts = config.decoder.layer(layer).mlp
    return experts is not None and experts.bias


def _shared(config: VLMConfig, layer: int) -> bool:
    experts = config.decoder.layer(layer).mlp
    return experts is not None and experts.shared_width > 0


def decoder_rows(model: str, head: str) -> tuple[Row, ...]:
    """Returns the rows of a decoder.

    The widths of a layer's several matrices have letters of their own: o of a head's values, m of
    an expert, s of the shared expert.

    Args:
        model: what its names begin with, such as "language_model.model.".
        head: name of the head's matrix.
    """
    disk, ours = model + "layers.{i}.", "decoder/layers/{i}/"
    attn, one, all_ = disk + "self_attn.", disk + "mlp.experts.{x}.", disk + "mlp.shared_experts."
    return (
        Row(model + "embed_tokens.weight", "decoder/embed_vd", "v d -> v d"),
        Row(disk + "input_layernorm.weight", ours + "attn_norm_d", "d -> d"),
        Row(attn + "q_proj.weight", ours + "wq_dnh", "(n h) d -> d n h", when=_whole_queries),
        Row(attn + "k_proj.weight", ours + "wk_dkh", "(k h) d -> d k h", when=_grouped),
        Row(attn + "v_proj.weight", ours + "wv_dkh", "(k h) d -> d k h", when=_grouped),
        Row(attn + "q_a_proj.weight", ours + "wq_down_qd", "q d -> q d", when=_query_rank),
        Row(attn + "q_a_layernorm.weight", ours + "q_norm_q", "q -> q", when=_query_rank),
        Row(attn + "q_b_proj.weight", ours + "wq_up_qnh", "(n h) q -> q n h", when=_query_rank),
        Row(attn + "kv_a_proj_with_mqa.weight", ours + "wkv_down_ad", "a d -> a d", when=_latent),
        Row(attn + "kv_a_layernorm.weight", ours + "kv_norm_r", "r -> r", when=_latent),
        Row(attn + "kv_b_proj.weight", ours + "wkv_up_nur", "(n u) r -> n u r", when=_latent),
        Row(attn + "o_proj.weight", ours + "wo_nhd", "d (n o) -> n o d"),
        Row(disk + "self_attn.q_proj.bias", ours + "bq_nh", "(n h) -> n h", when=_qkv_bias),
        Row(disk + "self_attn.k_proj.bias", ours + "bk_kh", "(k h) -> k h", when=_qkv_bias),
        Row(disk + "self_attn.v_proj.bias", ours + "bv_kh", "(k h) -> k h", when=_qkv_bias),
        Row(disk + "self_attn.o_proj.bias", ours + "bo_d", "d -> d", when=_o_bias),
        Row(disk + "self_attn.q_norm.weight", ours + "q_norm_h", "h -> h", when=_qk_norm),
        Row(disk + "self_attn.k_norm.weight", ours + "k_norm_h", "h -> h", when=_qk_norm),
        Row(disk + "post_attention_layernorm.weight", ours + "mlp_norm_d", "d -> d"),
        Row(disk + "mlp.gate_proj.weight", ours + "w_gate_fd", "f d -> f d", when=_dense),
        Row(disk + "mlp.up_proj.weight", ours + "w_up_fd", "f d -> f d", when=_dense),
        Row(disk + "mlp.down_proj.weight", ours + "w_down_df", "d f -> d f", when=_dense),
        Row(disk + "mlp.gate.weight", ours + "router_xd", "x d -> x d", when=_experts),
        Row(
            disk + "mlp.gate.e_score_correction_bias",
            ours + "router_bias_x",
            "x -> x",
            when=_router_bias,
        ),
        Row(one + "gate_proj.weight", ours + "w_gate_xfd", "m d -> x m d", when=_experts),
        Row(one + "up_proj.weight", ours + "w_up_xfd", "m d -> x m d", when=_experts),
        Row(one + "down_proj.weight", ours + "w_down_xdf", "d m -> x d m", when=_experts),
        Row(all_ + "gate_proj.weight", ours + "shared_gate_fd", "s d -> s d", when=_shared),
        Row(all_ + "up_proj.weight", ours + "shared_up_fd", "s d -> s d", when=_shared),
        Row(all_ + "down_proj.weight", ours + "shared_down_df", "d s -> d s", when=_shared),
        Row(model + "norm.weight", "decoder/final_norm_d", "d -> d"),
        Row(head, "decoder/head_vd", "v d -> v d", when=_untied),
        Row(head, "decoder/embed_vd", "v d -> v d", when=_tied, alias=True),
    )


def decoder_letters(config: VLMConfig) -> dict[str, int]:
    """Returns the letter lengths of a decoder."""
    decoder, latent = config.decoder, config.decoder.latent
    letters = dict(
        v=decoder.vocab_size,
        d=decoder.hidden_size,
        n=decoder.num_heads,
        k=decoder.num_kv_heads,
        h=decoder.head_dim,
        o=decoder.value_dim,
        f=decoder.intermediate_size,
    )
    if latent is not None:
        letters |= dict(
            r=latent.rank,
            a=latent.rank + latent.rope_dim,
            u=latent.nope_dim + latent.value_dim,
            q=latent.query_rank or 0,
        )
    experts = next((layer.mlp for layer in decoder.layers if layer.mlp is not None), None)
    if experts is not None:
        letters |= dict(x=experts.count, m=experts.width, s=experts.shared_width)
    return letters
