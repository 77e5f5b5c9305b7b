"""Moving a tensor between the checkpoint's dims and ours: einops patterns, and fast transposes.

A tensor is moved strip by strip, so that beside the whole array no second one is held.
"""

import math
import re
from collections.abc import Mapping, Sequence

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


def letter_slices(
    pattern: str, sizes: Mapping[str, int], index: Sequence[slice]
) -> dict[str, slice] | None:
    """Returns which part of each letter a part of our array has; None where that is not known.

    "(n h) d -> d n h" with d 4, n 2, h 3 and the index [:, 1:2, :] is {d: 0:4, n: 1:2, h: 0:3}. Of
    a dim of ours that is made of several letters only the whole can be told.

    Args:
        pattern: "left -> right".
        sizes: length of every letter.
        index: a slice with start and stop of each dim on the right.
    """
    found: dict[str, slice] = {}
    for letters, part in zip(groups(pattern.split("->")[1]), index, strict=True):
        if len(letters) == 1:
            found[letters[0]] = part
        elif part == slice(0, math.prod(sizes[letter] for letter in letters)):
            found |= {letter: slice(0, sizes[letter]) for letter in letters}
        else:
            return None
    return found


def runs(
    pattern: str, sizes: Mapping[str, int], parts: Mapping[str, slice]
) -> tuple[np.ndarray, int]:
    """Returns where a part of a checkpoint's tensor lies among its elements, row by row.

    "d (n h) -> n h d" with d 4, n 2, h 3 and n 1:2 is every second run of three: ([3, 9, 15, 21],
    3).

    Args:
        pattern: "left -> right".
        sizes: length of every letter.
        parts: which part of each letter.

    Returns:
        The first element of each run, and the elements of a run.
    """
    letters = [letter for group in groups(pattern.split("->")[0]) for letter in group]
    starts, length, step = np.zeros(1, np.int64), 1, 1
    for letter in reversed(letters):
        part, size = parts[letter], sizes[letter]
        count = part.stop - part.start
        if length == step:  # all that is behind this letter belongs to it
            starts, length = starts + part.start * step, count * length
        else:
            own = np.arange(part.start, part.stop, dtype=np.int64) * step
            starts = (own[:, None] + starts).reshape(-1)
        step *= size
    return starts, length


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
