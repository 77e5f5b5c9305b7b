"""Images of any size in attention windows of one static size.

The reference permutes a packed sequence into window order and back; here a window is a padded
group, and image tokens point into the groups, so nothing is ever permuted back.
"""

import functools
from typing import TYPE_CHECKING, cast

import numpy as np
import PIL.Image

from vlm_jax.config import NativeVitConfig, QwenVisionConfig
from vlm_jax.errors import CheckpointError
from vlm_jax.processing.cutters.base import Cutter, Extent, Layout, Patches

if TYPE_CHECKING:
    from transformers import BaseImageProcessor


@functools.lru_cache(maxsize=1024)
def window_layout(rows: int, cols: int, merge: int, window: int) -> Layout:
    """Returns the windows of a grid of `rows` x `cols` patches, a token a merge unit.

    The image processor gives merge units row by row, the patches of a unit together.

    Windows and the units in them run row by row. A window at the right or lower edge keeps its
    full size; the units beyond the edge are padding, in place. Three units in windows of 2 x 2:

        window 0: units 0 1 - -    window 1: units 2 - - -    slots_m [0 1 4]

    Args:
        rows, cols: patches along each side, multiples of `merge`.
        merge: patches along a side of a merge unit.
        window: merge units along a side of a window.
    """
    high, wide = rows // merge, cols // merge
    windows_high, windows_wide = -(-high // window), -(-wide // window)
    units = np.full((windows_high * window, windows_wide * window), -1, np.int32)
    units[:high, :wide] = np.arange(high * wide, dtype=np.int32).reshape(high, wide)
    units_gs = (
        units.reshape(windows_high, window, windows_wide, window)
        .transpose(0, 2, 1, 3)
        .reshape(-1, window * window)
    )
    slots = np.empty(high * wide, np.int32)
    flat = units_gs.ravel()
    slots[flat[flat >= 0]] = np.flatnonzero(flat >= 0)

    inside = np.indices((merge, merge), np.int32).reshape(2, -1).T
    corner = np.stack(np.divmod(np.maximum(units_gs, 0), wide), -1) * merge
    real = np.repeat(units_gs[..., None] >= 0, merge * merge, -1)
    index = np.where(real, units_gs[..., None] * merge**2 + np.arange(merge**2), -1)
    positions = np.where(real[..., None], corner[:, :, None] + inside, 0)
    groups = len(units_gs)
    layout = Layout(
        index.reshape(groups, -1).astype(np.int32),
        positions.reshape(groups, -1, 2).astype(np.int32),
        slots,
    )
    for array in (layout.index_gu, layout.positions_gu2, layout.slots_m):
        array.flags.writeable = False  # shared by every image of this size
    return layout


class Windows(Cutter):
    """Images of any size in attention windows.

    Raises:
        CheckpointError: the image processor cuts patches other than the tower's.
    """

    # Images give window counts of any size; a small image has one to four.
    group_multiple = 4

    def __init__(
        self, config: QwenVisionConfig | NativeVitConfig, image_processor: "BaseImageProcessor"
    ):
        self.config, self.image_processor = config, image_processor
        self.slots_per_group = self._units()
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

    def _units(self) -> int:
        """Returns the merge units of a group."""
        return cast(QwenVisionConfig, self.config).window_units ** 2

    def _layout(self, rows: int, cols: int) -> Layout:
        """Returns the groups of an image of `rows` x `cols` patches."""
        config = cast(QwenVisionConfig, self.config)
        return window_layout(rows, cols, config.merge_size, config.window_units)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Returns the width and height that an image is cut at.

        Raises:
            ValueError: the image processor does not take such a shape.
        """
        if self._limits is None:
            return width, height
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

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
        layout = self._layout(rows, cols)
        return Extent((height // unit, width // unit), len(layout.index_gu), layout.slots_m)

    def __call__(self, image: PIL.Image.Image) -> Patches:
        """Resizes, normalises and cuts up one image; raises ValueError where that is impossible."""
        made = self.image_processor(images=[image], return_tensors="np")
        flat, (_, rows, cols) = made["pixel_values"], made["image_grid_thw"][0].tolist()
        layout = self._layout(rows, cols)
        return Patches(
            patches_pe=flat.astype(np.float32, copy=False),
            index_gu=layout.index_gu,
            positions_gu2=layout.positions_gu2,
        )


RUN = 16
"""Merge units of a run: 64 patches of the usual merge size."""


@functools.lru_cache(maxsize=1024)
def run_layout(rows: int, cols: int, merge: int) -> Layout:
    """Returns the merge units of a grid of patches, row by row, in runs of `RUN`.

    The last run is padded at its end. Units of runs 16 of a grid of 3 x 7 units: 0 to 15, then 16
    to 20 and eleven padded ones.

    Args:
        rows, cols: patches along each side, multiples of `merge`.
        merge: patches along a side of a merge unit.
    """
    wide = cols // merge
    units = rows // merge * wide
    runs = -(-units // RUN)
    units_gs = np.arange(runs * RUN, dtype=np.int32).reshape(runs, RUN)
    real = np.repeat(units_gs < units, merge * merge, axis=1)
    index = np.arange(runs * RUN * merge * merge, dtype=np.int32).reshape(runs, -1)
    inside = np.indices((merge, merge), np.int32).reshape(2, -1).T
    corner = np.stack(np.divmod(units_gs, wide), -1) * merge
    positions = (corner[:, :, None] + inside).reshape(runs, -1, 2)
    layout = Layout(
        np.where(real, index, -1).astype(np.int32),
        np.where(real[..., None], positions, 0).astype(np.int32),
        np.arange(units, dtype=np.int32),
    )
    for array in (layout.index_gu, layout.positions_gu2, layout.slots_m):
        array.flags.writeable = False  # shared by every image of this size
    return layout


class Runs(Windows):
    """Images of any size in runs of merge units, for towers without windows.

    A group has nothing to do with attention here, which is over a whole image: groups of one size
    waste least where images of many sizes are padded to one.
    """

    def _units(self) -> int:
        return RUN

    def _layout(self, rows: int, cols: int) -> Layout:
        return run_layout(rows, cols, self.config.merge_size)
