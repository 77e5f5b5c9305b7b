"""Qwen2.5-VL: a windowed vision tower, a patch merger, a Qwen2 decoder with m-rope."""

from convert.decoder import decoder_dims, decoder_rows
from convert.table import Row, Table
from vlm_jax.config import QwenVisionConfig, VLMConfig

_BLOCK = "visual.blocks.{i}."


def _dims(config: VLMConfig) -> dict[str, dict[str, int]]:
    vision = config.vision
    assert isinstance(vision, QwenVisionConfig)
    merged = vision.hidden_size * vision.merge_size**2
    return {
        "decoder": decoder_dims(config),
        "vision": dict(
            c=vision.num_channels,
            t=vision.temporal_patch_size,
            y=vision.patch_size,
            x=vision.patch_size,
            d=vision.hidden_size,
            s=3,  # query, key and value
            n=vision.num_heads,
            h=vision.hidden_size // vision.num_heads,
            f=vision.intermediate_size,
        ),
        # The norm sees one patch's features (p), the map a merged unit's (e).
        "projector": dict(p=vision.hidden_size, e=merged, f=merged, d=vision.out_hidden_size),
    }


TABLE = Table(
    family="qwen2_5_vl",
    spellings=(
        (r"^model\.visual\.", "visual."),
        (r"^model\.language_model\.", "model."),
    ),
    rows=(
        Row("visual.patch_embed.proj.weight", "vision/patch_de", "d c t y x -> d (c t y x)"),
        Row(_BLOCK + "norm1.weight", "vision/layers/{i}/norm1_d", "d -> d"),
        Row(_BLOCK + "attn.qkv.weight", "vision/layers/{i}/wqkv_d3nh", "(s n h) d -> d s n h"),
        Row(_BLOCK + "attn.qkv.bias", "vision/layers/{i}/bqkv_3nh", "(s n h) -> s n h"),
        Row(_BLOCK + "attn.proj.weight", "vision/layers/{i}/wo_nhd", "d (n h) -> n h d"),
        Row(_BLOCK + "attn.proj.bias", "vision/layers/{i}/bo_d", "d -> d"),
        Row(_BLOCK + "norm2.weight", "vision/layers/{i}/norm2_d", "d -> d"),
        Row(_BLOCK + "mlp.gate_proj.weight", "vision/layers/{i}/w_gate_fd", "f d -> f d"),
        Row(_BLOCK + "mlp.gate_proj.bias", "vision/layers/{i}/b_gate_f", "f -> f"),
        Row(_BLOCK + "mlp.up_proj.weight", "vision/layers/{i}/w_up_fd", "f d -> f d"),
        Row(_BLOCK + "mlp.up_proj.bias", "vision/layers/{i}/b_up_f", "f -> f"),
        Row(_BLOCK + "mlp.down_proj.weight", "vision/layers/{i}/w_down_df", "d f -> d f"),
        Row(_BLOCK + "mlp.down_proj.bias", "vision/layers/{i}/b_down_d", "d -> d"),
        Row("visual.merger.ln_q.weight", "projector/norm_e", "p -> p"),
        Row("visual.merger.mlp.0.weight", "projector/w1_fe", "f e -> f e"),
        Row("visual.merger.mlp.0.bias", "projector/b1_f", "f -> f"),
        Row("visual.merger.mlp.2.weight", "projector/w2_df", "d f -> d f"),
        Row("visual.merger.mlp.2.bias", "projector/b2_d", "d -> d"),
        *decoder_rows("model.", "model.layers.{i}.", "lm_head.weight"),
    ),
    buffers=(r"rotary_(pos_)?emb\.inv_freq$",),
    dims=_dims,
)
