"""Images cut into square tiles, each a group of its own, beside a view of the whole image."""

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import PIL.ImageOps

from vlm_jax.config import AnyResConfig, DynamicTilesConfig, VitConfig
from vlm_jax.errors import CheckpointError
from vlm_jax.processing.cutters.base import (
    Cutter,
    Extent,
    Patches,
    grid_regions,
    row_major,
    to_rgb,
)

if TYPE_CHECKING:
    from transformers import BaseImageProcessor


def tile_patches(tiles_gchw: np.ndarray, patch: int) -> Patches:
    """Returns the patches of square tiles, a group each, row by row.

    Args:
        tiles_gchw: float32 [G, C, S, S] normalised tiles; S need not be a multiple of the patch:
            the last pixels are left out, as a convolution with that stride leaves them out.
        patch: side of a patch.
    """
    count, channels, side = tiles_gchw.shape[0], tiles_gchw.shape[1], tiles_gchw.shape[2] // patch
    cells = tiles_gchw[:, :, : side * patch, : side * patch]
    cells = cells.reshape(count, channels, side, patch, side, patch)
    patches = cells.transpose(0, 2, 4, 1, 3, 5).reshape(count * side * side, -1)
    layout = row_major(side, side)
    first = np.arange(count, dtype=np.int32)[:, None] * side * side
    return Patches(
        patches_pe=patches.astype(np.float32, copy=False),
        index_gu=first + layout.index_gu,
        positions_gu2=np.repeat(layout.positions_gu2, count, axis=0),
    )


class AnyRes(Cutter):
    """The whole image squashed to a square, and tiles of the image at a resolution that fits it.

    Of the tiles' map of tokens only the part that the image covers is read, row by row, each row
    followed by a learned newline (LLaVA-NeXT; `unpad_image` of transformers): slot -1.

    Example, tiles of 2 x 2 tokens, an image that covers the upper row of a map of 1 x 2 tiles:
    tokens 0 1 2 3 (whole image), 4 5 8 9 (upper rows of both tiles), -1.

    Raises:
        CheckpointError: the image processor makes tiles of another size, or chooses among other
            resolutions than config.json.
    """

    group_multiple = 1

    def __init__(
        self, config: VitConfig, tiles: AnyResConfig, image_processor: "BaseImageProcessor"
    ):
        self.config, self.image_processor = config, image_processor
        self._pinpoints = tiles.pinpoints
        self.patches_per_group = self.slots_per_group = config.num_patches
        self.patch_features = config.num_channels * config.patch_size**2
        theirs = getattr(image_processor, "image_grid_pinpoints", None)
        if theirs is None or tuple(map(tuple, theirs)) != tiles.pinpoints:
            raise CheckpointError(
                f"preprocessor_config.json has image_grid_pinpoints {theirs} but config.json has "
                f"{[list(pair) for pair in tiles.pinpoints]}; they must be equal."
            )

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Returns the width and height of all tiles together."""
        high, wide = _resolution(width, height, self._pinpoints)
        return wide, high

    def extent(self, width: int, height: int) -> Extent:
        """Returns what an image of a size becomes."""
        size = self.config.image_size
        high, wide = _resolution(width, height, self._pinpoints)
        grid, slots = any_res_tokens(width, height, self.config, AnyResConfig(self._pinpoints))
        return Extent(grid, 1 + (high // size) * (wide // size), slots)

    def regions(self, width: int, height: int) -> np.ndarray:
        """Returns what each image token covers: the whole view, then the covered map."""
        side = self.config.image_size // self.config.patch_size
        rows, cols = self.extent(width, height).grid
        return np.concatenate([grid_regions(side, side), _ended(rows, cols - 1)])

    def __call__(self, image: PIL.Image.Image) -> Patches:
        """Resizes, pads, normalises and cuts up one image."""
        made = self.image_processor(images=[image], return_tensors="np")
        tiles, size = np.asarray(made["pixel_values"][0]), self.config.image_size
        if tiles.shape[1:] != (self.config.num_channels, size, size):
            raise CheckpointError(
                f"preprocessor_config.json makes tiles of shape {tiles.shape[1:]} but the vision "
                f"tower of config.json takes {(self.config.num_channels, size, size)}; correct its "
                "size and crop_size."
            )
        return tile_patches(tiles, self.config.patch_size)


def _resolution(width: int, height: int, pinpoints: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Returns height and width of the resolution that wastes least of an image."""
    from transformers.image_processing_utils import select_best_resolution

    return select_best_resolution((height, width), list(pinpoints))


def any_res_tokens(
    width: int, height: int, config: VitConfig, tiles: AnyResConfig
) -> tuple[tuple[int, int], np.ndarray]:
    """Returns what an image of a size becomes under a tower; see `_unpadded`."""
    high, wide = _resolution(width, height, tiles.pinpoints)
    size = config.image_size
    return _unpadded(width, height, high // size, wide // size, size // config.patch_size)


@functools.lru_cache(maxsize=1024)
def _unpadded(
    width: int, height: int, tiles_high: int, tiles_wide: int, side: int
) -> tuple[tuple[int, int], np.ndarray]:
    """Returns the covered map's rows and columns (the newline one of them), and the slots of all
    image tokens: the whole view, then the covered map row by row.

    Args:
        width, height: of the image in pixels.
        tiles_high, tiles_wide: of the map in tiles.
        side: of a tile in tokens.
    """
    rows, cols = side * tiles_high, side * tiles_wide
    top = left = 0
    # In floating point exactly as the reference, whose rounding decides the number of rows.
    if width / height > cols / rows:
        top = (rows - int(round(height * (cols / width), 7))) // 2
    else:
        left = (cols - int(round(width * (rows / height), 7))) // 2
    row, col = np.mgrid[top : rows - top, left : cols - left].astype(np.int32)
    tile = 1 + row // side * tiles_wide + col // side
    slots = tile * side * side + row % side * side + col % side
    newline = np.full((len(slots), 1), -1, np.int32)
    covered = np.concatenate([slots.astype(np.int32), newline], axis=1)
    found = np.concatenate([np.arange(side * side, dtype=np.int32), covered.ravel()])
    found.flags.writeable = False  # shared by every image of this size
    return (covered.shape[0], covered.shape[1]), found


class DynamicTiles(Cutter):
    """A grid of tiles of about the image's shape, and the whole image as the last tile.

    The image is resized to the grid without keeping its aspect (InternVL 1.5, arXiv 2404.16821).
    All that differs between folders is the mean and the deviation of pixels.

    Raises:
        CheckpointError: the image processor makes images of another size than the tower's.
    """

    group_multiple = 1

    def __init__(
        self,
        config: VitConfig,
        tiles: DynamicTilesConfig,
        image_processor: "BaseImageProcessor",
    ):
        self.config, self.image_processor, self._tiles = config, image_processor, tiles
        self.patches_per_group = config.num_patches
        self.slots_per_group = config.tokens_per_image
        self.patch_features = config.num_channels * config.patch_size**2

    def _grid(self, width: int, height: int) -> tuple[int, int]:
        """Returns columns and rows of tiles."""
        side = self.config.image_size
        from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
            get_optimal_tiled_canvas,
        )

        return get_optimal_tiled_canvas(
            (height, width), (side, side), self._tiles.fewest, self._tiles.most
        )

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Returns the width and height of all tiles together."""
        cols, rows = self._grid(width, height)
        return cols * self.config.image_size, rows * self.config.image_size

    def extent(self, width: int, height: int) -> Extent:
        """Returns what an image of a size becomes."""
        cols, rows = self._grid(width, height)
        groups = cols * rows + (self._tiles.thumbnail and cols * rows > 1)
        slots = np.arange(groups * self.slots_per_group, dtype=np.int32)
        return Extent((groups, self.slots_per_group), groups, slots)

    def regions(self, width: int, height: int) -> np.ndarray:
        """Returns what each image token covers, tile by tile."""
        cols, rows = self._grid(width, height)
        side = math.isqrt(self.slots_per_group)
        boxes = [tuple(box) for box in grid_regions(rows, cols)]
        if self.extent(width, height).groups > len(boxes):
            boxes.append((0, 0, 1, 1))  # the thumbnail
        return np.concatenate([grid_regions(side, side, box) for box in boxes])

    def __call__(self, image: PIL.Image.Image) -> Patches:
        """Resizes, cuts and normalises one image."""
        side = self.config.image_size
        cols, rows = self._grid(image.width, image.height)
        image = to_rgb(image)
        resized = image.resize((cols * side, rows * side), PIL.Image.Resampling.BICUBIC)
        tiles = [
            resized.crop((col * side, row * side, (col + 1) * side, (row + 1) * side))
            for row in range(rows)
            for col in range(cols)
        ]
        if self._tiles.thumbnail and len(tiles) > 1:
            tiles.append(image.resize((side, side), PIL.Image.Resampling.BICUBIC))
        options: dict[str, Any] = {"return_tensors": "np"}
        if hasattr(self.image_processor, "crop_to_patches"):
            options["crop_to_patches"] = False  # they are tiles already
        pixels = np.asarray(self.image_processor(images=tiles, **options)["pixel_values"])
        if pixels.shape != (len(tiles), self.config.num_channels, side, side):
            raise CheckpointError(
                f"preprocessor_config.json makes tiles of shape {pixels.shape[1:]} but the vision "
                f"tower of config.json takes {(self.config.num_channels, side, side)}; correct its "
                "size."
            )
        return tile_patches(pixels, self.config.patch_size)


class ViewTiles(Cutter):
    """The whole image padded to a square, and tiles of it padded to a resolution that fits it.

    Tokens are laid out row by row, each row followed by a learned newline (slot -1): first the
    whole view, then a learned separator (slot -2), then the map of all tiles (DeepSeek-VL2, arXiv
    2412.10302). Of samples with more than two images every image has one tile.

    Example, views of 2 x 2 tokens, two tiles side by side: tokens 0 1 -1 2 3 -1, -2, then
    4 5 8 9 -1 6 7 10 11 -1.
    """

    group_multiple = 1

    def __init__(
        self,
        config: VitConfig,
        tiles: AnyResConfig,
        merge: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        tiled: bool = True,
    ):
        self.config, self._tiles, self._merge = config, tiles, merge
        self._mean, self._std, self._tiled = tuple(mean), tuple(std), tiled
        self.patches_per_group = config.num_patches
        side = -(-(config.image_size // config.patch_size) // merge)
        self._side, self.slots_per_group = side, side * side
        self.patch_features = config.num_channels * config.patch_size**2

    def among(self, images: int) -> "ViewTiles":
        """Returns the cutter of the images of a sample with so many."""
        if not self._tiled or images <= MOST_TILED:
            return self
        return self._untiled

    @functools.cached_property
    def _untiled(self) -> "ViewTiles":
        return ViewTiles(self.config, self._tiles, self._merge, self._mean, self._std, tiled=False)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Returns the width and height of all tiles together."""
        if not self._tiled:
            return self.config.image_size, self.config.image_size
        high, wide = _resolution(width, height, self._tiles.pinpoints)
        return wide, high

    def extent(self, width: int, height: int) -> Extent:
        """Returns what an image of a size becomes."""
        wide, high = self.resized(width, height)
        rows, cols = high // self.config.image_size, wide // self.config.image_size
        slots = _views(rows, cols, self._side)
        return Extent((1, len(slots)), 1 + rows * cols, slots)

    def regions(self, width: int, height: int) -> np.ndarray:
        """Returns what each image token covers: both views, padding around the picture."""
        wide, high = self.resized(width, height)
        size, side = self.config.image_size, self._side
        rows, cols = side * (high // size), side * (wide // size)
        whole = _ended(side, side, _padded(width, height, 1, 1))
        separator = np.full((1, 4), np.nan)
        return np.concatenate(
            [whole, separator, _ended(rows, cols, _padded(width, height, wide, high))]
        )

    def __call__(self, image: PIL.Image.Image) -> Patches:
        """Pads, cuts up and normalises one image."""
        size = self.config.image_size
        image = to_rgb(image)
        grey = tuple(int(level * 255) for level in self._mean)
        pad = lambda shape: PIL.ImageOps.pad(image, shape, color=grey)
        whole, wide_high = pad((size, size)), self.resized(*image.size)
        padded = pad(wide_high)
        tiles = [
            padded.crop((left, top, left + size, top + size))
            for top in range(0, wide_high[1], size)
            for left in range(0, wide_high[0], size)
        ]
        levels = np.stack([np.asarray(tile, np.float32) for tile in (whole, *tiles)]) / 255
        mean, std = np.asarray(self._mean, np.float32), np.asarray(self._std, np.float32)
        pixels = (levels - mean) / std
        return tile_patches(pixels.transpose(0, 3, 1, 2), self.config.patch_size)


def _ended(
    rows: int, cols: int, box: tuple[float, float, float, float] = (0, 0, 1, 1)
) -> np.ndarray:
    """Cells of a grid row by row, a learned newline behind each row, [rows * (cols + 1), 4]."""
    cells = grid_regions(rows, cols, box).reshape(rows, cols, 4)
    newline = np.full((rows, 1, 4), np.nan)
    return np.concatenate([cells, newline], axis=1).reshape(-1, 4)


def _padded(width: int, height: int, wide: int, high: int) -> tuple[float, float, float, float]:
    """What a canvas of another shape covers of a picture in its middle, as shares of it.

    A picture of 200 x 100 on a square canvas: (0, -.5, 1, 1.5).
    """
    scale = min(wide / width, high / height)
    x, y = (wide / scale / width - 1) / 2, (high / scale / height - 1) / 2
    return -x, -y, 1 + x, 1 + y


MOST_TILED = 2
"""Images of a sample that are cut into several tiles."""


@functools.lru_cache(maxsize=1024)
def _views(tiles_high: int, tiles_wide: int, side: int) -> np.ndarray:
    """Returns the slots of both views of an image; `side` is that of a tile in tokens."""

    def ended(slots: np.ndarray) -> np.ndarray:
        newline = np.full((len(slots), 1), -1)
        return np.concatenate([slots, newline], axis=1).ravel()

    whole = np.arange(side * side).reshape(side, side)
    row, col = np.mgrid[: tiles_high * side, : tiles_wide * side]
    tile = 1 + row // side * tiles_wide + col // side
    local = tile * side * side + row % side * side + col % side
    found = np.concatenate([ended(whole), [-2], ended(local)]).astype(np.int32)
    found.flags.writeable = False  # shared by every image of this size
    return found
