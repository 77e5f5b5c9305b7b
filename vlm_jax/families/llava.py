"""LLaVA-1.5: CLIP, a two-layer projector, a Llama-like decoder."""

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from vlm_jax.config import ClipVisionConfig, VLMConfig
from vlm_jax.errors import ConfigError
from vlm_jax.families.base import Family, Row
from vlm_jax.families.decoders import decoder, decoder_letters, decoder_rows, read_text
from vlm_jax.families.fields import (
    Count,
    Depth,
    Epsilon,
    Ids,
    Index,
    Layer,
    Object,
    activation,
    divide,
    ids,
    one_of,
    read,
)


class Clip(msgspec.Struct, kw_only=True):
    """Fields of a CLIP tower, with transformers' defaults."""

    model_type: str = "clip_vision_model"
    hidden_size: Count = 768
    intermediate_size: Count = 3072
    num_hidden_layers: Depth = 12
    num_attention_heads: Count = 12
    num_channels: Count = 3
    image_size: Count = 224
    patch_size: Count = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5


# What transformers uses when `vision_config` is absent altogether: CLIP ViT-L/14 at 336 pixels.
TOWER = dict(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=336,
    patch_size=14,
)


class Root(msgspec.Struct, kw_only=True):
    """Fields of a LLaVA at the root."""

    text_config: Object | None = None
    vision_config: Object | None = None
    vision_feature_layer: Layer | list[Layer] = -2
    vision_feature_select_strategy: str = "default"
    projector_hidden_act: str = "gelu"
    multimodal_projector_bias: bool = True
    image_token_id: Index | None = None
    image_token_index: Index = 32000
    tie_word_embeddings: bool | None = None
    eos_token_id: Ids = None


def clip(fields: Mapping[str, Any], root: Root, where: str) -> ClipVisionConfig:
    """Returns the CLIP tower of a LLaVA."""
    layer = root.vision_feature_layer
    layers = tuple(layer) if isinstance(layer, list) else (layer,)
    strategy = one_of(
        root.vision_feature_select_strategy,
        ("default", "full"),
        "vision_feature_select_strategy",
        where,
    )
    where = f"{where}: vision_config"
    if fields.get("model_type", "clip_vision_model") != "clip_vision_model":
        raise ConfigError(f"{where}: the vision tower {fields['model_type']!r} is not supported.")
    tower = read(fields, Clip, where)
    depth = tower.num_hidden_layers
    for layer in layers:
        if not -depth - 1 <= layer <= depth:
            raise ConfigError(
                f"{where}: vision_feature_layer {layer} is outside its {depth} layers."
            )
    if not layers:
        raise ConfigError(f"{where}: vision_feature_layer must name at least one layer.")
    divide(tower.hidden_size, tower.num_attention_heads, where)
    if tower.patch_size > tower.image_size:
        raise ConfigError(
            f"{where}: patch_size {tower.patch_size} is larger than image_size {tower.image_size}."
        )
    return ClipVisionConfig(
        hidden_size=tower.hidden_size,
        intermediate_size=tower.intermediate_size,
        num_layers=depth,
        num_heads=tower.num_attention_heads,
        num_channels=tower.num_channels,
        image_size=tower.image_size,
        patch_size=tower.patch_size,
        hidden_act=activation(tower.hidden_act, "hidden_act", where),
        layer_norm_eps=tower.layer_norm_eps,
        feature_layers=layers,
        keep_class_token=strategy == "full",
    )


def clip_letters(vision: ClipVisionConfig) -> dict[str, int]:
    """Returns the letter lengths of a CLIP tower."""
    return dict(
        c=vision.num_channels,
        y=vision.patch_size,
        x=vision.patch_size,
        d=vision.hidden_size,
        n=vision.num_heads,
        h=vision.hidden_size // vision.num_heads,
        f=vision.intermediate_size,
        p=vision.num_patches + 1,
    )


def clip_rows(tower: str) -> tuple[Row, ...]:
    """Returns the rows of a CLIP tower whose names begin with `tower`."""
    disk, ours = tower + "encoder.layers.{i}.", "vision/layers/{i}/"
    return (
        Row(tower + "embeddings.patch_embedding.weight", "vision/patch_de", "d c y x -> d (c y x)"),
        Row(tower + "embeddings.class_embedding", "vision/class_d", "d -> d"),
        Row(tower + "embeddings.position_embedding.weight", "vision/positions_pd", "p d -> p d"),
        # "layrnorm" is how CLIP spells it.
        Row(tower + "pre_layrnorm.weight", "vision/pre_norm_scale_d", "d -> d"),
        Row(tower + "pre_layrnorm.bias", "vision/pre_norm_bias_d", "d -> d"),
        Row(disk + "layer_norm1.weight", ours + "norm1_scale_d", "d -> d"),
        Row(disk + "layer_norm1.bias", ours + "norm1_bias_d", "d -> d"),
        Row(disk + "self_attn.q_proj.weight", ours + "wq_dnh", "(n h) d -> d n h"),
        Row(disk + "self_attn.k_proj.weight", ours + "wk_dnh", "(n h) d -> d n h"),
        Row(disk + "self_attn.v_proj.weight", ours + "wv_dnh", "(n h) d -> d n h"),
        Row(disk + "self_attn.out_proj.weight", ours + "wo_nhd", "d (n h) -> n h d"),
        Row(disk + "self_attn.q_proj.bias", ours + "bq_nh", "(n h) -> n h"),
        Row(disk + "self_attn.k_proj.bias", ours + "bk_nh", "(n h) -> n h"),
        Row(disk + "self_attn.v_proj.bias", ours + "bv_nh", "(n h) -> n h"),
        Row(disk + "self_attn.out_proj.bias", ours + "bo_d", "d -> d"),
        Row(disk + "layer_norm2.weight", ours + "norm2_scale_d", "d -> d"),
        Row(disk + "layer_norm2.bias", ours + "norm2_bias_d", "d -> d"),
        Row(disk + "mlp.fc1.weight", ours + "w_up_fd", "f d -> f d"),
        Row(disk + "mlp.fc1.bias", ours + "b_up_f", "f -> f"),
        Row(disk + "mlp.fc2.weight", ours + "w_down_df", "d f -> d f"),
        Row(disk + "mlp.fc2.bias", ours + "b_down_d", "d -> d"),
        Row(tower + "post_layernorm.weight", "vision/post_norm_scale_d", "d -> d"),
        Row(tower + "post_layernorm.bias", "vision/post_norm_bias_d", "d -> d"),
    )


def _projector_bias(config: VLMConfig, layer: int) -> bool:
    return config.projector_bias


_TEXT = "language_model.model."
_CLIP = "vision_tower.vision_model."
_JOIN = "multi_modal_projector."


class Llava(Family):
    """LLaVA-1.5 and its like."""

    name = "llava"
    model_types = ("llava",)
    line = "LLaVA-1.5: CLIP, two linear maps, a Llama, Mistral or Qwen2 decoder"
    spellings = (
        (r"^(model\.)?vision_tower\.(vision_model\.)?", _CLIP),
        (r"^model\.multi_modal_projector\.", _JOIN),
        (r"^model\.language_model\.(model\.)?", _TEXT),
        (r"^lm_head\.", "language_model.lm_head."),
    )
    rows = (
        *clip_rows(_CLIP),
        Row(_JOIN + "linear_1.weight", "projector/w1_fe", "f e -> f e"),
        Row(_JOIN + "linear_1.bias", "projector/b1_f", "f -> f", when=_projector_bias),
        Row(_JOIN + "linear_2.weight", "projector/w2_df", "d f -> d f"),
        Row(_JOIN + "linear_2.bias", "projector/b2_d", "d -> d", when=_projector_bias),
        *decoder_rows(_TEXT, "language_model.lm_head.weight"),
    )
    buffers = (r"\.rotary_emb\.inv_freq$", r"\.embeddings\.position_ids$")

    def read(self, root: Mapping[str, Any], where: str) -> VLMConfig:
        """Reads `config.json`; see `Family.read`."""
        if "mm_vision_tower" in root:
            raise ConfigError(
                f"{where} is of LLaVA's original layout, without image token and processor files; "
                "take the llava-hf conversion of the model."
            )
        fields = read(root, Root, where)
        text = read_text(fields.text_config or {}, f"{where}: text_config")
        tied = fields.tie_word_embeddings
        image = fields.image_token_id
        return VLMConfig(
            family=self.name,
            decoder=decoder(
                text,
                f"{where}: text_config",
                text.tie_word_embeddings if tied is None else tied,
            ),
            vision=clip(fields.vision_config or TOWER, fields, where),
            projector_act=activation(fields.projector_hidden_act, "projector_hidden_act", where),
            projector_bias=fields.multimodal_projector_bias,
            image_token_id=fields.image_token_index if image is None else image,
            eos_ids=ids(fields.eos_token_id if "eos_token_id" in root else text.eos_token_id),
        )

    def tower(self, config, rngs):
        """Returns a CLIP tower."""
        from vlm_jax.models.clip import ClipVision

        return ClipVision(vision_of(config), rngs)

    def connector(self, config, rngs):
        """Returns two linear maps with an activation between."""
        return self._projector(config, rngs)

    def _projector(self, config: VLMConfig, rngs: Any, newline: bool = False):
        from vlm_jax.models.projector import Projector

        vision, width = vision_of(config), config.decoder.hidden_size
        inputs = vision.hidden_size * len(vision.feature_layers)
        return Projector(
            rngs,
            inputs,
            width,
            width,
            config.projector_act,
            config.projector_bias,
            newline=newline,
        )

    def cutter(self, config, image_processor):
        """Returns a cutter of square images."""
        from vlm_jax.processing.cutters import Square

        return Square(vision_of(config), image_processor)

    def layout(self, config, rows, cols):
        """Returns one group, row by row."""
        from vlm_jax.processing.cutters import row_major

        return row_major(rows, cols)

    def image_text(self, config, image, token):
        """Returns the placeholder and a new line."""
        return image + "\n"

    def letters(self, config):
        """Returns letter lengths; see `Family.letters`."""
        vision, width = vision_of(config), config.decoder.hidden_size
        return {
            "decoder": decoder_letters(config),
            "vision": clip_letters(vision),
            "projector": dict(e=vision.hidden_size * len(vision.feature_layers), f=width, d=width),
        }


def vision_of(config: VLMConfig) -> ClipVisionConfig:
    """Returns the CLIP tower of a LLaVA."""
    return cast(ClipVisionConfig, config.vision)


FAMILY = Llava()
