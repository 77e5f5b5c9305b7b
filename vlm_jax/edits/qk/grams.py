"""Factors by Cholesky factors of float64 Gram matrices, for CPU.

Products over D are the bulk of an edit's work. They are made by NumPy's BLAS, which is three times
as fast on them as XLA's CPU backend, a head at a time over all cores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vlm_jax.edits.qk.threads import each
from vlm_jax.edits.qk.weights import LayerWeights


class _Wide(NamedTuple):
    """A layer's factors in float64: queries [D', N, H], keys [D', K, H]."""

    queries: np.ndarray
    keys: np.ndarray

    def key_of(self, head: int) -> np.ndarray:
        """[D', H] the keys that a query head reads."""
        return self.keys[:, head // (self.queries.shape[1] // self.keys.shape[1])]


@dataclasses.dataclass(frozen=True)
class GramBasis:
    """Left bases `W r^-1` of a few layers' heads, never formed.

    Attributes:
        wide: per layer, the factors.
        r_nbb: per layer, [N, b, b] upper Cholesky factors.
    """

    wide: tuple[_Wide, ...]
    r_nbb: tuple[np.ndarray, ...]

    def lift(self, coordinates: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Per layer, [N, R, D'] directions from [N, b, R] coordinates."""
        return [
            self._lift_layer(wide, np.linalg.solve(r_nbb, coordinates_nbr))
            for wide, r_nbb, coordinates_nbr in zip(self.wide, self.r_nbb, coordinates, strict=True)
        ]

    @staticmethod
    def _lift_layer(wide: _Wide, weights_nbr: np.ndarray) -> np.ndarray:
        dims, heads, width = wide.queries.shape
        lifted_nrd = np.empty((heads, weights_nbr.shape[2], dims))

        def lift(n: int):
            np.matmul(weights_nbr[n, :width].T, wide.queries[:, n].T, out=lifted_nrd[n])
            if weights_nbr.shape[1] > width:
                lifted_nrd[n] += weights_nbr[n, width:].T @ wide.key_of(n).T

        each(lift, range(heads))
        return lifted_nrd


@np.errstate(invalid="ignore", over="ignore")
def gram_factors(
    layers: Sequence[LayerWeights],
    metric_hh: Sequence[np.ndarray],
    *,
    joint: bool,
    fold_norm: bool,
    augmented: bool,
    cross: bool,
) -> tuple[dict[str, np.ndarray], GramBasis | None]:
    """Coordinates of queries and keys, and the cores, of a few layers.

    Args:
        layers: weights of equal shapes.
        metric_hh: per layer, the [H, H] matrix between queries and keys.
        joint, fold_norm, augmented, cross: see `factor.factor_layers`.

    Returns:
        Float64 arrays that lead with all layers' query heads: `r_q`, `r_k`, `core`, `cross` if
        asked for, and `condition`; and the basis. Where a Gram matrix is not positive definite in
        float64, only an infinite `condition`.
    """
    wide = [_widened(layer, fold_norm, augmented) for layer in layers]
    found = []
    try:
        for own, metric in zip(wide, metric_hh, strict=True):
            own_qq, own_qk, own_kk = _grams(own, overlap=joint or cross)
            found.append(
                _joint(own_qq, own_qk, own_kk, metric)
                if joint
                else _separate(own_qq, own_qk, own_kk, metric)
            )
    except np.linalg.LinAlgError:
        return {"condition": np.array([np.inf])}, None
    small = {name: np.concatenate([one[name] for one in found]) for name in found[0]}
    factors = tuple(one["factor"] for one in found)
    del small["factor"]
    return small, GramBasis(tuple(wide), factors)


def _widened(layer: LayerWeights, fold_norm: bool, augmented: bool) -> _Wide:
    queries, keys = layer.factors(fold_norm=fold_norm, augmented=augmented)
    return _Wide(queries.astype(np.float64, copy=False), keys.astype(np.float64, copy=False))


def _grams(wide: _Wide, overlap: bool) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Products over D: [N, H, H] of queries, and of queries with keys; [K, H, H] of keys."""
    heads, kv_heads = wide.queries.shape[1], wide.keys.shape[1]

    # Weights that are not finite are refused by name later; threads have settings of their own.
    @np.errstate(invalid="ignore", over="ignore")
    def own(n: int) -> tuple[np.ndarray, Any]:
        query = wide.queries[:, n]
        return query.T @ query, query.T @ wide.key_of(n) if overlap else None

    @np.errstate(invalid="ignore", over="ignore")
    def of_keys(k: int):
        return wide.keys[:, k].T @ wide.keys[:, k]

    rows, keys = each(own, range(heads)), each(of_keys, range(kv_heads))
    mixed = np.stack([row[1] for row in rows]) if overlap else None
    return np.stack([row[0] for row in rows]), mixed, np.stack(keys)


def _separate(qq_nhh, qk_nhh, kk_khh, metric_hh) -> dict[str, np.ndarray]:
    lower_q, lower_k = np.linalg.cholesky(qq_nhh), np.linalg.cholesky(kk_khh)
    inverse_q, inverse_k = np.linalg.inv(lower_q), np.linalg.inv(lower_k)
    worst = np.max(_condition(lower_k, inverse_k))
    spread = lambda array: np.repeat(array, len(qq_nhh) // len(kk_khh), axis=0)
    small = {
        "r_q": _t(lower_q),
        "r_k": spread(_t(lower_k)),
        "core": _t(lower_q) @ spread(metric_hh @ lower_k),
        "condition": np.maximum(_condition(lower_q, inverse_q), worst),
        "factor": _t(lower_q),
    }
    if qk_nhh is not None:
        small["cross"] = inverse_q @ qk_nhh @ spread(_t(inverse_k))
    return small


def _joint(qq_nhh, qk_nhh, kk_khh, metric_hh) -> dict[str, np.ndarray]:
    kk_nhh = np.repeat(kk_khh, len(qq_nhh) // len(kk_khh), axis=0)
    upper, lower = np.concatenate([qq_nhh, qk_nhh], 2), np.concatenate([_t(qk_nhh), kk_nhh], 2)
    lower_nbb = np.linalg.cholesky(np.concatenate([upper, lower], 1))
    r_nbb, width = _t(lower_nbb), qq_nhh.shape[1]
    r_q, r_k = r_nbb[..., :width], r_nbb[..., width:]
    return {
        "r_q": r_q,
        "r_k": r_k,
        "core": r_q @ metric_hh @ _t(r_k),
        "condition": _condition(lower_nbb, np.linalg.inv(lower_nbb)),
        "factor": r_nbb,
    }


def _condition(lower_nbb: np.ndarray, inverse_nbb: np.ndarray) -> np.ndarray:
    """[N] estimates between cond and sqrt(b) cond."""
    rms = np.sqrt(np.mean(np.sum(lower_nbb**2, axis=-2), axis=-1))
    return rms * np.sqrt(np.sum(inverse_nbb**2, axis=(-1, -2)))


def _t(array: np.ndarray) -> np.ndarray:
    return np.swapaxes(array, -1, -2)
