"""Which modes an edit acts on: the strongest of the product, of a channel or of an alignment class.

A mode is a left coordinate vector (a residual-stream direction that queries lose), a strength, and
the head-space column that makes `dQ = -a column left^T` change the product by `-a` times that mode.
"""

from __future__ import annotations

import dataclasses
import logging

import numpy as np

from vlm_jax.edits.qk.factor import HeadFactors
from vlm_jax.edits.qk.spec import DEFAULT_CHANNEL_RCOND, QKEdit
from vlm_jax.errors import EditError

# A cut between modes closer than this share of the strongest is a matter of rounding.
_SMALLEST_GAP = 1e-3
DEAD = 1e-10
"""Share of the keys' largest singular value below which a direction is rounding, its inverse noise.
"""

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Modes:
    """Candidate modes of one head, strongest first.

    Attributes:
        left: [b, m] orthonormal coordinates of query-side directions.
        right: [b, m] orthonormal coordinates of key-side directions (signed for negative
            eigenvalues).
        values: [m] strengths.
        columns: [H, m] head-space columns of the map-back at strength one.
        alignment: [m] cosines u.v between the two directions.
        exact: whether the map-back realises a mode exactly.
        step: modes that only come together (2 in the antisymmetric channel).
    """

    left: np.ndarray
    right: np.ndarray
    values: np.ndarray
    columns: np.ndarray
    alignment: np.ndarray
    exact: bool
    step: int = 1

    @property
    def rank(self) -> int:
        """The number of modes above rounding."""
        floor = 64 * self.values.size * np.finfo(np.float64).eps * max(self.values[0], 1e-300)
        return int(np.sum(self.values > floor))


@dataclasses.dataclass(frozen=True)
class KeyMap:
    """Least-squares map of a product `left (right values)^T` to head-space columns, keys fixed.

    Attributes:
        r_kw: [b, H] coordinates of the keys as the product sees them.
        rcond: ridge relative to the largest singular value; 0 takes the pseudo-inverse.
    """

    r_kw: np.ndarray
    rcond: float

    def columns(self, right: np.ndarray) -> np.ndarray:
        """[H, m] columns c_j that minimise ||right_j - r_kw c_j||^2 + lam ||c_j||^2."""
        basis, values, turn = np.linalg.svd(self.r_kw, full_matrices=False)
        ridge = (self.rcond * values[0]) ** 2 if values.size else 0.0
        alive = values > DEAD * values[0]
        inverse = np.zeros_like(values)
        inverse[alive] = values[alive] / (values[alive] ** 2 + ridge)
        return turn.T @ (inverse[:, None] * (basis.T @ right))


def alignment_of(head: HeadFactors) -> np.ndarray:
    """[m] cosines u.v of the singular modes; NaN where the overlap was not asked for."""
    if head.cross is None:
        return np.full(head.values.shape, np.nan)
    return np.sum(head.left * (head.cross @ head.right), axis=0)


def plain_modes(head: HeadFactors) -> Modes:
    """The modes of the product; exact for any keys, as dQ = -a (Q U) U^T needs no inverse."""
    return Modes(
        left=head.left,
        right=head.right,
        values=head.values,
        columns=head.r_q.T @ head.left,
        alignment=alignment_of(head),
        exact=True,
    )


def channel_modes(head: HeadFactors, spec: QKEdit, key_map: KeyMap, channel: str) -> Modes:
    """Returns the modes of the symmetric or antisymmetric part, mapped back by least squares.

    Raises:
        EditError: the factors are not in a basis that queries and keys have in common.
    """
    if head.symmetric is None or head.antisymmetric is None:
        raise EditError("channels need factors in the joint basis.")
    if channel == "symmetric":
        eigenvalues, vectors = head.symmetric
        order = np.argsort(-np.abs(eigenvalues), kind="stable")
        if spec.positive_only:
            order = order[eigenvalues[order] > 0]
        values, sign = np.abs(eigenvalues[order]), np.sign(eigenvalues[order])
        left, right, step = vectors[:, order], vectors[:, order] * sign, 1
    else:
        left, values, right = head.antisymmetric
        step = 2
        # An odd dimension leaves one null direction without a partner.
        keep = values.size - values.size % 2
        left, values, right = left[:, :keep], values[:keep], right[:, :keep]
    alignment = np.einsum("bm,bm->m", left, right)
    columns = key_map.columns(right * values)
    return Modes(left, right, values, columns, alignment, exact=False, step=step)


def candidate_modes(head: HeadFactors, spec: QKEdit, key_map: KeyMap) -> Modes:
    """The modes that the method of `spec` chooses from."""
    return channel_modes(head, spec, key_map, spec.method) if spec.joint else plain_modes(head)


def channel_rcond(spec: QKEdit) -> float:
    """The ridge of channel edits: the spec's, or the default that tames ill-conditioned keys."""
    return DEFAULT_CHANNEL_RCOND if spec.rcond is None else spec.rcond


def candidates(modes: Modes, spec: QKEdit) -> np.ndarray:
    """Indices, strongest first, that the method may select from."""
    every = np.arange(modes.rank)
    if spec.method != "alignment":
        return every
    cosine = modes.alignment[: modes.rank]
    member = {
        "content": np.abs(cosine) >= spec.alignment_min,
        "attract": cosine >= spec.alignment_min,
        "repel": cosine <= -spec.alignment_min,
        "directional": np.abs(cosine) < spec.alignment_min,
    }[spec.alignment_class]
    return every[member]


def count_for_energy(modes: Modes, pool: np.ndarray, energy: float) -> int:
    """Returns how many of a head's modes it takes to reach a share of their energy.

    Singular values 3, 2, 1 have energies 9, 4, 1: energy=0.9 takes two modes, (9 + 4) / 14 = 0.93.

    Args:
        modes: of the head.
        pool: [m] indices of the modes that count, the strongest first.
        energy: the share of the pool's energy to reach, in (0, 1].
    """
    if not pool.size:
        return 0
    share = np.cumsum(modes.values[pool] ** 2) / np.sum(modes.values[pool] ** 2)
    return _whole_steps(int(np.searchsorted(share, energy * (1 - 1e-12))) + 1, modes, pool)


def shared_count(layer: list[tuple[Modes, np.ndarray]], energy: float) -> int:
    """Returns how many modes of every head it takes until the heads' mean share reaches `energy`.

    Heads whose first modes hold 0.9 and 0.5 of their energy: one mode gives 0.7 in the mean.

    Args:
        layer: modes and pool of each head, see `count_for_energy`.
        energy: the share to reach, in (0, 1].
    """
    longest = max((pool.size for _, pool in layer), default=0)
    curves = []
    for modes, pool in layer:
        squares = np.zeros(longest)
        squares[: pool.size] = modes.values[pool] ** 2
        total = squares.sum()
        curves.append(np.cumsum(squares) / total if total else np.ones(longest))
    mean = np.mean(curves, axis=0) if longest else np.zeros(0)
    return min(int(np.searchsorted(mean, energy * (1 - 1e-12))) + 1, longest)


def select(modes: Modes, pool: np.ndarray, count: int, spec: QKEdit, where: str) -> np.ndarray:
    """Returns the indices of the first `count` modes of the pool, or of a few more or fewer.

    Modes of equal strength are chosen together, as which of them comes first is chance: strengths
    5, 3, 3, 1 and count=2 give the first three; 5, 3, 3, 3, 1 and count=2 the first one.

    Args:
        modes: of the head.
        pool: [m] indices of the modes to choose from, the strongest first.
        count: how many.
        spec: the edit; of the method `alignment` there may be fewer than `count`.
        where: the head, for errors.

    Raises:
        EditError: the head has fewer modes than asked for.
    """
    if spec.method == "alignment":
        if pool.size < count:
            _log.info("%s: %d of %d modes are %s", where, pool.size, count, spec.alignment_class)
        return pool[:count]
    if count > pool.size:
        raise EditError(
            f"{where}: k={count} is above the rank {pool.size} of its query-key product; lower k "
            "or "
            "leave the head out with heads=..."
        )
    moved = _clear_cut(modes, count)
    if moved != count:
        _log.info("%s: modes %d and %d tie; k moved to %d", where, count, count + 1, moved)
    return pool[:moved]


def _clear_cut(modes: Modes, count: int) -> int:
    """The nearest cut with a gap behind it, a longer one in a draw; `count` if none is near."""
    values = modes.values[: modes.rank]

    def clear(cut: int) -> bool:
        return cut == values.size or values[cut - 1] - values[cut] >= _SMALLEST_GAP * values[0]

    # A flat spectrum has no cut at all: moving far would edit a different number of modes.
    for distance in range(0, max(count // 2, modes.step) + 1, modes.step):
        for cut in (count + distance, count - distance):
            if modes.step <= cut <= values.size and clear(cut):
                return cut
    _log.info("no clear cut near mode %d", count)
    return count


def _whole_steps(count: int, modes: Modes, pool: np.ndarray) -> int:
    return min(-(-count // modes.step) * modes.step, pool.size)
