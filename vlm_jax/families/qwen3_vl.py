"""Qwen3-VL (dense): full-attention tower with DeepStack, Qwen3 decoder with interleaved m-rope."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any, cast

import msgspec

from vlm_jax.config import NativeVitConfig, VLMConfig
from vlm_jax.errors import ConfigError
from vlm_jax.families.base import Family, Row
from vlm_jax.families.decoders import Qwen3, decoder, decoder_letters, decoder_rows
from vlm_jax.families.fields import (
    Count,
    Depth,
    Ids,
    Index,
    Object,
    Pair,
    Theta,
    activation,
    divide,
    ids,
    read,
    square,
)
from vlm_jax.families.vit import merger_letters, timm_rows, tower_letters


class _Text(Qwen3, kw_only=True):
    max_position_embeddings: Annotated[int, msgspec.Meta(ge=1, le=1 << 31)] = 128000
    rope_theta: Theta | None = 5e5


class _Vision(msgspec.Struct, kw_only=True):
    depth: Depth = 27
    hidden_size: Count = 1152
    hidden_act: str = "gelu_pytorch_tanh"
    intermediate_size: Count = 4304
    num_heads: Count = 16
    in_channels: Count = 3
    patch_size: Pair = 16
    spatial_merge_size: Count = 2
    temporal_patch_size: Pair = 2
    out_hidden_size: Count = 3584
    num_position_embeddings: Count = 2304
    deepstack_visual_indexes: tuple[Index, ...] = (8, 16, 24)


class _Root(msgspec.Struct, kw_only=True):
    text_config: Object = {}
    vision_config: Object = {}
    image_token_id: Index = 151655
    vision_start_token_id: Index = 151652
    vision_end_token_id: Index = 151653
    tie_word_embeddings: bool | None = None
    eos_token_id: Ids = None


def _tower(tower: _Vision, where: str, width: int, layers: int) -> NativeVitConfig:
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
    side = math.isqrt(tower.num_position_embeddings)
    if side * side != tower.num_position_embeddings:
        raise ConfigError(
            f"{where}: num_position_embeddings {tower.num_position_embeddings} must be a square."
        )
    deep = tower.deepstack_visual_indexes
    if list(deep) != sorted(set(deep)) or any(layer >= tower.depth for layer in deep):
        raise ConfigError(
            f"{where}: deepstack_visual_indexes {list(deep)} must rise, within its {tower.depth} "
            "layers."
        )
    if len(deep) > layers:
        raise ConfigError(
            f"{where}: deepstack_visual_indexes {list(deep)} are more than the decoder's {layers} "
            "layers."
        )
    return NativeVitConfig(
        hidden_size=tower.hidden_size,
        intermediate_size=tower.intermediate_size,
        num_layers=tower.depth,
        num_heads=tower.num_heads,
        num_channels=tower.in_channels,
        patch_size=square(tower.patch_size, "patch_size", where),
        temporal_patch_size=square(tower.temporal_patch_size, "temporal_patch_size", where),
        merge_size=tower.spatial_merge_size,
        position_side=side,
        deep_layers=deep,
        out_hidden_size=tower.out_hidden_size,
        hidden_act=activation(tower.hidden_act, "hidden_act", where),
    )


_TOWER = "model.visual."
_BLOCK = _TOWER + "blocks.{i}."
_OURS = "vision/layers/{i}/"


def _merger_rows(disk: str, ours: str, norm: str) -> tuple[Row, ...]:
    """Returns the rows of a merger; `norm` is the letter of what its norm is over."""
    return (
        Row(disk + "norm.weight", ours + "norm_scale_e", f"{norm} -> {norm}"),
        Row(disk + "norm.bias", ours + "norm_bias_e", f"{norm} -> {norm}"),
        Row(disk + "linear_fc1.weight", ours + "w1_fe", "f e -> f e"),
        Row(disk + "linear_fc1.bias", ours + "b1_f", "f -> f"),
        Row(disk + "linear_fc2.weight", ours + "w2_df", "d f -> d f"),
        Row(disk + "linear_fc2.bias", ours + "b2_d", "d -> d"),
    )


class Qwen3VL(Family):
    """Qwen3-VL with a dense decoder."""

    name = "qwen3_vl"
    model_types = ("qwen3_vl",)
    line = "Qwen3-VL (dense): DeepStack, Qwen3 decoder with interleaved m-rope"
    bounds_pixels = True
    rows = (
        Row(_TOWER + "patch_embed.proj.weight", "vision/patch_de", "d c t y x -> d (c t y x)"),
        Row(_TOWER + "patch_embed.proj.bias", "vision/patch_bias_d", "d -> d"),
        Row(_TOWER + "pos_embed.weight", "vision/positions_pd", "p d -> p d"),
        *timm_rows(_BLOCK, _OURS, mlp="mlp.linear_fc"),
        *_merger_rows(_TOWER + "merger.", "projector/", "p"),
        *_merger_rows(_TOWER + "deepstack_merger_list.{i}.", "projector/deep/{i}/", "e"),
        *decoder_rows("model.language_model.", "lm_head.weight"),
    )
    buffers = (r"rotary_(pos_)?emb\.inv_freq$",)

    def read(self, root: Mapping[str, Any], where: str) -> VLMConfig:
        """Reads `config.json`; see `Family.read`."""
        fields = read(root, _Root, where)
        text = read(fields.text_config, _Text, f"{where}: text_config")
        tied = fields.tie_word_embeddings
        language = decoder(
            text, f"{where}: text_config", text.tie_word_embeddings if tied is None else tied
        )
        if language.mrope_section is None:
            raise ConfigError(f"{where} has no field 'mrope_section' in its rope parameters.")
        vision = read(fields.vision_config, _Vision, f"{where}: vision_config")
        return VLMConfig(
            family=self.name,
            # The reference deals frequencies out in turns whatever mrope_interleaved says.
            decoder=dataclasses.replace(language, mrope_interleaved=True),
            vision=_tower(
                vision, f"{where}: vision_config", language.hidden_size, language.num_layers
            ),
            image_token_id=fields.image_token_id,
            vision_start_id=fields.vision_start_token_id,
            vision_end_id=fields.vision_end_token_id,
            eos_ids=ids(fields.eos_token_id if "eos_token_id" in root else text.eos_token_id),
        )

    def tower(self, config, rngs):
        """Returns a tower of full attention."""
        from vlm_jax.models.native_vit import NativeVit

        return NativeVit(_vision(config), rngs)

    def connector(self, config, rngs):
        """Returns the mergers of the last layer and of the deep ones."""
        from vlm_jax.models.native_vit import DeepMerger

        return DeepMerger(rngs, _vision(config))

    def cutter(self, config, image_processor):
        """Returns a cutter of images of any size into runs of patches."""
        from vlm_jax.processing.cutters import Runs

        return Runs(_vision(config), image_processor)

    def layout(self, config, rows, cols):
        """Returns the runs of a grid of patches."""
        from vlm_jax.processing.cutters import run_layout

        return run_layout(rows, cols, _vision(config).merge_size)

    def image_text(self, config, image, token):
        """Returns the placeholder between the marks of an image."""
        start = token(config.vision_start_id, "vision_start_token_id")
        return start + image + token(config.vision_end_id, "vision_end_token_id")

    def stacks(self, config):
        """Returns how many layers each part has; the projector has a merger a deep layer."""
        return super().stacks(config) | {"projector": len(_vision(config).deep_layers)}

    def letters(self, config):
        """Returns letter lengths; see `Family.letters`."""
        vision = _vision(config)
        return {
            "decoder": decoder_letters(config),
            "vision": tower_letters(vision)
            | dict(t=vision.temporal_patch_size, p=vision.position_side**2),
            # The first norm sees one patch's features (p), the others a merged unit's (e).
            "projector": merger_letters(vision),
        }


def _vision(config: VLMConfig) -> NativeVitConfig:
    return cast(NativeVitConfig, config.vision)


FAMILY = Qwen3VL()
