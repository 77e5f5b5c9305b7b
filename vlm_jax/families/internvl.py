"""InternVL 3 and 3.5 in the layout of transformers: InternViT, pixel shuffle, Qwen2 or Qwen3."""

import re
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from vlm_jax.config import DynamicTilesConfig, VitConfig, VLMConfig
from vlm_jax.errors import ConfigError
from vlm_jax.families.base import Family, Row
from vlm_jax.families.decoders import decoder, decoder_letters, decoder_rows, read_text
from vlm_jax.families.fields import (
    Count,
    Depth,
    Epsilon,
    Ids,
    Index,
    Object,
    Pair,
    activation,
    divide,
    ids,
    one_of,
    read,
    square,
)
from vlm_jax.families.vit import vit_letters, vit_of


class Vision(msgspec.Struct, kw_only=True):
    """Fields of an InternViT, with transformers' defaults."""

    hidden_size: Count = 1024
    intermediate_size: Count = 4096
    num_hidden_layers: Depth = 24
    num_attention_heads: Count = 16
    num_channels: Count = 3
    image_size: Pair = 448
    patch_size: Pair = 14
    hidden_act: str = "gelu"
    layer_norm_eps: Epsilon = 1e-6
    norm_type: str = "layer_norm"
    attention_bias: bool = False
    use_qk_norm: bool = False
    use_absolute_position_embeddings: bool = True
    use_mean_pooling: bool = True
    use_mask_token: bool = False


class _Root(msgspec.Struct, kw_only=True):
    text_config: Object = {}
    vision_config: Object = {}
    image_token_id: Index = 151667
    downsample_ratio: float = 0.5
    projector_hidden_act: str = "gelu"
    vision_feature_layer: int | list[int] = -1
    vision_feature_select_strategy: str = "default"
    eos_token_id: Ids = None


MERGE = 2


def intern_vit(vision: Vision, where: str, *, fused_qkv: bool) -> VitConfig:
    """Returns an InternViT.

    Raises:
        ConfigError: it is one of another kind, such as the 6B's with RMS norms.
    """
    one_of(vision.norm_type, ("layer_norm",), "norm_type", where)
    one_of(vision.use_qk_norm, (False,), "use_qk_norm", where)
    one_of(
        vision.use_absolute_position_embeddings, (True,), "use_absolute_position_embeddings", where
    )
    # Mean pooling means that the last block's output is not normed.
    one_of(vision.use_mean_pooling, (True,), "use_mean_pooling", where)
    one_of(vision.use_mask_token, (False,), "use_mask_token", where)
    divide(vision.hidden_size, vision.num_attention_heads, where)
    size, patch = (
        square(getattr(vision, name), name, where) for name in ("image_size", "patch_size")
    )
    if size % (patch * MERGE):
        raise ConfigError(
            f"{where}: image_size {size} must be a multiple of {MERGE} x patch_size = "
            f"{patch * MERGE}."
        )
    return VitConfig(
        hidden_size=vision.hidden_size,
        intermediate_size=vision.intermediate_size,
        num_layers=vision.num_hidden_layers,
        num_heads=vision.num_attention_heads,
        num_channels=vision.num_channels,
        patch_size=patch,
        image_size=size,
        hidden_act=activation(vision.hidden_act, "hidden_act", where),
        layer_norm_eps=vision.layer_norm_eps,
        patch_bias=True,
        fused_qkv=fused_qkv,
        biased="qkv" if vision.attention_bias else "",
        layer_scale=True,
        merge_size=MERGE,
    )


def _qkv_bias(config: VLMConfig, layer: int) -> bool:
    return bool(vit_of(config).biased)


_OURS = "vision/layers/{i}/"


def tower_rows(tower: str, names: Mapping[str, str], qkv: tuple[Row, ...]) -> tuple[Row, ...]:
    """Returns the rows of an InternViT.

    Args:
        tower: what its names begin with.
        names: what a layout calls its parts.
        qkv: the rows of queries, keys and values.
    """
    at = tower + names["layer"] + ".{i}."
    part = lambda name: tower + "embeddings." + names[name]
    return (
        Row(part("class"), "vision/class_d", "a b d -> (a b d)"),
        Row(part("patch") + ".weight", "vision/patch_de", "d c y x -> d (c y x)"),
        Row(part("patch") + ".bias", "vision/patch_bias_d", "d -> d"),
        Row(part("positions"), "vision/positions_pd", "a p d -> (a p) d"),
        *qkv,
        Row(at + names["out"] + ".weight", _OURS + "wo_nhd", "d (n h) -> n h d"),
        Row(at + names["out"] + ".bias", _OURS + "bo_d", "d -> d"),
        Row(at + names["scale1"], _OURS + "scale1_d", "d -> d"),
        Row(at + names["scale2"], _OURS + "scale2_d", "d -> d"),
        Row(at + names["norm1"] + ".weight", _OURS + "norm1_scale_d", "d -> d"),
        Row(at + names["norm1"] + ".bias", _OURS + "norm1_bias_d", "d -> d"),
        Row(at + names["norm2"] + ".weight", _OURS + "norm2_scale_d", "d -> d"),
        Row(at + names["norm2"] + ".bias", _OURS + "norm2_bias_d", "d -> d"),
        Row(at + "mlp.fc1.weight", _OURS + "w_up_fd", "f d -> f d"),
        Row(at + "mlp.fc1.bias", _OURS + "b_up_f", "f -> f"),
        Row(at + "mlp.fc2.weight", _OURS + "w_down_df", "d f -> d f"),
        Row(at + "mlp.fc2.bias", _OURS + "b_down_d", "d -> d"),
    )


def projector_rows(norm: str, first: str, second: str) -> tuple[Row, ...]:
    """Returns the rows of a pixel-shuffle projector, by the names of its three parts."""
    return (
        Row(norm + ".weight", "projector/norm_scale_e", "e -> e"),
        Row(norm + ".bias", "projector/norm_bias_e", "e -> e"),
        Row(first + ".weight", "projector/w1_fe", "f e -> f e"),
        Row(first + ".bias", "projector/b1_f", "f -> f"),
        Row(second + ".weight", "projector/w2_df", "d f -> d f"),
        Row(second + ".bias", "projector/b2_d", "d -> d"),
    )


_TEXT = "language_model.model."
_TOWER = "vision_tower."
_JOIN = "multi_modal_projector."
_ATTENTION = _TOWER + "encoder.layer.{i}.attention."


class InternVL(Family):
    """InternVL 3 and 3.5, as converted for transformers.

    Image tokens are the context tokens of all tiles, the thumbnail's last: it shows every region
    once more. The marks around them are text (the first of them system, as all before an image).
    """

    name = "internvl"
    model_types = ("internvl",)
    line = "InternVL 3 and 3.5: InternViT, dynamic tiles, pixel shuffle, Qwen2 or Qwen3 decoder"
    image_token = "<IMG_CONTEXT>"
    spellings = (
        (r"^model\.vision_tower\.", _TOWER),
        (r"^model\.multi_modal_projector\.", _JOIN),
        (r"^model\.language_model\.(model\.)?", _TEXT),
        (r"^lm_head\.", "language_model.lm_head."),
    )
    rows = (
        *tower_rows(
            _TOWER,
            {
                "class": "cls_token",
                "patch": "patch_embeddings.projection",
                "positions": "position_embeddings",
                "layer": "encoder.layer",
                "out": "attention.projection_layer",
                "scale1": "lambda_1",
                "scale2": "lambda_2",
                "norm1": "layernorm_before",
                "norm2": "layernorm_after",
            },
            (
                Row(_ATTENTION + "q_proj.weight", _OURS + "wq_dnh", "(n h) d -> d n h"),
                Row(_ATTENTION + "k_proj.weight", _OURS + "wk_dnh", "(n h) d -> d n h"),
                Row(_ATTENTION + "v_proj.weight", _OURS + "wv_dnh", "(n h) d -> d n h"),
                Row(_ATTENTION + "q_proj.bias", _OURS + "bq_nh", "(n h) -> n h", when=_qkv_bias),
                Row(_ATTENTION + "k_proj.bias", _OURS + "bk_nh", "(n h) -> n h", when=_qkv_bias),
                Row(_ATTENTION + "v_proj.bias", _OURS + "bv_nh", "(n h) -> n h", when=_qkv_bias),
            ),
        ),
        *projector_rows(_JOIN + "layer_norm", _JOIN + "linear_1", _JOIN + "linear_2"),
        *decoder_rows(_TEXT, "language_model.lm_head.weight"),
    )
    buffers = (r"\.rotary_emb\.inv_freq$",)

    def read(self, root: Mapping[str, Any], where: str) -> VLMConfig:
        """Reads `config.json`; see `Family.read`."""
        fields = read(root, _Root, where)
        one_of(fields.downsample_ratio, (0.5,), "downsample_ratio", where)
        one_of(fields.vision_feature_layer, (-1, [-1]), "vision_feature_layer", where)
        one_of(
            fields.vision_feature_select_strategy,
            ("default",),
            "vision_feature_select_strategy",
            where,
        )
        text = read_text(fields.text_config, f"{where}: text_config", default="qwen2")
        vision = read(fields.vision_config, Vision, f"{where}: vision_config")
        return VLMConfig(
            family=self.name,
            # Folders say "tied" at the root of models that are not: only the text's word counts.
            decoder=decoder(text, f"{where}: text_config", text.tie_word_embeddings),
            vision=intern_vit(vision, f"{where}: vision_config", fused_qkv=False),
            projector_act=activation(fields.projector_hidden_act, "projector_hidden_act", where),
            image_token_id=fields.image_token_id,
            eos_ids=ids(fields.eos_token_id if "eos_token_id" in root else text.eos_token_id),
            tiles=DynamicTilesConfig(),
        )

    def tower(self, config, rngs):
        """Returns an InternViT."""
        from vlm_jax.models.vit import Vit

        return Vit(vit_of(config), rngs)

    def connector(self, config, rngs):
        """Returns a pixel shuffle with a norm and two linear maps."""
        from vlm_jax.models.pixel_shuffle import PixelShuffle

        vision, width = vit_of(config), config.decoder.hidden_size
        return PixelShuffle(
            rngs, vision.hidden_size, vision.merge_size, width, config.projector_act
        )

    def image_grid(self, config):
        """Returns one row of as many tokens as an image of 640 x 480 has: 3328 as released."""
        return 1, self.cutter(config, None).extent(640, 480).tokens

    def cutter(self, config, image_processor):
        """Returns a cutter into a grid of tiles and a thumbnail."""
        from vlm_jax.processing.cutters import DynamicTiles

        tiles = cast(DynamicTilesConfig, config.tiles)
        return DynamicTiles(vit_of(config), tiles, image_processor)

    def image_text(self, config, image, token):
        """Returns the placeholder and a new line; `written` puts the marks around it."""
        return image + "\n"

    def written(self, text, image):
        """Puts the marks of an image around each placeholder; older templates write `<image>`."""
        text = text.replace("<image>", image)
        bare = rf"(?<!<img>){re.escape(image)}(?!</img>)"
        return re.sub(bare, f"<img>{image}</img>", text)

    def letters(self, config):
        """Returns letter lengths; see `Family.letters`."""
        vision, width = vit_of(config), config.decoder.hidden_size
        return {
            "decoder": decoder_letters(config),
            "vision": vit_letters(vision),
            "projector": dict(e=vision.hidden_size * vision.merge_size**2, f=width, d=width),
        }


FAMILY = InternVL()
