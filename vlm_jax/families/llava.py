"""LLaVA-1.5: CLIP or SigLIP, a two-layer projector, a Llama-like decoder."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import msgspec

from vlm_jax.config import VitConfig, VLMConfig
from vlm_jax.errors import ConfigError
from vlm_jax.families.base import Family, Row
from vlm_jax.families.decoders import decoder, decoder_letters, decoder_rows, read_text
from vlm_jax.families.fields import (
    Ids,
    Index,
    Layer,
    Object,
    activation,
    ids,
    one_of,
    read,
)
from vlm_jax.families.vit import read_tower, vit_letters, vit_of, vit_rows

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


def tower_of(fields: Mapping[str, Any], root: Root, where: str) -> VitConfig:
    """Returns the tower of a LLaVA: CLIP or SigLIP.

    Raises:
        ConfigError: a field of its features cannot be; names it.
    """
    layer = root.vision_feature_layer
    layers = tuple(layer) if isinstance(layer, list) else (layer,)
    strategy = one_of(
        root.vision_feature_select_strategy,
        ("default", "full"),
        "vision_feature_select_strategy",
        where,
    )
    there = f"{where}: vision_config"
    tower = read_tower(fields, there, feature_layers=layers)
    if not tower.class_token and strategy == "default":
        raise ConfigError(
            f"{where}: vision_feature_select_strategy must be 'full' of a tower without a class "
            "token: 'default' leaves its first patch out."
        )
    for layer in layers:
        if not -tower.num_layers - 1 <= layer <= tower.num_layers:
            raise ConfigError(
                f"{there}: vision_feature_layer {layer} is outside its {tower.num_layers} layers."
            )
    if not layers:
        raise ConfigError(f"{there}: vision_feature_layer must name at least one layer.")
    keep = tower.class_token and strategy == "full"
    return dataclasses.replace(tower, keep_class_token=keep)


def _projector_bias(config: VLMConfig, layer: int) -> bool:
    return config.projector_bias


_TEXT = "language_model.model."
_CLIP = "vision_tower.vision_model."
_JOIN = "multi_modal_projector."


class Llava(Family):
    """LLaVA-1.5 and its like."""

    name = "llava"
    model_types = ("llava",)
    line = "LLaVA-1.5: CLIP or SigLIP, two linear maps, a Llama, Mistral or Qwen2 decoder"
    spellings = (
        (r"^(model\.)?vision_tower\.(vision_model\.)?", _CLIP),
        (r"^model\.multi_modal_projector\.", _JOIN),
        (r"^model\.language_model\.(model\.)?", _TEXT),
        (r"^lm_head\.", "language_model.lm_head."),
    )
    saved = ((r"^vision_tower\.vision_model\.", "vision_tower."),)
    rows = (
        *vit_rows(_CLIP),
        Row(_JOIN + "linear_1.weight", "projector/w1_fe", "f e -> f e"),
        Row(_JOIN + "linear_1.bias", "projector/b1_f", "f -> f", when=_projector_bias),
        Row(_JOIN + "linear_2.weight", "projector/w2_df", "d f -> d f"),
        Row(_JOIN + "linear_2.bias", "projector/b2_d", "d -> d", when=_projector_bias),
        *decoder_rows(_TEXT, "language_model.lm_head.weight"),
    )
    # SigLIP's pooling head makes one vector of an image, which nothing here reads.
    buffers = (
        r"\.rotary_emb\.inv_freq$",
        r"\.embeddings\.position_ids$",
        r"^(model\.)?vision_tower\.(vision_model\.)?head\.",
    )

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
            vision=tower_of(fields.vision_config or TOWER, fields, where),
            projector_act=activation(fields.projector_hidden_act, "projector_hidden_act", where),
            projector_bias=fields.multimodal_projector_bias,
            image_token_id=fields.image_token_index if image is None else image,
            eos_ids=ids(fields.eos_token_id if "eos_token_id" in root else text.eos_token_id),
        )

    def tower(self, config, rngs):
        """Returns a CLIP or SigLIP tower."""
        from vlm_jax.models.vit import Vit

        return Vit(vit_of(config), rngs)

    def connector(self, config, rngs):
        """Returns two linear maps with an activation between."""
        return self._projector(config, rngs)

    def _projector(self, config: VLMConfig, rngs: Any, newline: bool = False):
        from vlm_jax.models.projector import Projector

        vision, width = vit_of(config), config.decoder.hidden_size
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

        return Square(vit_of(config), image_processor)

    def layout(self, config, rows, cols):
        """Returns one group, row by row."""
        from vlm_jax.processing.cutters import row_major

        return row_major(rows, cols)

    def image_text(self, config, image, token):
        """Returns the placeholder and a new line."""
        return image + "\n"

    def letters(self, config):
        """Returns letter lengths; see `Family.letters`."""
        vision, width = vit_of(config), config.decoder.hidden_size
        return {
            "decoder": decoder_letters(config),
            "vision": vit_letters(vision),
            "projector": dict(e=vision.hidden_size * len(vision.feature_layers), f=width, d=width),
        }


FAMILY = Llava()
