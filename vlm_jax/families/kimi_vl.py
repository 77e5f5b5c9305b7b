"""Kimi-VL-A3B: MoonViT at an image's own resolution, latent attention, experts."""

import os
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any, cast

import msgspec

from vlm_jax.config import NativeVitConfig, VLMConfig
from vlm_jax.errors import CheckpointError, ConfigError
from vlm_jax.families.base import Family, Row
from vlm_jax.families.decoders import decoder_letters, decoder_rows
from vlm_jax.families.deepseek import DeepSeek, deepseek_decoder
from vlm_jax.families.fields import (
    Count,
    Depth,
    Factor,
    Ids,
    Index,
    Object,
    divide,
    ids,
    one_of,
    read,
)
from vlm_jax.families.vit import merger_letters, tower_letters
from vlm_jax.foreign import read_json


class _Text(DeepSeek, kw_only=True):
    """Fields of the decoder; those whose absence would mean another model are required."""

    hidden_size: Count = msgspec.field()
    intermediate_size: Count = msgspec.field()
    num_attention_heads: Count = msgspec.field()
    moe_intermediate_size: Count = msgspec.field()
    n_shared_experts: Index | None = msgspec.field()
    first_k_dense_replace: Index = msgspec.field()
    routed_scaling_factor: Factor = msgspec.field()
    scoring_func: str = msgspec.field()
    topk_method: str = msgspec.field()
    norm_topk_prob: bool = msgspec.field()
    n_group: Count | None = msgspec.field()
    topk_group: Count | None = msgspec.field()
    kv_lora_rank: Count | None = msgspec.field()
    q_lora_rank: Count | None = msgspec.field()
    eos_token_id: Ids = 163585


class _Vision(msgspec.Struct, kw_only=True):
    patch_size: Count = 14
    num_attention_heads: Count = 16
    num_hidden_layers: Depth = 27
    hidden_size: Count = 1152
    intermediate_size: Count = 4304
    init_pos_emb_height: Count = 64
    init_pos_emb_width: Count = 64
    merge_kernel_size: tuple[Count, Count] = (2, 2)


class _Root(msgspec.Struct, kw_only=True):
    text_config: Object
    vision_config: Object = {}
    media_placeholder_token_id: Index = 163605
    tie_word_embeddings: bool = False


class MoonPixels(msgspec.Struct):
    """What a folder's preprocessor_config.json says of pixels."""

    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    in_token_limit: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] = 4096
    patch_size: Count = 14
    merge_kernel_size: tuple[Count, Count] = (2, 2)
    pad_input: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings, as transformers' image processors give theirs."""
        return msgspec.to_builtins(self)


def _tower(tower: _Vision, where: str, width: int) -> NativeVitConfig:
    one_of(tower.merge_kernel_size, ((2, 2),), "merge_kernel_size", where)
    head_dim = divide(tower.hidden_size, tower.num_attention_heads, where)
    if head_dim % 4:
        raise ConfigError(
            f"{where}: heads of {head_dim} do not divide into pairs for rows and columns."
        )
    if tower.init_pos_emb_height != tower.init_pos_emb_width:
        raise ConfigError(
            f"{where}: init_pos_emb_height {tower.init_pos_emb_height} must be "
            f"init_pos_emb_width {tower.init_pos_emb_width}."
        )
    return NativeVitConfig(
        hidden_size=tower.hidden_size,
        intermediate_size=tower.intermediate_size,
        num_layers=tower.num_hidden_layers,
        num_heads=tower.num_attention_heads,
        num_channels=3,
        patch_size=tower.patch_size,
        temporal_patch_size=1,
        merge_size=2,
        position_side=tower.init_pos_emb_height,
        out_hidden_size=width,
        hidden_act="gelu_pytorch_tanh",
        position_kernel="bicubic",
        rope_neighbours=True,
        post_norm=True,
        layer_norm_eps=1e-5,
    )


_TOWER = "vision_tower."
_BLOCK = _TOWER + "encoder.blocks.{i}."
_OURS = "vision/layers/{i}/"
_JOIN = "multi_modal_projector."


class KimiVL(Family):
    """Kimi-VL-A3B, Instruct and Thinking."""

    name = "kimi_vl"
    model_types = ("kimi_vl",)
    line = "Kimi-VL-A3B: MoonViT, a decoder of latent attention and experts"
    rows = (
        Row(_TOWER + "patch_embed.proj.weight", "vision/patch_de", "d c y x -> d (c y x)"),
        Row(_TOWER + "patch_embed.proj.bias", "vision/patch_bias_d", "d -> d"),
        Row(_TOWER + "patch_embed.pos_emb.weight", "vision/positions_pd", "p q d -> (p q) d"),
        Row(_BLOCK + "norm0.weight", _OURS + "norm1_scale_d", "d -> d"),
        Row(_BLOCK + "norm0.bias", _OURS + "norm1_bias_d", "d -> d"),
        Row(_BLOCK + "wqkv.weight", _OURS + "wqkv_d3nh", "(s n h) d -> d s n h"),
        Row(_BLOCK + "wqkv.bias", _OURS + "bqkv_3nh", "(s n h) -> s n h"),
        Row(_BLOCK + "wo.weight", _OURS + "wo_nhd", "d (n h) -> n h d"),
        Row(_BLOCK + "wo.bias", _OURS + "bo_d", "d -> d"),
        Row(_BLOCK + "norm1.weight", _OURS + "norm2_scale_d", "d -> d"),
        Row(_BLOCK + "norm1.bias", _OURS + "norm2_bias_d", "d -> d"),
        Row(_BLOCK + "mlp.fc0.weight", _OURS + "w_up_fd", "f d -> f d"),
        Row(_BLOCK + "mlp.fc0.bias", _OURS + "b_up_f", "f -> f"),
        Row(_BLOCK + "mlp.fc1.weight", _OURS + "w_down_df", "d f -> d f"),
        Row(_BLOCK + "mlp.fc1.bias", _OURS + "b_down_d", "d -> d"),
        Row(_TOWER + "encoder.final_layernorm.weight", "vision/post_norm_scale_d", "d -> d"),
        Row(_TOWER + "encoder.final_layernorm.bias", "vision/post_norm_bias_d", "d -> d"),
        Row(_JOIN + "pre_norm.weight", "projector/norm_scale_e", "p -> p"),
        Row(_JOIN + "pre_norm.bias", "projector/norm_bias_e", "p -> p"),
        Row(_JOIN + "linear_1.weight", "projector/w1_fe", "f e -> f e"),
        Row(_JOIN + "linear_1.bias", "projector/b1_f", "f -> f"),
        Row(_JOIN + "linear_2.weight", "projector/w2_df", "d f -> d f"),
        Row(_JOIN + "linear_2.bias", "projector/b2_d", "d -> d"),
        *decoder_rows("language_model.model.", "language_model.lm_head.weight"),
    )
    buffers = (r"rotary_emb\.inv_freq$",)

    def read(self, root: Mapping[str, Any], where: str) -> VLMConfig:
        """Reads `config.json`; see `Family.read`."""
        fields = read(root, _Root, where)
        text = read(fields.text_config, _Text, f"{where}: text_config")
        named = f"{where}: text_config"
        language = deepseek_decoder(text, named, fields.tie_word_embeddings)
        vision = read(fields.vision_config, _Vision, f"{where}: vision_config")
        return VLMConfig(
            family=self.name,
            decoder=language,
            vision=_tower(vision, f"{where}: vision_config", language.hidden_size),
            image_token_id=fields.media_placeholder_token_id,
            eos_ids=ids(text.eos_token_id),
        )

    def tower(self, config, rngs):
        """Returns a MoonViT."""
        from vlm_jax.models.native_vit import NativeVit

        return NativeVit(_vision(config), rngs)

    def connector(self, config, rngs):
        """Returns a merger of 2 x 2 patches."""
        from vlm_jax.models.native_vit import DeepMerger

        return DeepMerger(rngs, _vision(config))

    def tokenizer(self, folder):
        """Returns the tokenizer of a file of ranks; the folder's own code is never run.

        Answers end with the end of a turn, which config.json does not say.
        """
        if os.path.lexists(pathlib.Path(folder) / "tokenizer.json"):
            return super().tokenizer(folder)
        from vlm_jax.processing.tiktoken import KIMI_PATTERN, read_tiktoken

        return read_tiktoken(pathlib.Path(folder), KIMI_PATTERN, "<|im_end|>")

    def image_processor(self, folder):
        """Returns the settings of pixels; the folder's own code is never run."""
        path = pathlib.Path(folder) / "preprocessor_config.json"
        if not os.path.lexists(path):
            raise CheckpointError(f"{folder} has no preprocessor_config.json.")
        return read_json(path, MoonPixels)

    def cutter(self, config, image_processor):
        """Returns a cutter of images of any size, padded to whole merge units."""
        from vlm_jax.processing.cutters import Padded

        vision = _vision(config)
        for name, ours, theirs in (
            ("patch_size", vision.patch_size, image_processor.patch_size),
            ("merge_kernel_size", (2, 2), image_processor.merge_kernel_size),
            ("pad_input", True, image_processor.pad_input),
        ):
            if ours != theirs:
                raise CheckpointError(
                    f"preprocessor_config.json says {name} = {theirs}, and only {ours} is "
                    "supported with this config.json."
                )
        return Padded(vision, image_processor)

    def image_text(self, config, image, token):
        """Returns the placeholder between the marks of an image."""
        return f"<|media_start|>image<|media_content|>{image}<|media_end|>"

    def letters(self, config):
        """Returns letter lengths; see `Family.letters`."""
        vision = _vision(config)
        return {
            "decoder": decoder_letters(config),
            "vision": tower_letters(vision) | dict(p=vision.position_side, q=vision.position_side),
            "projector": merger_letters(vision),
        }


def _vision(config: VLMConfig) -> NativeVitConfig:
    return cast(NativeVitConfig, config.vision)


FAMILY = KimiVL()
