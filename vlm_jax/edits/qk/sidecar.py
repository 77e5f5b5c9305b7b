"""The change of one layer in low-rank form: applied at any strength, taken back exactly."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from vlm_jax.edits.qk.controls import temperature
from vlm_jax.edits.qk.threads import each
from vlm_jax.errors import EditError

_ROWS = 1024  # of a head at a time: a megabyte in float64
_OPTIONAL = ("bias_er", "temperature_e2", "undo_index", "undo_value", "undo_bias_eh")


@dataclasses.dataclass(frozen=True)
class Sidecar:
    """`Wq' = Wq - a directions^T columns` for the edited heads of one layer.

    Rounding to the weights' dtype loses low bits where a weight grows past a power of two, so the
    few weights that subtraction would not bring back are stored as they were.

    Attributes:
        strength: a of the edit that was made.
        heads_e: [E] edited heads.
        columns_ehr, directions_erd: factors; unused columns are zero.
        bias_er: [E, R] what the change takes from a query bias, or None where biases stay.
        temperature_e2: [E, 2] law of a uniform rescaling that replaces the factors, or None.
        undo_index, undo_value: flat positions in wq_dnh and original values, or None when not kept.
        undo_bias_eh: original biases of the edited heads, or None.
    """

    strength: float
    heads_e: np.ndarray
    columns_ehr: np.ndarray
    directions_erd: np.ndarray
    bias_er: np.ndarray | None = None
    temperature_e2: np.ndarray | None = None
    undo_index: np.ndarray | None = None
    undo_value: np.ndarray | None = None
    undo_bias_eh: np.ndarray | None = None

    def apply(
        self,
        wq_dnh: np.ndarray,
        bq_nh: np.ndarray | None = None,
        *,
        strength: float | None = None,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Edits pristine weights in float64 and rounds once; at strength zero the same bits.

        Args:
            wq_dnh: unedited query weights.
            bq_nh: unedited query biases; needed and changed only where the edit moves biases.
            strength: another strength than the sidecar's own, at most 1.

        Raises:
            EditError: shapes do not fit, the strength is above 1, or a result leaves the dtype's
                range.
        """
        edited, bias, _ = self.apply_measured(wq_dnh, bq_nh, strength=strength)
        return edited, bias

    def apply_measured(
        self,
        wq_dnh: np.ndarray,
        bq_nh: np.ndarray | None = None,
        *,
        strength: float | None = None,
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """Returns what `apply` returns, and [E] ||noise|| / ||dW|| of each head, noise of rounding.

        Raises:
            EditError: the strength is not finite, or more than 1.
        """
        a = self.strength if strength is None else float(strength)
        if not np.isfinite(a) or a > 1:
            raise EditError(f"strength={a!r} must be finite and at most 1.")
        self._check(wq_dnh, bq_nh)
        edited = wq_dnh.copy()
        squares = self._each_head(lambda e: self._change_head(e, wq_dnh, edited, a))
        noise = [(added / size) ** 0.5 if size else 0.0 for size, added in squares]
        return edited, self._changed_bias(bq_nh, a), np.array(noise)

    def revert(
        self, wq_dnh: np.ndarray, bq_nh: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The pristine weights from those edited at the sidecar's own strength, bit for bit.

        Raises:
            EditError: the sidecar was made without its undo record, or shapes do not fit.
        """
        return self.revert_weights(wq_dnh), None if bq_nh is None else self.revert_bias(bq_nh)

    def revert_weights(self, wq_dnh: np.ndarray) -> np.ndarray:
        """Returns what `revert` returns, of the weights alone.

        Raises:
            EditError: the sidecar holds no undo record.
        """
        if self.undo_index is None or self.undo_value is None:
            raise EditError("the sidecar holds no undo record; revert from the source instead.")
        self._check_weights(wq_dnh)
        pristine = np.array(wq_dnh, order="C")
        self._each_head(lambda e: self._restore_head(e, wq_dnh, pristine))
        pristine.reshape(-1)[self.undo_index] = self.undo_value
        return pristine

    def revert_bias(self, bq_nh: np.ndarray) -> np.ndarray:
        """As `revert`, of the biases alone."""
        if self.undo_bias_eh is None:
            return bq_nh
        bias = bq_nh.copy()
        bias[self.heads_e] = self.undo_bias_eh
        return bias

    def recorded(
        self, wq_dnh: np.ndarray, edited_dnh: np.ndarray, bq_nh: np.ndarray | None
    ) -> Sidecar:
        """This sidecar with the record that `revert` needs."""
        restored = edited_dnh.copy()
        self._each_head(lambda e: self._restore_head(e, edited_dnh, restored))
        bits = np.dtype(f"u{wq_dnh.dtype.itemsize}")
        lost = np.flatnonzero(restored.view(bits).reshape(-1) != _bits(wq_dnh, bits))
        kind = np.uint32 if wq_dnh.size < 2**32 else np.uint64
        return dataclasses.replace(
            self,
            undo_index=lost.astype(kind),
            undo_value=np.ascontiguousarray(wq_dnh).reshape(-1)[lost],
            undo_bias_eh=bq_nh[self.heads_e].copy()
            if bq_nh is not None and self.moves_bias
            else None,
        )

    @property
    def moves_bias(self) -> bool:
        """Whether the edit changes query biases."""
        return self.bias_er is not None

    def change(self, e: int, strength: float, rows: slice = slice(None)) -> np.ndarray:
        """[D, H] float64 change of edited head number `e`, for low-rank edits.

        Products are summed one by one in a fixed order, so the same bits come out on every machine.
        """
        directions = self.directions_erd[e][:, rows].astype(np.float64)
        columns = self.columns_ehr[e]
        total = np.zeros((directions.shape[1], columns.shape[0]))
        for r in range(columns.shape[1]):
            column = -strength * columns[:, r].astype(np.float64)
            if column.any():
                total += directions[r, :, None] * column
        return total

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything as named arrays, for storage."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields["strength"] = np.float64(self.strength)
        return {name: np.asarray(v) for name, v in fields.items() if v is not None}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Sidecar:
        """The inverse of `arrays`.

        Raises:
            EditError: an array is missing or unknown.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        missing = known - set(_OPTIONAL) - set(arrays)
        unknown = set(arrays) - known
        if missing or unknown:
            raise EditError(
                f"a sidecar lacks {sorted(missing)} and holds unknown {sorted(unknown)}; the file "
                "belongs to another version or is damaged."
            )
        values = {name: np.asarray(array) for name, array in arrays.items()}
        return cls(**{**values, "strength": float(values["strength"])})

    def _check(self, wq_dnh: np.ndarray, bq_nh: np.ndarray | None):
        self._check_weights(wq_dnh)
        if self.moves_bias and bq_nh is None:
            raise EditError("the edit moves query biases, but no bq_nh was given.")

    def _check_weights(self, wq_dnh: np.ndarray):
        rows, heads, width = wq_dnh.shape
        expected = (self.directions_erd.shape[2], self.columns_ehr.shape[1])
        if (rows, width) != expected or (self.heads_e.size and self.heads_e.max() >= heads):
            raise EditError(
                f"wq_dnh has shape {wq_dnh.shape}, but the sidecar edits heads "
                f"{self.heads_e.tolist()} "
                f"with D, H = {expected}; it belongs to another layer or model."
            )

    def _each_head(self, work: Callable[[int], Any]) -> list:
        return each(work, range(len(self.heads_e)))

    def _change_head(
        self, e: int, source: np.ndarray, target: np.ndarray, a: float
    ) -> tuple[float, float]:
        """Edits one head; returns the squared norms of the change and of its rounding."""
        n = int(self.heads_e[e])
        largest = float(ml_dtypes.finfo(source.dtype).max)
        size = added = 0.0
        for start in range(0, source.shape[0], _ROWS):
            rows = slice(start, start + _ROWS)
            old = source[rows, n]
            wide = old.astype(np.float64)
            change = self._change(e, wide, a, rows)
            exact = wide + change
            if not max(exact.max(), -exact.min()) <= largest:
                raise EditError(
                    f"head {n}: at strength {a} an edited weight leaves the range of "
                    f"{source.dtype}; use a smaller amplification."
                )
            # Adding +0 would turn -0 into +0.
            new = np.where(change == 0, old, exact.astype(source.dtype))
            target[rows, n] = new
            # Not vdot: BLAS threads inside these threads would spin against each other.
            size += float(np.einsum("dh,dh->", change, change))
            exact -= new.astype(np.float64)
            added += float(np.einsum("dh,dh->", exact, exact))
        return size, added

    def _change(self, e: int, wide_dh: np.ndarray, a: float, rows: slice) -> np.ndarray:
        if self.temperature_e2 is None:
            return self.change(e, a, rows)
        return (temperature(tuple(self.temperature_e2[e]), a) - 1) * wide_dh

    def _restore_head(self, e: int, edited: np.ndarray, target: np.ndarray):
        n = int(self.heads_e[e])
        for start in range(0, edited.shape[0], _ROWS):
            rows = slice(start, start + _ROWS)
            wide = edited[rows, n].astype(np.float64)
            if self.temperature_e2 is None:
                back = wide - self.change(e, self.strength, rows)
            else:
                factor = temperature(tuple(self.temperature_e2[e]), self.strength)
                back = wide / factor if factor else wide
            target[rows, n] = back.astype(edited.dtype)

    def _changed_bias(self, bq_nh: np.ndarray | None, a: float) -> np.ndarray | None:
        if bq_nh is None or self.bias_er is None:
            return bq_nh
        bias = bq_nh.copy()
        for e, n in enumerate(self.heads_e):
            old = bq_nh[n].astype(np.float64)
            if self.temperature_e2 is None:
                change = -a * (self.columns_ehr[e].astype(np.float64) @ self.bias_er[e])
            else:
                change = (temperature(tuple(self.temperature_e2[e]), a) - 1) * old
            bias[n] = np.where(change == 0, bq_nh[n], (old + change).astype(bias.dtype))
        return bias


def _bits(array: np.ndarray, bits: np.dtype) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(bits)
