"""From selected modes to a low-rank change of one head: the edit itself, or a matched control.

Every control answers the objection "any change of this size would do". They are matched in
different quantities, so the report of a head carries the control's rank, energy and norms beside
those of the edit it stands for.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from vlm_jax.edits.qk.factor import HeadFactors
from vlm_jax.edits.qk.modes import DEAD, KeyMap, Modes
from vlm_jax.edits.qk.spec import QKEdit
from vlm_jax.errors import EditError


@dataclasses.dataclass(frozen=True)
class HeadEdit:
    """The change of one head's queries, `dQ = -a columns left^T` in basis coordinates.

    Attributes:
        columns: [H, R] head-space columns.
        left: [b, R] coordinates of the directions that queries lose.
        modes: indices of the modes acted on; empty where random frames replace them.
        temperature: (p, q) of a uniform rescaling `Q' = c Q` with c^2 = 1 - (2 a p - a^2 q), which
            stands in for the low-rank change; or None.
        matched: whether the control could match what it promises.
    """

    columns: np.ndarray
    left: np.ndarray
    modes: np.ndarray
    temperature: tuple[float, float] | None = None
    matched: bool = True


@dataclasses.dataclass(frozen=True)
class Product:
    """The query-key product of one head in basis coordinates: `core = r_q r_kw^T`."""

    r_q: np.ndarray
    r_kw: np.ndarray
    core: np.ndarray

    @classmethod
    def of(cls, head: HeadFactors, metric_hh: np.ndarray) -> Product:
        """The product with `metric_hh` between queries and keys."""
        r_kw = head.r_k @ metric_hh.T
        return cls(head.r_q, r_kw, head.r_q @ r_kw.T)

    @property
    def energy(self) -> float:
        """The squared Frobenius norm."""
        return float(np.sum(self.core**2))

    def removed(self, edit: HeadEdit, strength: float) -> np.ndarray:
        """What the edit takes away from the core at `strength`."""
        if edit.temperature is not None:
            return (1 - temperature(edit.temperature, strength)) * self.core
        return strength * (edit.left @ (edit.columns.T @ self.r_kw.T))


def temperature(law: tuple[float, float], strength: float) -> float:
    """The factor c of the queries at `strength`: it removes the energy that the edit removes."""
    p, q = law
    return float(np.sqrt(max(1 - (2 * strength * p - strength**2 * q), 0.0)))


def haar_frame(rng: np.random.Generator, dims: int, count: int) -> np.ndarray:
    """[dims, count] orthonormal columns, uniformly distributed."""
    frame, upper = np.linalg.qr(rng.standard_normal((dims, count)))
    return frame * np.where(np.diag(upper) < 0, -1.0, 1.0)


def base_edit(modes: Modes, chosen: np.ndarray, spec: QKEdit) -> HeadEdit:
    """The edit itself: the chosen modes, with the soft filter if there is one."""
    columns = modes.columns[:, chosen]
    if spec.soft is not None and chosen.size:
        relative = (modes.values[chosen] / modes.values[0]) ** 2
        columns = columns * (spec.soft * relative / (1 + spec.soft * relative))
    return HeadEdit(columns, modes.left[:, chosen], chosen)


def mapped_back(
    base: HeadEdit, edit: HeadEdit, product: Product, spec: QKEdit
) -> tuple[HeadEdit, HeadEdit]:
    """An edit and its control as `spec.map_back` realises them.

    A pseudo-inverse of the keys also deletes, whatever the strength, what queries hold beside the
    keys' span; another strength therefore needs another edit.
    """
    strength = spec.realised_strength
    if spec.map_back != "pinv" or not strength:
        return base, edit
    _, values, turn = np.linalg.svd(product.r_kw)
    dead = turn[int(np.sum(values > DEAD * values[0])) :].T
    if not dead.size:
        return base, edit

    def whole(one: HeadEdit) -> HeadEdit:
        if one.temperature is not None:
            return one
        kept = one.columns - dead @ (dead.T @ one.columns)
        columns = np.concatenate([kept, dead / strength], axis=1)
        left = np.concatenate([one.left, product.r_q @ dead], axis=1)
        return dataclasses.replace(one, columns=columns, left=left)

    done = whole(base)
    return done, done if edit is base else whole(edit)


def controlled_edit(
    edit: HeadEdit,
    modes: Modes,
    product: Product,
    key_map: KeyMap,
    spec: QKEdit,
    rng: np.random.Generator,
    where: str,
) -> HeadEdit:
    """The control that stands in for `edit`; `edit` itself where it is not a matter of modes.

    Raises:
        EditError: the head has too few modes for the control.
    """
    make = {
        "R1": _random_modes,
        "R2": _random_frame,
        "R3": _left_scrambled,
        "R4": _energy_matched,
        "R5": _isospectral,
        "C1": _uniform_temperature,
        "C3": _weakest_modes,
    }.get(spec.control)
    if make is None or not edit.modes.size:
        return edit
    return make(_Setting(edit, modes, product, key_map, spec, rng, where))


@dataclasses.dataclass(frozen=True)
class _Setting:
    edit: HeadEdit
    modes: Modes
    product: Product
    key_map: KeyMap
    spec: QKEdit
    rng: np.random.Generator
    where: str

    @property
    def count(self) -> int:
        return self.edit.modes.size

    def others(self) -> np.ndarray:
        """Returns the modes that the edit leaves alone, weakest last, at least as many as it takes.

        Raises:
            EditError: fewer are left than it takes.
        """
        rest = np.setdiff1d(np.arange(self.modes.rank), self.edit.modes)
        rest = rest[: rest.size - rest.size % self.modes.step]
        if rest.size < self.count:
            raise EditError(
                f"{self.where}: control {self.spec.control} needs {self.count} modes beside the "
                f"edited ones, but only {rest.size} of {self.modes.rank} are left; lower k."
            )
        return rest

    def of_modes(self, chosen: np.ndarray) -> HeadEdit:
        return HeadEdit(self.modes.columns[:, chosen], self.modes.left[:, chosen], chosen)

    def span(self) -> np.ndarray:
        """[b, m] the left space that random frames are drawn from: that of all modes."""
        return self.modes.left[:, : self.modes.rank]


def _random_modes(at: _Setting) -> HeadEdit:
    steps = at.others().reshape(-1, at.modes.step)
    drawn = at.rng.choice(len(steps), at.count // at.modes.step, replace=False)
    return at.of_modes(np.sort(steps[drawn].ravel()))


def _random_frame(at: _Setting) -> HeadEdit:
    span = at.span()
    frame = haar_frame(at.rng, span.shape[1], at.count)
    columns = at.modes.columns[:, : span.shape[1]] @ frame
    return HeadEdit(columns, span @ frame, np.zeros(0, np.int64))


def _left_scrambled(at: _Setting) -> HeadEdit:
    span = at.span()
    left = span @ haar_frame(at.rng, span.shape[1], at.count)
    return HeadEdit(at.edit.columns, left, at.edit.modes)


def _energy_matched(at: _Setting) -> HeadEdit:
    squares = at.modes.values**2
    target = float(squares[at.edit.modes].sum())
    order = at.rng.permutation(at.others().reshape(-1, at.modes.step)).ravel()
    reached = np.cumsum(squares[order])
    needed = int(np.searchsorted(reached, target)) + 1
    needed = min(-(-needed // at.modes.step) * at.modes.step, order.size)
    chosen = np.sort(order[:needed])
    scale = float(np.sqrt(target / squares[chosen].sum()))
    strength = at.spec.realised_strength
    # Beyond removal a mode would come back with its sign flipped: not the suppression it controls.
    admissible = strength <= 0 or scale * strength <= 1
    scale = scale if admissible else 1 / strength
    drawn = at.of_modes(chosen)
    return dataclasses.replace(drawn, columns=drawn.columns * scale, matched=admissible)


def _isospectral(at: _Setting) -> HeadEdit:
    span = at.span()
    right_span = at.modes.right[:, : at.modes.rank]
    left = span @ haar_frame(at.rng, span.shape[1], at.count)
    right = right_span @ haar_frame(at.rng, span.shape[1], at.count)
    values = np.linalg.norm(at.product.r_kw @ at.edit.columns, axis=0)
    columns = at.key_map.columns(right * values)
    realised = np.linalg.norm(at.product.r_kw @ columns)
    matched = bool(np.isclose(realised, np.linalg.norm(values), rtol=1e-6))
    return HeadEdit(columns, left, np.zeros(0, np.int64), matched=matched)


def _uniform_temperature(at: _Setting) -> HeadEdit:
    change = at.product.removed(at.edit, 1.0)
    p = float(np.sum(change * at.product.core)) / at.product.energy
    q = float(np.sum(change**2)) / at.product.energy
    empty = np.zeros((at.edit.columns.shape[0], 0)), np.zeros((at.edit.left.shape[0], 0))
    return HeadEdit(*empty, np.zeros(0, np.int64), temperature=(p, q))


def _weakest_modes(at: _Setting) -> HeadEdit:
    return at.of_modes(at.others()[-at.count :])
