"""Base class of cutters, which turn an image into groups of patches and slots of image tokens."""

import dataclasses
import functools
from typing import Protocol

import numpy as np
import PIL.Image


@dataclasses.dataclass(frozen=True)
class Layout:
    """The place of each patch of an image in its groups, and of each image token among features.

    `windows.window_layout` has an example.

    Attributes:
        index_gu: int32 [groups, patches in a group] index of the patch in the image processor's
            order; -1 where padded.
        positions_gu2: int32 [groups, patches, 2] row and column of the patch; 0 where padded.
        slots_m: int32 [image tokens] the place of each image token among the features of the
            groups.
    """

    index_gu: np.ndarray
    positions_gu2: np.ndarray
    slots_m: np.ndarray


@dataclasses.dataclass(frozen=True)
class Extent:
    """Token grid, groups and slots of an image, computed from its size alone.

    Attributes:
        grid: rows and columns of image tokens.
        groups: groups of patches that it fills.
        slots_m: int32 [image tokens] feature of each image token among this image's features; -1
            for a learned newline, -2 for a learned separator.
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


class Cutter(Protocol):
    """Cuts an image into groups of patches, the way a vision tower wants them.

    Attributes:
        group_multiple: groups are padded to buckets that are multiples of it.
        patches_per_group, slots_per_group: patches and features of a group.
        patch_features: numbers in a patch.
    """

    group_multiple: int
    patches_per_group: int
    slots_per_group: int
    patch_features: int

    def among(self, images: int) -> "Cutter":
        """Returns the cutter for a sample of so many images; some cut many images coarser."""
        return self

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Returns the largest width and height that an image is resized to before it is cut."""
        ...

    def extent(self, width: int, height: int) -> Extent:
        """Returns the extent of an image of this size; raises ValueError if it cannot be cut."""
        ...

    def regions(self, width: int, height: int) -> np.ndarray | None:
        """Returns what each image token covers, [tokens, 4]: left, top, right, bottom.

        They are shares of the picture, outside 0 to 1 where a token covers padding; NaN for learned
        tokens. None where tokens are one grid, which positions or their number tell.
        """
        return None

    def __call__(self, image: PIL.Image.Image) -> Patches:
        """Resizes, normalises and cuts up one image; raises ValueError where that is impossible."""
        ...


@functools.lru_cache(maxsize=64)
def row_major(rows: int, cols: int) -> Layout:
    """Returns the layout of an image in one group, row by row, a token a patch."""
    count = rows * cols
    positions = np.indices((rows, cols), np.int32).reshape(2, -1).T[None]
    layout = Layout(
        np.arange(count, dtype=np.int32)[None], positions, np.arange(count, dtype=np.int32)
    )
    for array in (layout.index_gu, layout.positions_gu2, layout.slots_m):
        array.flags.writeable = False  # shared by every image of this size
    return layout


def grid_regions(
    rows: int, cols: int, box: tuple[float, float, float, float] = (0, 0, 1, 1)
) -> np.ndarray:
    """Returns the cells of a grid over a box, row by row, [rows * cols, 4].

    grid_regions(1, 2) is [[0, 0, .5, 1], [.5, 0, 1, 1]].
    """
    left, top, right, bottom = box
    x, y = np.linspace(left, right, cols + 1), np.linspace(top, bottom, rows + 1)
    row, col = np.mgrid[:rows, :cols].reshape(2, -1)
    return np.stack([x[col], y[row], x[col + 1], y[row + 1]], axis=1)


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Returns an image in RGB, transparency laid over white as transformers 5.21 lays it."""
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    above = image.convert("RGBA")
    white = PIL.Image.new("RGBA", above.size, "white")
    return PIL.Image.alpha_composite(white, above).convert("RGB")
