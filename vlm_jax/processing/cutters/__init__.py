"""Images to groups of patches, one way of cutting a file. Pillow and NumPy only."""

from vlm_jax.processing.cutters.base import Cutter, Extent, Layout, Patches, row_major
from vlm_jax.processing.cutters.padded import Padded
from vlm_jax.processing.cutters.square import Square
from vlm_jax.processing.cutters.tiles import AnyRes, DynamicTiles, ViewTiles
from vlm_jax.processing.cutters.windows import Runs, Windows, run_layout, window_layout

__all__ = [
    "AnyRes",
    "Cutter",
    "DynamicTiles",
    "Extent",
    "Layout",
    "Padded",
    "Patches",
    "Runs",
    "Square",
    "ViewTiles",
    "Windows",
    "row_major",
    "run_layout",
    "window_layout",
]
