"""Vision transformers as transformers and timm name them, for several families."""

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from vlm_jax.config import NativeVitConfig, QwenVisionConfig, TowerConfig, VitConfig, VLMConfig
from vlm_jax.errors import ConfigError
from vlm_jax.families.base import Row
from vlm_jax.families.fields import Count, Depth, Epsilon, activation, divide, read


class Clip(msgspec.Struct, kw_only=True):
    """Fields of a CLIP tower, with transformers' defaults."""

    hidden_size: Count = 768
    intermediate_size: Count = 3072
    num_hidden_layers: Depth = 12
    num_attention_heads: Count = 12
    num_channels: Count = 3
    image_size: Count = 224
    patch_size: Count = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5


class Siglip(Clip, kw_only=True):
    """Fields of a SigLIP tower, with transformers' defaults."""

    patch_size: Count = 16
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: Epsilon = 1e-6


TOWERS: dict[str, tuple[type[Clip], dict[str, Any]]] = {
    "clip_vision_model": (Clip, dict(pre_norm=True, post_norm=True)),
    "siglip_vision_model": (Siglip, dict(class_token=False, patch_bias=True, post_norm=True)),
}
"""Towers by `model_type`: their fields, and the values of `VitConfig` that tell them apart."""


def read_tower(fields: Mapping[str, Any], where: str, **values: Any) -> VitConfig:
    """Returns the tower that a `vision_config` describes, by its `model_type`.

    Args:
        fields: the `vision_config`.
        where: what to call it in errors.
        values: of `VitConfig`, such as `feature_layers`.

    Raises:
        ConfigError: the tower is of no known kind, or a field is out of range.
    """
    kind = fields.get("model_type", "clip_vision_model")
    if not isinstance(kind, str) or kind not in TOWERS:
        raise ConfigError(
            f"{where}: the vision tower {kind!r} is not supported ({', '.join(TOWERS)} are)."
        )
    known, parts = TOWERS[kind]
    return vit(read(fields, known, where), where, **parts | values)


def vit(tower: Clip, where: str, **values: Any) -> VitConfig:
    """Returns a tower of these fields; arguments as of `read_tower`.

    Raises:
        ConfigError: a field is out of range.
    """
    divide(tower.hidden_size, tower.num_attention_heads, where)
    if tower.patch_size > tower.image_size:
        raise ConfigError(
            f"{where}: patch_size {tower.patch_size} is larger than image_size {tower.image_size}."
        )
    return VitConfig(
        hidden_size=tower.hidden_size,
        intermediate_size=tower.intermediate_size,
        num_layers=tower.num_hidden_layers,
        num_heads=tower.num_attention_heads,
        num_channels=tower.num_channels,
        image_size=tower.image_size,
        patch_size=tower.patch_size,
        hidden_act=activation(tower.hidden_act, "hidden_act", where),
        layer_norm_eps=tower.layer_norm_eps,
        **values,
    )


def vit_of(config: VLMConfig) -> VitConfig:
    """Returns the tower of a model that has a plain one."""
    return cast(VitConfig, config.vision)


def tower_letters(vision: TowerConfig) -> dict[str, int]:
    """Returns the letter lengths of patches and blocks, which all towers have."""
    return dict(
        c=vision.num_channels,
        y=vision.patch_size,
        x=vision.patch_size,
        d=vision.hidden_size,
        s=3,  # query, key and value
        n=vision.num_heads,
        h=vision.hidden_size // vision.num_heads,
        f=vision.intermediate_size,
    )


def vit_letters(vision: VitConfig) -> dict[str, int]:
    """Returns the letter lengths of a tower."""
    return tower_letters(vision) | dict(a=1, b=1, p=vision.num_patches + vision.class_token)


def merger_letters(vision: QwenVisionConfig | NativeVitConfig) -> dict[str, int]:
    """Returns the letter lengths of a merger: p one patch's features, e a merged unit's."""
    merged = vision.hidden_size * vision.merge_size**2
    return dict(p=vision.hidden_size, e=merged, f=merged, d=vision.out_hidden_size)


def timm_rows(disk: str, ours: str, *attention: Row, mlp: str = "mlp.fc") -> tuple[Row, ...]:
    """Returns the rows of a block whose parts are called as in timm.

    Args:
        disk: what its names begin with.
        ours: what ours begin with.
        attention: rows of its queries, keys and values; by default one matrix and one bias.
        mlp: what its two maps are called, but for their number.
    """
    fused = (
        Row(disk + "attn.qkv.weight", ours + "wqkv_d3nh", "(s n h) d -> d s n h"),
        Row(disk + "attn.qkv.bias", ours + "bqkv_3nh", "(s n h) -> s n h"),
    )
    return (
        Row(disk + "norm1.weight", ours + "norm1_scale_d", "d -> d"),
        Row(disk + "norm1.bias", ours + "norm1_bias_d", "d -> d"),
        *(attention or fused),
        Row(disk + "attn.proj.weight", ours + "wo_nhd", "d (n h) -> n h d"),
        Row(disk + "attn.proj.bias", ours + "bo_d", "d -> d"),
        Row(disk + "norm2.weight", ours + "norm2_scale_d", "d -> d"),
        Row(disk + "norm2.bias", ours + "norm2_bias_d", "d -> d"),
        Row(disk + f"{mlp}1.weight", ours + "w_up_fd", "f d -> f d"),
        Row(disk + f"{mlp}1.bias", ours + "b_up_f", "f -> f"),
        Row(disk + f"{mlp}2.weight", ours + "w_down_df", "d f -> d f"),
        Row(disk + f"{mlp}2.bias", ours + "b_down_d", "d -> d"),
    )


def _class_token(config: VLMConfig, layer: int) -> bool:
    return vit_of(config).class_token


def _patch_bias(config: VLMConfig, layer: int) -> bool:
    return vit_of(config).patch_bias


def _pre_norm(config: VLMConfig, layer: int) -> bool:
    return vit_of(config).pre_norm


def block_rows(disk: str, ours: str) -> tuple[Row, ...]:
    """Returns the rows of a block of CLIP or SigLIP, of either tower.

    Args:
        disk, ours: what its names on disk and our paths begin with.
    """
    return (
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
    )


def vit_rows(tower: str) -> tuple[Row, ...]:
    """Returns the rows of a CLIP or SigLIP tower whose names begin with `tower`."""
    disk, ours = tower + "encoder.layers.{i}.", "vision/layers/{i}/"
    patch, first = tower + "embeddings.patch_embedding.", tower + "embeddings.class_embedding"
    return (
        Row(patch + "weight", "vision/patch_de", "d c y x -> d (c y x)"),
        Row(patch + "bias", "vision/patch_bias_d", "d -> d", when=_patch_bias),
        Row(first, "vision/class_d", "d -> d", when=_class_token),
        Row(tower + "embeddings.position_embedding.weight", "vision/positions_pd", "p d -> p d"),
        # "layrnorm" is how CLIP spells it.
        Row(tower + "pre_layrnorm.weight", "vision/pre_norm_scale_d", "d -> d", when=_pre_norm),
        Row(tower + "pre_layrnorm.bias", "vision/pre_norm_bias_d", "d -> d", when=_pre_norm),
        *block_rows(disk, ours),
        Row(tower + "post_layernorm.weight", "vision/post_norm_scale_d", "d -> d"),
        Row(tower + "post_layernorm.bias", "vision/post_norm_bias_d", "d -> d"),
    )
