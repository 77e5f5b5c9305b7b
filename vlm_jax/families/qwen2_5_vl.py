"""Qwen2.5-VL: a windowed vision tower, a patch merger, a Qwen2 decoder with m-rope."""

from collections.abc import Mapping
from typing import Annotated, Any, cast

import msgspec
from absl import logging

from vlm_jax.config import QwenVisionConfig, VLMConfig
from vlm_jax.errors import ConfigError
from vlm_jax.families.base import Family, Row
from vlm_jax.families.decoders import Qwen2, decoder, decoder_letters, decoder_rows
from vlm_jax.families.fields import (
    Count,
    Depth,
    Epsilon,
    Ids,
    Index,
    Object,
    Pair,
    Theta,
    divide,
    ids,
    read,
    square,
)
from vlm_jax.families.vit import merger_letters, tower_letters


class _Text(Qwen2, kw_only=True):
    vocab_size: Annotated[int, msgspec.Meta(ge=1, le=1 << 24)] = 152064
    hidden_size: Count = msgspec.field()
    intermediate_size: Count = msgspec.field()
    num_hidden_layers: Depth = msgspec.field()
    num_attention_heads: Count = msgspec.field()
    num_key_value_heads: Count | None = msgspec.field()
    rms_norm_eps: Epsilon = 1e-5
    rope_theta: Theta | None = 1e6
    eos_token_id: Ids = 151645


class _Vision(msgspec.Struct, kw_only=True):
    depth: Depth = 32
    hidden_size: Count
    intermediate_size: Count = 3420
    num_heads: Count = 16
    in_channels: Count | None = None
    in_chans: Count = 3
    patch_size: Pair = 14
    spatial_merge_size: Count = 2
    temporal_patch_size: Pair = 2
    window_size: Count = 112
    out_hidden_size: Count = 3584
    fullatt_block_indexes: tuple[Index, ...] = (7, 15, 23, 31)


class _Root(msgspec.Struct, kw_only=True):
    text_config: Object | None = None
    vision_config: Object
    image_token_id: Index = 151655
    vision_start_token_id: Index = 151652
    vision_end_token_id: Index = 151653
    tie_word_embeddings: bool | None = None
    eos_token_id: Ids = None


def _tower(fields: Mapping[str, Any], where: str, width: int) -> QwenVisionConfig:
    tower = read(fields, _Vision, where)
    if tower.out_hidden_size != width:
        raise ConfigError(
            f"{where}: out_hidden_size {tower.out_hidden_size} must be the hidden_size of the "
            f"decoder, {width}."
        )
    head_dim = divide(tower.hidden_size, tower.num_heads, where)
    if head_dim % 4:
        raise ConfigError(
            f"{where}: heads of {head_dim} do not divide into pairs for rows and columns."
        )
    for layer in tower.fullatt_block_indexes:
        if layer >= tower.depth:
            raise ConfigError(
                f"{where}: fullatt_block_indexes {layer} is outside its {tower.depth} layers."
            )
    patch = square(tower.patch_size, "patch_size", where)
    unit = patch * tower.spatial_merge_size
    if tower.window_size % unit:
        raise ConfigError(
            f"{where}: window_size {tower.window_size} must be a multiple of patch_size x "
            f"spatial_merge_size = {unit}."
        )
    return QwenVisionConfig(
        hidden_size=tower.hidden_size,
        intermediate_size=tower.intermediate_size,
        num_layers=tower.depth,
        num_heads=tower.num_heads,
        num_channels=tower.in_channels or tower.in_chans,
        patch_size=patch,
        temporal_patch_size=square(tower.temporal_patch_size, "temporal_patch_size", where),
        merge_size=tower.spatial_merge_size,
        window_size=tower.window_size,
        full_attention_layers=tower.fullatt_block_indexes,
        out_hidden_size=tower.out_hidden_size,
    )


# For folders without one, such as Ocean-R1's.
TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for item in message['content'] %}"
    "{% if item['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in item %}{{ item['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_BLOCK = "visual.blocks.{i}."
_OURS = "vision/layers/{i}/"


class Qwen25VL(Family):
    """Qwen2.5-VL, and models trained from it."""

    name = "qwen2_5_vl"
    model_types = ("qwen2_5_vl",)
    line = "Qwen2.5-VL: windowed tower, patch merger, Qwen2 decoder with m-rope"
    bounds_pixels = True
    spellings = ((r"^model\.visual\.", "visual."), (r"^model\.language_model\.", "model."))
    rows = (
        Row("visual.patch_embed.proj.weight", "vision/patch_de", "d c t y x -> d (c t y x)"),
        Row(_BLOCK + "norm1.weight", _OURS + "norm1_d", "d -> d"),
        Row(_BLOCK + "attn.qkv.weight", _OURS + "wqkv_d3nh", "(s n h) d -> d s n h"),
        Row(_BLOCK + "attn.qkv.bias", _OURS + "bqkv_3nh", "(s n h) -> s n h"),
        Row(_BLOCK + "attn.proj.weight", _OURS + "wo_nhd", "d (n h) -> n h d"),
        Row(_BLOCK + "attn.proj.bias", _OURS + "bo_d", "d -> d"),
        Row(_BLOCK + "norm2.weight", _OURS + "norm2_d", "d -> d"),
        Row(_BLOCK + "mlp.gate_proj.weight", _OURS + "w_gate_fd", "f d -> f d"),
        Row(_BLOCK + "mlp.gate_proj.bias", _OURS + "b_gate_f", "f -> f"),
        Row(_BLOCK + "mlp.up_proj.weight", _OURS + "w_up_fd", "f d -> f d"),
        Row(_BLOCK + "mlp.up_proj.bias", _OURS + "b_up_f", "f -> f"),
        Row(_BLOCK + "mlp.down_proj.weight", _OURS + "w_down_df", "d f -> d f"),
        Row(_BLOCK + "mlp.down_proj.bias", _OURS + "b_down_d", "d -> d"),
        Row("visual.merger.ln_q.weight", "projector/norm_e", "p -> p"),
        Row("visual.merger.mlp.0.weight", "projector/w1_fe", "f e -> f e"),
        Row("visual.merger.mlp.0.bias", "projector/b1_f", "f -> f"),
        Row("visual.merger.mlp.2.weight", "projector/w2_df", "d f -> d f"),
        Row("visual.merger.mlp.2.bias", "projector/b2_d", "d -> d"),
        *decoder_rows("model.", "lm_head.weight"),
    )
    buffers = (r"rotary_(pos_)?emb\.inv_freq$",)

    def read(self, root: Mapping[str, Any], where: str) -> VLMConfig:
        """Reads `config.json`; see `Family.read`."""
        fields = read(root, _Root, where)
        # Hub-era folders keep the text fields at the root, newer ones nest them.
        text = read(fields.text_config or root, _Text, f"{where}: text_config")
        tied = fields.tie_word_embeddings
        language = decoder(
            text, f"{where}: text_config", text.tie_word_embeddings if tied is None else tied
        )
        if language.mrope_section is None:
            raise ConfigError(f"{where} has no field 'mrope_section' in its rope parameters.")
        return VLMConfig(
            family=self.name,
            decoder=language,
            vision=_tower(fields.vision_config, f"{where}: vision_config", language.hidden_size),
            image_token_id=fields.image_token_id,
            vision_start_id=fields.vision_start_token_id,
            vision_end_id=fields.vision_end_token_id,
            eos_ids=ids(fields.eos_token_id if "eos_token_id" in root else text.eos_token_id),
        )

    def tower(self, config, rngs):
        """Returns a windowed tower."""
        from vlm_jax.models.qwen_vision import QwenVision

        return QwenVision(_vision(config), rngs)

    def connector(self, config, rngs):
        """Returns the patch merger: a norm, a grouping and two linear maps."""
        from vlm_jax.models.projector import Projector

        vision = _vision(config)
        merge = vision.merge_size**2
        inputs = vision.hidden_size * merge
        return Projector(
            rngs,
            inputs,
            inputs,
            config.decoder.hidden_size,
            config.projector_act,
            merge=merge,
            norm_eps=vision.rms_norm_eps,
        )

    def cutter(self, config, image_processor):
        """Returns a cutter of images of any size into attention windows."""
        from vlm_jax.processing.cutters import Windows

        return Windows(_vision(config), image_processor)

    def template(self, found):
        """Returns the folder's template; where it has none, that of Qwen2.5-VL, and says so."""
        if found is None:
            logging.warning("The model folder has no chat template: Qwen2.5-VL's is used.")
        return found or TEMPLATE

    def layout(self, config, rows, cols):
        """Returns the windows of a grid of patches."""
        from vlm_jax.processing.cutters import window_layout

        vision = _vision(config)
        return window_layout(rows, cols, vision.merge_size, vision.window_units)

    def image_text(self, config, image, token):
        """Returns the placeholder between the marks of an image."""
        start = token(config.vision_start_id, "vision_start_token_id")
        return start + image + token(config.vision_end_id, "vision_end_token_id")

    def letters(self, config):
        """Returns letter lengths; see `Family.letters`."""
        vision = _vision(config)
        return {
            "decoder": decoder_letters(config),
            "vision": tower_letters(vision) | dict(t=vision.temporal_patch_size),
            "projector": merger_letters(vision),
        }


def _vision(config: VLMConfig) -> QwenVisionConfig:
    return cast(QwenVisionConfig, config.vision)


FAMILY = Qwen25VL()
