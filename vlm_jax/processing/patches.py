"""One image cut into groups of patches, the way its vision tower wants them."""

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import PIL.Image
from transformers import BaseImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from vlm_jax.config import ClipVisionConfig, QwenVisionConfig
from vlm_jax.errors import CheckpointError
from vlm_jax.processing.windows import window_layout


@dataclasses.dataclass(frozen=True)
class Extent:
    """What an image becomes, known from its size alone.

    Attributes:
        grid: rows and columns of image tokens.
        groups: groups of patches that it fills.
        slots_m: int32 [image tokens] feature of each image token among this image's features.
    """

    grid: tuple[int, int]
    groups: int
    slots_m: np.ndarray

    @property
    def tokens(self) -> int:
        """Number of image tokens."""
        return len(self.slots_m)


@dataclasses.dataclass(frozen=True)
class Patches:
    """The patches of one image and their groups.

    Attributes:
        patches_pe: float32 [P, C * frames * patch * patch] patches in the image processor's order.
        index_gu: int32 [groups, patches in a group] which of them goes where, -1 where padded.
        positions_gu2: int32 [groups, patches, 2] row and column of each patch.
    """

    patches_pe: np.ndarray
    index_gu: np.ndarray
    positions_gu2: np.ndarray

    @property
    def groups(self) -> int:
        """How many groups this image fills."""
        return len(self.index_gu)

    def fill(self, patches_gue: np.ndarray) -> None:
        """Writes the groups into their place in a batch, zeros where padded."""
        # "clip" lets numpy write straight into the batch; -1 reads patch 0, zeroed just after.
        np.take(self.patches_pe, self.index_gu, axis=0, out=patches_gue, mode="clip")
        patches_gue[self.index_gu < 0] = 0


class Clip:
    """Square images in one group each: a CLIP tower's row-major patches.

    Raises:
        CheckpointError: the image processor does not make images of the tower's size.
    """

    group_multiple = 1

    def __init__(self, config: ClipVisionConfig, image_processor: BaseImageProcessor):
        self.config, self.image_processor = config, image_processor
        self.patches_per_group = config.num_patches
        self.slots_per_group = config.tokens_per_image
        self.patch_features = config.num_channels * config.patch_size**2
        self.side = config.image_size // config.patch_size

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Returns the largest width and height that an image has on its way to patches."""
        return largest_size(self.image_processor, width, height)

    def extent(self, width: int, height: int) -> Extent:
        """Returns what an image of a size becomes."""
        return Extent((self.side, self.side), 1, np.arange(self.slots_per_group, dtype=np.int32))

    def __call__(self, image: PIL.Image.Image) -> Patches:
        """Resizes, normalises and cuts up one image; raises ValueError where that is impossible."""
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
            index_gu=np.arange(side * side, dtype=np.int32)[None],
            positions_gu2=_row_major(side)[None],
        )


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


@functools.lru_cache(maxsize=8)
def _row_major(side: int) -> np.ndarray:
    return np.indices((side, side), np.int32).reshape(2, -1).T


class Qwen:
    """Images of any size in attention windows: the Qwen2.5-VL tower's groups.

    Raises:
        CheckpointError: the image processor cuts patches other than the tower's.
    """

    # Images give window counts of any size; a small image has one to four.
    group_multiple = 4

    def __init__(self, config: QwenVisionConfig, image_processor: BaseImageProcessor):
        self.config, self.image_processor = config, image_processor
        self.slots_per_group = config.window_units**2
        self.patches_per_group = self.slots_per_group * config.merge_size**2
        self.patch_features = (
            config.num_channels * config.temporal_patch_size * config.patch_size**2
        )
        for name in ("patch_size", "merge_size", "temporal_patch_size"):
            ours, theirs = getattr(config, name), getattr(image_processor, name, None)
            if ours != theirs:
                raise CheckpointError(
                    f"preprocessor_config.json says {name} = {theirs} but the vision tower of "
                    f"config.json has {ours}; they must be equal."
                )
        # Fewest and most pixels of a resized image; None where images keep their size.
        size = getattr(image_processor, "size", {})
        resizes = getattr(image_processor, "do_resize", True)
        self._limits = (size["shortest_edge"], size["longest_edge"]) if resizes else None

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Returns the width and height that an image is cut at.

        Raises:
            ValueError: the image processor does not take such a shape.
        """
        if self._limits is None:
            return width, height
        unit = self.config.patch_size * self.config.merge_size
        height, width = smart_resize(height, width, unit, *self._limits)
        return width, height

    def extent(self, width: int, height: int) -> Extent:
        """Returns what an image of a size becomes.

        Raises:
            ValueError: the image processor does not take such a shape.
        """
        config = self.config
        unit = config.patch_size * config.merge_size
        width, height = self.resized(width, height)
        rows, cols = height // config.patch_size, width // config.patch_size
        layout = window_layout(rows, cols, config.merge_size, config.window_units)
        return Extent((height // unit, width // unit), len(layout.index_gu), layout.slots_m)

    def __call__(self, image: PIL.Image.Image) -> Patches:
        """Resizes, normalises and cuts up one image; raises ValueError where that is impossible."""
        made = self.image_processor(images=[image], return_tensors="np")
        flat, (_, rows, cols) = made["pixel_values"], made["image_grid_thw"][0].tolist()
        layout = window_layout(rows, cols, self.config.merge_size, self.config.window_units)
        return Patches(
            patches_pe=flat.astype(np.float32, copy=False),
            index_gu=layout.index_gu,
            positions_gu2=layout.positions_gu2,
        )
