"""Spectra of query-key products: what a head's weights say of it before it reads anything.

A head's product is W = W_Q^T W_K, of rank at most H in D x D; it is never formed. Its singular
modes, how far queries and keys of a mode point alike, and how symmetric it is are those of H x H
cores (`edits.qk.factor`); traces are sums over H x H products of weights.

`localisation` is the curve of arXiv 2603.24058, supplement B: for tokens that walk at random, the
probability that a key at relative depth theta has a logit between 0 and 1.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from vlm_jax.edits.energy_rescale import product_energies
from vlm_jax.edits.qk.certificate import overlap, symmetry
from vlm_jax.edits.qk.controls import Product
from vlm_jax.edits.qk.factor import HeadFactors, factor_layers
from vlm_jax.edits.qk.modes import alignment_of
from vlm_jax.edits.qk.rope import Rope
from vlm_jax.edits.qk.weights import LayerWeights

VARIANCES = ("exact", "supplement")
THETAS = np.linspace(0, 1, 21)
_erf = np.vectorize(math.erf, otypes=[np.float64])


@dataclasses.dataclass(frozen=True)
class Spectra:
    """Products of some layers; float64, heads in order.

    Attributes:
        layers: their indices.
        width: D.
        values_lnm: singular values, the greatest first; H of them.
        alignment_lnm: of each mode the cosine between what it reads in queries and in keys: 1
            attracts what is alike, -1 repels it, 0 reads different things.
        symmetry_ln: tr(W^2) / ||W||^2, from -1 (antisymmetric) to 1 (symmetric).
        overlap_ln: how much of the keys' space is the queries': 1 all of it, H / D by chance.
        trace_ln: tr(W).
        squared_trace_ln: tr(S^2) of the symmetric part S = (W + W^T) / 2, which is never negative.
        capture_ln: median over offsets of text behind an image of the energy that the strongest
            `modes` keep there, over that of as many best ones; 1 where rotation changes nothing.
        modes: how many modes `capture_ln` is about.
    """

    layers: tuple[int, ...]
    width: int
    values_lnm: Float[np.ndarray, "L N m"]
    alignment_lnm: Float[np.ndarray, "L N m"]
    symmetry_ln: Float[np.ndarray, "L N"]
    overlap_ln: Float[np.ndarray, "L N"]
    trace_ln: Float[np.ndarray, "L N"]
    squared_trace_ln: Float[np.ndarray, "L N"]
    capture_ln: Float[np.ndarray, "L N"]
    modes: int

    @property
    def energy_lnm(self) -> Float[np.ndarray, "L N m"]:
        """Share of ||W||^2 in the first 1, 2, ... modes."""
        squares = self.values_lnm**2
        total = squares.sum(-1, keepdims=True)
        return np.cumsum(squares, -1) / np.where(total > 0, total, 1)

    @property
    def stable_rank_ln(self) -> Float[np.ndarray, "L N"]:
        """||W||^2 over its greatest singular value squared: 1 for one mode, H for equal ones."""
        squares = self.values_lnm**2
        return squares.sum(-1) / np.where(squares[..., 0] > 0, squares[..., 0], 1)

    def curves(self, variance: str = "exact") -> Float[np.ndarray, "L N t"]:
        """Returns `localisation` of every head at `THETAS`."""
        trace, squared = self.trace_ln[..., None], self.squared_trace_ln[..., None]
        return localisation(trace, squared, self.width, THETAS, variance)

    def regimes(self) -> list[list[str]]:
        """Returns a word a head: "localised" where |tr W| reaches sqrt(D), else "uniform"."""
        localised_ln = np.abs(self.trace_ln) >= np.sqrt(self.width)
        return [["localised" if on else "uniform" for on in row] for row in localised_ln]


def spectra(
    layers: Iterable[Mapping[str, np.ndarray]],
    rope: Rope | None = None,
    *,
    indices: Sequence[int] | None = None,
    modes: int = 4,
) -> Spectra:
    """Returns the spectra of some layers, a layer at a time.

    Args:
        layers: arrays of each by name (`wq_dnh`, `wk_dkh`, gains of heads' norms where there are
            any); read one after another, so a generator holds one layer in memory.
        rope: rotation and the offsets of `capture_ln`; None is no rotation.
        indices: of the layers; by default from 0.
        modes: how many modes `capture_ln` is about.

    Raises:
        EditError: a layer has no queries and keys of its own (latent attention), or its weights
            are not finite.
    """
    numbers = itertools.count() if indices is None else indices
    rows = {index: _layer(index, layer, rope, modes) for index, layer in zip(numbers, layers)}
    names = next(iter(rows.values()))
    stacked = {name: np.stack([row[name] for row in rows.values()]) for name in names}
    width = int(stacked.pop("width")[0])
    return Spectra(tuple(rows), width, **stacked, modes=modes)


def _layer(
    index: int, arrays: Mapping[str, np.ndarray], rope: Rope | None, modes: int
) -> dict[str, Any]:
    weights = LayerWeights.of(index, arrays)
    (heads,) = factor_layers([weights]).heads
    metric_hh = weights.metric(None)
    head_dim = weights.wq_dnh.shape[2]
    turns_ohh = np.eye(head_dim)[None] if rope is None else rope.rotations(head_dim)
    metrics_ohh = np.stack([weights.metric(turn_hh) for turn_hh in turns_ohh])
    wq_dnh, wk_dkh = weights.wq_dnh, weights.wk_dkh.astype(np.float64)
    group = weights.num_heads // wk_dkh.shape[1]
    products = [Product.of(head, metric_hh) for head in heads]
    keys = lambda n: wk_dkh[:, n // group] @ metric_hh.T
    scaled_dnh = np.stack([keys(n) for n in range(weights.num_heads)], axis=1)
    return {
        "width": np.array(wq_dnh.shape[0]),
        "values_lnm": np.stack([head.values for head in heads]),
        "alignment_lnm": np.stack([alignment_of(head) for head in heads]),
        "symmetry_ln": np.array([symmetry(h, p) for h, p in zip(heads, products)]),
        "overlap_ln": np.array([overlap(head) for head in heads]),
        "trace_ln": np.einsum("dnh,dnh->n", wq_dnh.astype(np.float64), scaled_dnh),
        "squared_trace_ln": product_energies(wq_dnh, scaled_dnh, "symmetrised"),
        "capture_ln": np.array([_capture(head, metrics_ohh, modes) for head in heads]),
    }


def _capture(head: HeadFactors, metrics_ohh: np.ndarray, modes: int) -> float:
    cores_obc = head.r_q @ metrics_ohh @ head.r_k.T
    kept_o = np.sum((head.left[:, :modes].T @ cores_obc) ** 2, axis=(1, 2))
    best_o = np.sum(np.linalg.svd(cores_obc, compute_uv=False)[:, :modes] ** 2, axis=1)
    return float(np.median(kept_o / np.where(best_o > 0, best_o, 1)))


def gaussian_energy(
    width: int, head_dim: int, modes: int, *, heads: int = 8, seed: int = 0
) -> float:
    """Returns what share of ||W||^2 the strongest modes of heads of Gaussian weights hold.

    It is what a spectrum has by its shape alone. With D 576, H 64 and 4 modes it is 0.13.

    Args:
        width: D.
        head_dim: H.
        modes: how many of the strongest.
        heads: that the mean is over.
        seed: of their weights.
    """
    rng = np.random.default_rng(seed)
    wq_ndh, wk_ndh = rng.standard_normal((2, heads, width, head_dim))
    r_q, r_k = (np.asarray(np.linalg.qr(each, mode="r")) for each in (wq_ndh, wk_ndh))
    cores_nhh = r_q @ r_k.swapaxes(1, 2)
    squares_nm = np.linalg.svd(cores_nhh, compute_uv=False) ** 2
    return float(np.mean(squares_nm[:, :modes].sum(1) / squares_nm.sum(1)))


def localisation(
    trace: Any, squared_trace: Any, width: int, theta: Any, variance: str = "exact"
) -> np.ndarray:
    """Returns the probability that a logit at relative depth theta lies between 0 and 1.

    Tokens walk at random and the last one asks. A logit has mean (theta - 1/2) tr(W) / sqrt(D), and
    variance (2 theta^2 - 2 theta + 7/12) tr(W^2) / D, symmetric about 1/2.

    Args:
        trace, squared_trace: tr(W) and tr(W^2) of a symmetric W.
        width: D.
        theta: from 0, the first token, to 1, the last.
        variance: "supplement" takes 2 theta^2 + 7/12 in its place, as it is printed there.
    """
    theta = np.asarray(theta, np.float64)
    mean = (theta - 0.5) * trace / np.sqrt(width)
    deviation = np.sqrt(2 * logit_variance(squared_trace, width, theta, variance))
    with np.errstate(divide="ignore"):  # a head of no energy: its logit is its mean
        return 0.5 * (_erf((1 - mean) / deviation) + _erf(mean / deviation))


def logit_variance(squared_trace: Any, width: int, theta: Any, variance: str = "exact") -> Any:
    """Returns the variance of a logit; see `localisation`."""
    middle = 0.0 if variance == "supplement" else -2 * theta
    return (2 * theta**2 + middle + 7 / 12) * squared_trace / width
