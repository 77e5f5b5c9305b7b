"""A user's bounds on what an image becomes: tiles of its grid, pixels that it is resized to."""

import copy
import dataclasses
from typing import Any

from vlm_jax.config import DynamicTilesConfig, VLMConfig
from vlm_jax.errors import ConfigError
from vlm_jax.families import Family
from vlm_jax.settings import whole


def with_tiles(config: VLMConfig, most: int) -> VLMConfig:
    """Returns a config whose images have at most `most` tiles; 0 leaves it as it is.

    Raises:
        ConfigError: the model has no grid of tiles, or fewer are asked for than it has at least.
    """
    if not most:
        return config
    tiles = config.tiles
    if not isinstance(tiles, DynamicTilesConfig):
        raise ConfigError(
            f"max_tiles={most} is for models that cut images into a grid of tiles (InternVL), not "
            f"for {config.family}; leave it 0."
        )
    most = whole("max_tiles", most, low=tiles.fewest, high=tiles.most)
    return dataclasses.replace(config, tiles=dataclasses.replace(tiles, most=most))


def with_pixels(family: Family, image_processor: Any, least: int, most: int) -> Any:
    """Returns an image processor that resizes images to `least` to `most` pixels.

    Args:
        family: of the model.
        image_processor: of the folder.
        least, most: pixels; 0 leaves the image processor's own bound.

    Raises:
        ConfigError: images of the family are not resized within bounds, or least > most.
    """
    least = whole("min_pixels", least, low=0)
    most = whole("max_pixels", most, low=0)
    if not least and not most:
        return image_processor
    if not family.bounds_pixels:
        raise ConfigError(
            "min_pixels and max_pixels are for models that take images of any shape (Qwen2.5-VL, "
            f"Qwen3-VL), not for {family.name}; leave them 0."
        )
    size = dict(image_processor.size)
    least, most = least or size["shortest_edge"], most or size["longest_edge"]
    if least > most:
        raise ConfigError(
            f"min_pixels={least} is more than max_pixels={most}; no image can have both."
        )
    bounded = copy.copy(image_processor)
    bounded.size = {**size, "shortest_edge": least, "longest_edge": most}
    return bounded
