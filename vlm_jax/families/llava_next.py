"""LLaVA-NeXT (v1.6): LLaVA whose images are read whole and in tiles, with a learned newline."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, cast

import msgspec

from vlm_jax.config import AnyResConfig, VLMConfig
from vlm_jax.errors import ConfigError
from vlm_jax.families.base import Row
from vlm_jax.families.fields import Count, read
from vlm_jax.families.llava import Llava
from vlm_jax.families.vit import vit_of

Pinpoint = tuple[Count, Count]


class _Root(msgspec.Struct, kw_only=True):
    # Heights and widths, in this order.
    image_grid_pinpoints: Annotated[list[Pinpoint], msgspec.Meta(min_length=1, max_length=1024)] = (
        msgspec.field(
            default_factory=lambda: [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]
        )
    )
    vision_feature_select_strategy: str = "default"


class LlavaNext(Llava):
    """LLaVA-NeXT in the llava-hf layout, with a Vicuna, Mistral or Yi decoder.

    All image tokens, newlines included, are image tokens to every method, as in the reference.
    Where resolutions tie, the first in height-width order wins (transformers), which for images
    of at most 336 x 336 is another than the original code's.
    """

    name = "llava_next"
    model_types = ("llava_next",)
    line = "LLaVA-NeXT (v1.6): LLaVA with tiles of any resolution and a learned newline"
    spellings = ((r"^(model\.)?image_newline$", "image_newline"), *Llava.spellings)
    rows = (*Llava.rows, Row("image_newline", "projector/newline_d", "d -> d"))

    def read(self, root: Mapping[str, Any], where: str) -> VLMConfig:
        """Reads `config.json`; see `Family.read`."""
        fields = read(root, _Root, where)
        if fields.vision_feature_select_strategy != "default":
            raise ConfigError(
                f"{where}: vision_feature_select_strategy must be 'default' for tiles, not "
                f"{fields.vision_feature_select_strategy!r}."
            )
        tower = root.get("vision_config")
        if isinstance(tower, Mapping) and tower.get("model_type") == "siglip_vision_model":
            raise ConfigError(f"{where}: tiles of a SigLIP tower are not supported (CLIP's are).")
        config = super().read(root, where)
        if not vit_of(config).class_token:
            raise ConfigError(
                f"{where}: tiles need a tower with a class token, which SigLIP has not."
            )
        size = vit_of(config).image_size
        for high, wide in fields.image_grid_pinpoints:
            if high % size or wide % size or max(high, wide) > 64 * size:
                raise ConfigError(
                    f"{where}: image_grid_pinpoints {[high, wide]} must be multiples of image_size "
                    f"{size}, at most 64 times it."
                )
        tiles = AnyResConfig(tuple(fields.image_grid_pinpoints))
        return dataclasses.replace(config, tiles=tiles)

    def connector(self, config, rngs):
        """Returns two linear maps with an activation between, and a newline."""
        return self._projector(config, rngs, newline=True)

    def image_grid(self, config):
        """Returns one row of as many tokens as an image of 640 x 480 has: 2340 as released."""
        from vlm_jax.processing.cutters.tiles import any_res_tokens

        tiles = cast(AnyResConfig, config.tiles)
        return 1, len(any_res_tokens(640, 480, vit_of(config), tiles)[1])

    def cutter(self, config, image_processor):
        """Returns a cutter into tiles of any resolution."""
        from vlm_jax.processing.cutters import AnyRes

        return AnyRes(vit_of(config), cast(AnyResConfig, config.tiles), image_processor)


FAMILY = LlavaNext()
