"""Images of any size, padded to whole merge units."""

from typing import Any

import numpy as np
import PIL.Image

from vlm_jax.config import NativeVitConfig
from vlm_jax.processing.cutters.base import Cutter, Extent, Patches, grid_regions, to_rgb
from vlm_jax.processing.cutters.windows import RUN, run_layout

MOST_PATCHES = 512
"""Patches along a side that the tower's rotary positions are made for."""


class Padded(Cutter):
    """Images in runs of merge units, black right and below up to whole units (MoonViT).

    An image of more patches than the limit is made smaller first, so that it has about as many:
    the limit counts whole patches before padding.

    Args:
        config: of the tower.
        settings: with `in_token_limit`, `image_mean` and `image_std`.
    """

    group_multiple = 4

    def __init__(self, config: NativeVitConfig, settings: Any):
        self.config, self._settings = config, settings
        self.slots_per_group = RUN
        self.patches_per_group = RUN * config.merge_size**2
        self.patch_features = config.num_channels * config.patch_size**2

    def _scaled(self, width: int, height: int) -> tuple[int, int]:
        patch, limit = self.config.patch_size, self._settings.in_token_limit
        patches = (width // patch) * (height // patch)
        if patches <= limit:
            return width, height
        scale = (limit / patches) ** 0.5
        return max(1, int(width * scale)), max(1, int(height * scale))

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Returns the padded width and height.

        Raises:
            ValueError: a side has more patches than there are positions.
        """
        unit = self.config.patch_size * self.config.merge_size
        wide, high = (-(-side // unit) * unit for side in self._scaled(width, height))
        longest = max(wide, high) // self.config.patch_size
        if longest >= MOST_PATCHES:
            raise ValueError(
                f"a side is {longest} patches long, and the tower takes fewer than {MOST_PATCHES}; "
                "give a less narrow image"
            )
        return wide, high

    def extent(self, width: int, height: int) -> Extent:
        """Returns what an image of a size becomes; raises ValueError as `resized`."""
        wide, high = (side // self.config.patch_size for side in self.resized(width, height))
        merge = self.config.merge_size
        layout = run_layout(high, wide, merge)
        return Extent((high // merge, wide // merge), len(layout.index_gu), layout.slots_m)

    def regions(self, width: int, height: int) -> np.ndarray:
        """Returns what each image token covers, padding right and below."""
        rows, cols = self.extent(width, height).grid
        (wide, high), scaled = self.resized(width, height), self._scaled(width, height)
        return grid_regions(rows, cols, (0, 0, wide / scaled[0], high / scaled[1]))

    def __call__(self, image: PIL.Image.Image) -> Patches:
        """Resizes, pads, normalises and cuts up one image."""
        config, settings = self.config, self._settings
        image = to_rgb(image)
        wide, high = self.resized(*image.size)
        scaled = self._scaled(*image.size)
        if scaled != image.size:
            image = image.resize(scaled, PIL.Image.Resampling.BICUBIC)
        levels = np.zeros((high, wide, 3), np.float32)
        levels[: image.height, : image.width] = np.asarray(image, np.float32)
        mean = np.asarray(settings.image_mean, np.float32)
        pixels = (levels / 255 - mean) / np.asarray(settings.image_std, np.float32)
        patch, merge = config.patch_size, config.merge_size
        rows, cols = high // patch // merge, wide // patch // merge
        # Patches of a unit together, units row by row, each flattened channel by channel.
        cells = pixels.reshape(rows, merge, patch, cols, merge, patch, 3)
        patches = cells.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, self.patch_features)
        layout = run_layout(rows * merge, cols * merge, merge)
        return Patches(np.ascontiguousarray(patches), layout.index_gu, layout.positions_gu2)
