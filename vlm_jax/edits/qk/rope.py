"""Rotary position embedding as head-space matrices.

The logit of query position i and key position j is `x_i^T Wq^T R(j - i) Wk x_j` with R orthogonal,
so the product that is edited is the one at offset 0. Offsets here are query minus key, positive for
a key in the past.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from vlm_jax.errors import EditError

IMAGE_GRID = (24, 24)
TEXT_TOKENS = (0, 64)


@dataclasses.dataclass(frozen=True)
class Rope:
    """A rotation table and the offsets of interest.

    Attributes:
        inv_freq_f: [F] radians a position of each frequency; pair f is (f, f + F) (half-split), 2F
            <= head_dim; further head dims do not rotate.
        offsets_oa: [O, A] query position minus key position, A = 1 for ordinary positions, 3 for
            (time, row, column).
        axis_f: [F] which of the A axes drives a frequency; zeros where A is 1.
        weights_o: [O] non-negative weights of the offsets in the averaged rotation; equal if None.

    Raises:
        EditError: shapes disagree or weights do not sum to a positive number.
    """

    inv_freq_f: np.ndarray
    offsets_oa: np.ndarray
    axis_f: np.ndarray | None = None
    weights_o: np.ndarray | None = None

    def __post_init__(self):
        freq = np.asarray(self.inv_freq_f, np.float64)
        offsets = np.asarray(self.offsets_oa, np.float64)
        if offsets.ndim == 1:
            offsets = offsets[:, None]
        axis = (
            np.zeros(freq.shape, np.int64)
            if self.axis_f is None
            else np.asarray(self.axis_f, np.int64)
        )
        count = offsets.shape[0] if offsets.ndim == 2 else 0
        weights = (
            np.ones(count) if self.weights_o is None else np.asarray(self.weights_o, np.float64)
        )
        if freq.ndim != 1 or axis.shape != freq.shape:
            raise EditError(
                f"inv_freq_f {freq.shape} and axis_f {axis.shape} must be vectors of one length."
            )
        if not count:
            raise EditError(
                "offsets_oa holds no offset; give at least one query-minus-key distance."
            )
        if axis.size and (axis.min() < 0 or axis.max() >= offsets.shape[1]):
            raise EditError(
                f"axis_f names axis {int(axis.max())}, but offsets_oa has {offsets.shape[1]} "
                "columns; "
                "m-rope offsets are (time, row, column) triples."
            )
        if weights.shape != (count,) or (weights < 0).any() or not weights.sum() > 0:
            raise EditError(f"weights_o must be {count} non-negative numbers with a positive sum.")
        for name, value in (
            ("inv_freq_f", freq),
            ("offsets_oa", offsets),
            ("axis_f", axis),
            ("weights_o", weights),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def of_image(
        cls,
        inv_freq_f: np.ndarray,
        axes: Sequence[int] | None = None,
        grid: tuple[int, int] = IMAGE_GRID,
        tokens: Sequence[int] = TEXT_TOKENS,
    ) -> Rope:
        """The offsets at which text after an image sees it: its corners and its centre.

        Args:
            inv_freq_f: radians a position of each frequency.
            axes: for each frequency whether it follows time (0), row (1) or column (2) with m-rope
                (arXiv 2409.12191, section 2.1), where text goes on behind the image's longer side;
                None where image tokens count up row by row like words.
            grid: rows and columns of the image's tokens.
            tokens: which of the text's tokens look, counted from the image's end: by default the
                first, and the 64th after it, about where a caption ends.
        """
        rows, cols = grid
        corners = [(r, c) for r in (0, rows - 1) for c in (0, cols - 1)]
        seen = np.array([*corners, (rows // 2, cols // 2)])
        after = np.asarray(tokens)[:, None]
        if axes is None:
            offsets = after + rows * cols - (seen @ [cols, 1])
            return cls(inv_freq_f, offsets.reshape(-1, 1))
        behind = after[..., None] + max(rows, cols)
        triples = behind - np.concatenate([np.zeros((len(seen), 1), int), seen], axis=1)
        return cls(inv_freq_f, triples.reshape(-1, 3), np.asarray(axes))

    def rotations(self, head_dim: int) -> np.ndarray:
        """[O, H, H] float64: R(key - query) of every offset.

        Raises:
            EditError: the table has more than head_dim / 2 frequencies.
        """
        angles = -self._offsets()[:, self._axis()] * np.asarray(self.inv_freq_f)
        return _blocks(np.cos(angles), np.sin(angles), head_dim)

    def mean_rotation(self, head_dim: int) -> np.ndarray:
        """[H, H] float64: the weighted mean of the rotations (no longer orthogonal)."""
        angles = -self._offsets()[:, self._axis()] * np.asarray(self.inv_freq_f)
        weights = np.asarray(self.weights_o)
        share = weights / weights.sum()
        rotation = _blocks(
            (share @ np.cos(angles))[None], (share @ np.sin(angles))[None], head_dim
        )[0]
        free = np.arange(2 * angles.shape[1], head_dim)
        rotation[free, free] = 1.0
        return rotation

    def _offsets(self) -> np.ndarray:
        return np.asarray(self.offsets_oa)

    def _axis(self) -> np.ndarray:
        return np.asarray(self.axis_f)


def _blocks(cos_of: np.ndarray, sin_of: np.ndarray, head_dim: int) -> np.ndarray:
    count, half = cos_of.shape
    if 2 * half > head_dim:
        raise EditError(
            f"inv_freq_f has {half} frequencies, but a head of {head_dim} dims has room for "
            f"{head_dim // 2}."
        )
    rotation = np.tile(np.eye(head_dim), (count, 1, 1))
    low = np.arange(half)
    high = low + half
    rotation[:, low, low] = cos_of
    rotation[:, high, high] = cos_of
    rotation[:, low, high] = -sin_of
    rotation[:, high, low] = sin_of
    return rotation
