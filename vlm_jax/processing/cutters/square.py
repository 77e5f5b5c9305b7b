"""Square images in one group each."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image

from vlm_jax.config import VitConfig
from vlm_jax.errors import CheckpointError
from vlm_jax.processing.cutters.base import Cutter, Extent, Patches, row_major

if TYPE_CHECKING:
    from transformers import BaseImageProcessor


class Square(Cutter):
    """Square images in one group each, their patches row by row.

    Args:
        config: the tower.
        image_processor: makes images of its size.
        slots: image tokens of an image, where a Q-Former makes them; the tower's by default.
        background: colour that images are made square with before all else; None keeps them.

    Raises:
        CheckpointError: the image processor does not make images of the tower's size.
    """

    group_multiple = 1

    def __init__(
        self,
        config: VitConfig,
        image_processor: "BaseImageProcessor",
        slots: int | None = None,
        background: tuple[int, int, int] | None = None,
    ):
        self.config, self.image_processor = config, image_processor
        self.patches_per_group = config.num_patches
        self.slots_per_group = slots or config.tokens_per_image
        self.patch_features = config.num_channels * config.patch_size**2
        self.side = config.image_size // config.patch_size
        self._background = background
        self._grid = (1, slots) if slots else (self.side, self.side)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Returns the largest width and height that an image has on its way to patches."""
        if self._background is not None:
            width = height = max(width, height)
        return largest_size(self.image_processor, width, height)

    def extent(self, width: int, height: int) -> Extent:
        """Returns what an image of a size becomes."""
        return Extent(self._grid, 1, np.arange(self.slots_per_group, dtype=np.int32))

    def __call__(self, image: PIL.Image.Image) -> Patches:
        """Resizes, normalises and cuts up one image; raises ValueError where that is impossible."""
        if self._background is not None:
            image = pad_to_square(image, self._background)
        pixels = self.image_processor(images=[image], return_tensors="np")["pixel_values"]
        config = self.config
        expected = (1, config.num_channels, config.image_size, config.image_size)
        if pixels.shape != expected:
            raise CheckpointError(
                f"preprocessor_config.json makes images of shape {pixels.shape[1:]} but the vision "
                f"tower of config.json takes {expected[1:]}; correct its size and crop_size."
            )
        side, patch = self.side, config.patch_size
        # An image size that is not a multiple of the patch loses its last pixels, as a
        # convolution with that stride loses them.
        chw = pixels[0, :, : side * patch, : side * patch]
        cells = chw.reshape(config.num_channels, side, patch, side, patch)
        patches = cells.transpose(1, 3, 0, 2, 4).reshape(side * side, self.patch_features)
        return Patches(
            patches_pe=patches.astype(np.float32, copy=False),
            index_gu=row_major(side, side).index_gu,
            positions_gu2=row_major(side, side).positions_gu2,
        )


def pad_to_square(image: PIL.Image.Image, colour: tuple[int, int, int]) -> PIL.Image.Image:
    """Returns an image in the middle of a square of a colour; odd rests go to right and bottom."""
    side = max(image.size)
    square = PIL.Image.new("RGB", (side, side), colour)
    square.paste(image.convert("RGB"), ((side - image.width) // 2, (side - image.height) // 2))
    return square


def largest_size(processor: Any, width: int, height: int) -> tuple[int, int]:
    """Returns the largest width and height that an image has in an image processor.

    Before it is cropped, a picture may be far larger than what is left of it: a shortest edge of
    336 makes 336 x 100,800,000 of a line of 1 x 300,000.

    Args:
        processor: pads to a square, resizes and crops, in this order, as its settings say.
        width, height: of the image.
    """
    sizes = [(width, height)]
    if getattr(processor, "do_pad", False):
        sizes.append((max(width, height), max(width, height)))
    if getattr(processor, "do_resize", True):
        width, height = sizes[-1]
        size = processor.size
        if size.get("shortest_edge"):
            scale = size["shortest_edge"] / min(width, height)
            if size.get("longest_edge"):
                scale = min(scale, size["longest_edge"] / max(width, height))
            sizes.append((math.ceil(width * scale), math.ceil(height * scale)))
        else:
            wide = size.get("width") or size.get("max_width") or width
            sizes.append((wide, size.get("height") or size.get("max_height") or height))
    if getattr(processor, "do_center_crop", False):  # pads where the image is smaller
        crop = processor.crop_size
        sizes.append((max(sizes[-1][0], crop["width"]), max(sizes[-1][1], crop["height"])))
    return max(sizes, key=lambda one: one[0] * one[1])
