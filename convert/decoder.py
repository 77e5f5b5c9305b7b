"""The rows of a Llama-like decoder, which every family shares."""

from convert.table import Row
from vlm_jax.config import VLMConfig


def _tied(config: VLMConfig) -> bool:
    return config.decoder.tie_embeddings


def _untied(config: VLMConfig) -> bool:
    return not config.decoder.tie_embeddings


def _qkv_bias(config: VLMConfig) -> bool:
    return config.decoder.qkv_bias


def _o_bias(config: VLMConfig) -> bool:
    return config.decoder.o_bias


def decoder_rows(model: str, layer: str, head: str) -> tuple[Row, ...]:
    """The rows of a Llama-like decoder, whose names differ between families only in the prefix."""
    return (
        Row(model + "embed_tokens.weight", "decoder/embed_vd", "v d -> v d"),
        Row(layer + "input_layernorm.weight", "decoder/layers/{i}/attn_norm_d", "d -> d"),
        Row(layer + "self_attn.q_proj.weight", "decoder/layers/{i}/wq_dnh", "(n h) d -> d n h"),
        Row(layer + "self_attn.k_proj.weight", "decoder/layers/{i}/wk_dkh", "(k h) d -> d k h"),
        Row(layer + "self_attn.v_proj.weight", "decoder/layers/{i}/wv_dkh", "(k h) d -> d k h"),
        Row(layer + "self_attn.o_proj.weight", "decoder/layers/{i}/wo_nhd", "d (n h) -> n h d"),
        Row(
            layer + "self_attn.q_proj.bias",
            "decoder/layers/{i}/bq_nh",
            "(n h) -> n h",
            when=_qkv_bias,
        ),
        Row(
            layer + "self_attn.k_proj.bias",
            "decoder/layers/{i}/bk_kh",
            "(k h) -> k h",
            when=_qkv_bias,
        ),
        Row(
            layer + "self_attn.v_proj.bias",
            "decoder/layers/{i}/bv_kh",
            "(k h) -> k h",
            when=_qkv_bias,
        ),
        Row(layer + "self_attn.o_proj.bias", "decoder/layers/{i}/bo_d", "d -> d", when=_o_bias),
        Row(layer + "post_attention_layernorm.weight", "decoder/layers/{i}/mlp_norm_d", "d -> d"),
        Row(layer + "mlp.gate_proj.weight", "decoder/layers/{i}/w_gate_fd", "f d -> f d"),
        Row(layer + "mlp.up_proj.weight", "decoder/layers/{i}/w_up_fd", "f d -> f d"),
        Row(layer + "mlp.down_proj.weight", "decoder/layers/{i}/w_down_df", "d f -> d f"),
        Row(model + "norm.weight", "decoder/final_norm_d", "d -> d"),
        Row(head, "decoder/head_vd", "v d -> v d", when=_untied),
        Row(head, "decoder/embed_vd", "v d -> v d", when=_tied, alias=True),
    )


def decoder_dims(config: VLMConfig) -> dict[str, int]:
    """Letter lengths of a decoder."""
    decoder = config.decoder
    return dict(
        v=decoder.vocab_size,
        d=decoder.hidden_size,
        n=decoder.num_heads,
        k=decoder.num_kv_heads,
        h=decoder.head_dim,
        f=decoder.intermediate_size,
    )
