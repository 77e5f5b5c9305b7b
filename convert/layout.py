"""Moving a tensor between the checkpoint's dims and ours: einops patterns, and fast transposes.

A tensor is moved strip by strip, so that beside the whole array no second one is held.
"""

import math
import re
from collections.abc import Mapping

import einops
import numpy as np

_BLOCK = 256  # rows and columns of a transposed block: two of them fit a second-level cache


def groups(side: str) -> list[list[str]]:
    """Splits one side of a pattern into its dims: "(n h) d" -> [["n", "h"], ["d"]]."""
    return [term.strip("()").split() for term in re.findall(r"\([^)]*\)|\S+", side)]


def shape(side: str, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """The shape that one side of a pattern describes."""
    return tuple(math.prod(sizes[letter] for letter in group) for group in groups(side))


def disk_rows(array: np.ndarray, pattern: str, sizes: Mapping[str, int]) -> np.ndarray:
    """An array of ours, seen in the order of a checkpoint's bytes; nothing is copied.

    Args:
        array: contiguous, of the right side's shape; of integers, because copies of ml_dtypes go
            element by element.
        pattern: "left -> right"; every letter stands on both sides.
        sizes: length of every letter that stands inside parentheses.

    Returns:
        A matrix whose elements, row by row, are the left side's.

    Raises:
        ValueError: the pattern is no transposed matrix.
    """
    left, right = pattern.split("->")
    letters = [letter for group in groups(left) for letter in group]
    inside = {letter for group in groups(right) if len(group) > 1 for letter in group}
    view = einops.rearrange(
        array,
        f"{right} -> {' '.join(letters)}",
        **{letter: sizes[letter] for letter in sorted(inside)},
    )
    for split in range(1, view.ndim):
        try:
            return view.reshape(math.prod(view.shape[:split]), -1, copy=False)
        except ValueError:
            continue
    if view.ndim < 2:
        return view.reshape(1, -1)
    raise ValueError(f"the pattern {pattern!r} moves more than one block of dims.")


def copy_rows(target: np.ndarray, source: np.ndarray) -> None:
    """Copies a matrix, by blocks where one side is transposed (three times as fast)."""
    if target.flags.c_contiguous and source.flags.c_contiguous:
        target[...] = source
        return
    for row in range(0, target.shape[0], _BLOCK):
        for column in range(0, target.shape[1], _BLOCK):
            block = np.s_[row : row + _BLOCK, column : column + _BLOCK]
            target[block] = source[block]


def bits(array: np.ndarray) -> np.ndarray:
    """The same memory as unsigned integers of the same width."""
    return array.view(np.dtype(f"u{array.dtype.itemsize}"))
