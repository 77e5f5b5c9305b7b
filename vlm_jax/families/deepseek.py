"""DeepSeek decoders, which families share: latent attention and experts, read from a config.

An absent field means what the authors' config class means by it, and they differ: a family passes
the fields with its own defaults (a subclass of `DeepSeek`).
"""

import dataclasses
from typing import Annotated

import msgspec

from vlm_jax.config import MLA, DecoderConfig, LayerConfig, MoE
from vlm_jax.errors import ConfigError
from vlm_jax.families.decoders import Text, decoder
from vlm_jax.families.fields import Count, Factor, Index, one_of

_Width = Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]


class DeepSeek(Text, kw_only=True):
    """Fields of a DeepSeek decoder, with the defaults of DeepSeek-VL2's own config class."""

    vocab_size: Annotated[int, msgspec.Meta(ge=1, le=1 << 24)] = 102400
    num_hidden_layers: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 30
    moe_intermediate_size: Count = 1407
    n_shared_experts: Index | None = None
    n_routed_experts: Count | None = None
    num_experts_per_tok: Count | None = None
    moe_layer_freq: Count = 1
    first_k_dense_replace: Index = 0
    routed_scaling_factor: Factor = 1.0
    scoring_func: str = "softmax"
    topk_method: str = "gready"
    norm_topk_prob: bool = False
    n_group: Count | None = None
    topk_group: Count | None = None
    use_mla: bool = True
    kv_lora_rank: Count | None = 512
    q_lora_rank: Count | None = 1536
    qk_nope_head_dim: _Width = 128
    qk_rope_head_dim: _Width = 64
    v_head_dim: _Width = 128


def deepseek_decoder(text: DeepSeek, where: str, tied: bool) -> DecoderConfig:
    """Returns the decoder that a DeepSeek config's text fields describe; arguments as of `decoder`.

    Raises:
        ConfigError: they describe something that is not supported.
    """
    one_of(text.attention_bias, (False,), "attention_bias", where)
    latent, experts = _latent(text, where), _experts(text, where)
    if latent is not None:
        # transformers writes a head_dim of its own meaning.
        width = latent.nope_dim + latent.rope_dim
        changes = dict(head_dim=width, num_key_value_heads=text.num_attention_heads)
        text = msgspec.structs.replace(text, **changes)
    first = text.first_k_dense_replace
    layers = tuple(
        LayerConfig(latent, experts if index >= first else None)
        for index in range(text.num_hidden_layers)
    )
    return dataclasses.replace(decoder(text, where, tied), layers=layers)


def _latent(text: DeepSeek, where: str) -> MLA | None:
    if not text.use_mla:
        return None
    if text.kv_lora_rank is None:
        raise ConfigError(f"{where}: latent attention (use_mla) needs a kv_lora_rank.")
    for name in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
        if not getattr(text, name):
            raise ConfigError(f"{where}: latent attention (use_mla) needs {name} above 0.")
    if text.qk_rope_head_dim % 2:
        raise ConfigError(f"{where}: qk_rope_head_dim {text.qk_rope_head_dim} must be even.")
    return MLA(
        rank=text.kv_lora_rank,
        nope_dim=text.qk_nope_head_dim,
        rope_dim=text.qk_rope_head_dim,
        value_dim=text.v_head_dim,
        query_rank=text.q_lora_rank,
    )


_METHODS = {"gready": "softmax", "greedy": "softmax", "group_limited_greedy": "softmax"}
_METHODS["noaux_tc"] = "sigmoid"


def _experts(text: DeepSeek, where: str) -> MoE | None:
    if text.n_routed_experts is None:
        return None
    count, chosen = text.n_routed_experts, text.num_experts_per_tok
    if chosen is None:
        raise ConfigError(f"{where} has no field 'num_experts_per_tok'.")
    one_of(text.moe_layer_freq, (1,), "moe_layer_freq", where)
    one_of(text.scoring_func, ("softmax", "sigmoid"), "scoring_func", where)
    one_of(text.topk_method, tuple(_METHODS), "topk_method", where)
    if _METHODS[text.topk_method] != text.scoring_func:
        raise ConfigError(
            f"{where}: topk_method {text.topk_method!r} with scoring_func {text.scoring_func!r} is "
            f"not supported (scoring_func {_METHODS[text.topk_method]!r} is)."
        )
    grouped = text.topk_method in ("group_limited_greedy", "noaux_tc")
    groups, kept = (text.n_group or 1, text.topk_group or 1) if grouped else (1, 1)
    if count % groups or kept > groups or chosen > count // groups * kept:
        raise ConfigError(
            f"{where}: {chosen} of {count} experts cannot be chosen in {kept} of {groups} groups."
        )
    if groups > 1 and count // groups < 2:
        raise ConfigError(f"{where}: groups of experts need at least two, not {count // groups}.")
    return MoE(
        count=count,
        width=text.moe_intermediate_size,
        chosen=chosen,
        shared_width=text.moe_intermediate_size * (text.n_shared_experts or 0),
        scoring=_METHODS[text.topk_method],  # type: ignore[arg-type]
        normalise=text.norm_topk_prob,
        scale=text.routed_scaling_factor,
        bias=text.topk_method == "noaux_tc",
        groups=groups,
        groups_kept=kept,
    )
