"""LLaVA-1.5: CLIP, a two-layer projector, a Llama-like decoder."""

from convert.decoder import decoder_dims, decoder_rows
from convert.table import Row, Table
from vlm_jax.config import ClipVisionConfig, VLMConfig

_TEXT = "language_model.model."
_LAYER = "language_model.model.layers.{i}."
_CLIP = "vision_tower.vision_model."
_BLOCK = "vision_tower.vision_model.encoder.layers.{i}."
_JOIN = "multi_modal_projector."


def _projector_bias(config: VLMConfig) -> bool:
    return config.projector_bias


def _dims(config: VLMConfig) -> dict[str, dict[str, int]]:
    vision = config.vision
    assert isinstance(vision, ClipVisionConfig)
    width = config.decoder.hidden_size
    return {
        "decoder": decoder_dims(config),
        "vision": dict(
            c=vision.num_channels,
            y=vision.patch_size,
            x=vision.patch_size,
            d=vision.hidden_size,
            n=vision.num_heads,
            h=vision.hidden_size // vision.num_heads,
            f=vision.intermediate_size,
            p=vision.num_patches + 1,
        ),
        "projector": dict(e=vision.hidden_size * len(vision.feature_layers), f=width, d=width),
    }


TABLE = Table(
    family="llava",
    spellings=(
        (r"^(model\.)?vision_tower\.(vision_model\.)?", _CLIP),
        (r"^model\.multi_modal_projector\.", _JOIN),
        (r"^model\.language_model\.(model\.)?", _TEXT),
        (r"^lm_head\.", "language_model.lm_head."),
    ),
    rows=(
        Row(_CLIP + "embeddings.patch_embedding.weight", "vision/patch_de", "d c y x -> d (c y x)"),
        Row(_CLIP + "embeddings.class_embedding", "vision/class_d", "d -> d"),
        Row(_CLIP + "embeddings.position_embedding.weight", "vision/positions_pd", "p d -> p d"),
        # "layrnorm" is how CLIP spells it.
        Row(_CLIP + "pre_layrnorm.weight", "vision/pre_norm_scale_d", "d -> d"),
        Row(_CLIP + "pre_layrnorm.bias", "vision/pre_norm_bias_d", "d -> d"),
        Row(_BLOCK + "layer_norm1.weight", "vision/layers/{i}/norm1_scale_d", "d -> d"),
        Row(_BLOCK + "layer_norm1.bias", "vision/layers/{i}/norm1_bias_d", "d -> d"),
        Row(_BLOCK + "self_attn.q_proj.weight", "vision/layers/{i}/wq_dnh", "(n h) d -> d n h"),
        Row(_BLOCK + "self_attn.k_proj.weight", "vision/layers/{i}/wk_dnh", "(n h) d -> d n h"),
        Row(_BLOCK + "self_attn.v_proj.weight", "vision/layers/{i}/wv_dnh", "(n h) d -> d n h"),
        Row(_BLOCK + "self_attn.out_proj.weight", "vision/layers/{i}/wo_nhd", "d (n h) -> n h d"),
        Row(_BLOCK + "self_attn.q_proj.bias", "vision/layers/{i}/bq_nh", "(n h) -> n h"),
        Row(_BLOCK + "self_attn.k_proj.bias", "vision/layers/{i}/bk_nh", "(n h) -> n h"),
        Row(_BLOCK + "self_attn.v_proj.bias", "vision/layers/{i}/bv_nh", "(n h) -> n h"),
        Row(_BLOCK + "self_attn.out_proj.bias", "vision/layers/{i}/bo_d", "d -> d"),
        Row(_BLOCK + "layer_norm2.weight", "vision/layers/{i}/norm2_scale_d", "d -> d"),
        Row(_BLOCK + "layer_norm2.bias", "vision/layers/{i}/norm2_bias_d", "d -> d"),
        Row(_BLOCK + "mlp.fc1.weight", "vision/layers/{i}/w_up_fd", "f d -> f d"),
        Row(_BLOCK + "mlp.fc1.bias", "vision/layers/{i}/b_up_f", "f -> f"),
        Row(_BLOCK + "mlp.fc2.weight", "vision/layers/{i}/w_down_df", "d f -> d f"),
        Row(_BLOCK + "mlp.fc2.bias", "vision/layers/{i}/b_down_d", "d -> d"),
        Row(_CLIP + "post_layernorm.weight", "vision/post_norm_scale_d", "d -> d"),
        Row(_CLIP + "post_layernorm.bias", "vision/post_norm_bias_d", "d -> d"),
        Row(_JOIN + "linear_1.weight", "projector/w1_fe", "f e -> f e"),
        Row(_JOIN + "linear_1.bias", "projector/b1_f", "f -> f", when=_projector_bias),
        Row(_JOIN + "linear_2.weight", "projector/w2_df", "d f -> d f"),
        Row(_JOIN + "linear_2.bias", "projector/b2_d", "d -> d", when=_projector_bias),
        *decoder_rows(_TEXT, _LAYER, "language_model.lm_head.weight"),
    ),
    buffers=(r"\.rotary_emb\.inv_freq$", r"\.embeddings\.position_ids$"),
    dims=_dims,
)
