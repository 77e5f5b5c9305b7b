"""The arrays of one decoder layer that the edit reads, checked when they are taken."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from vlm_jax.errors import EditError

_SHAPES = {
    "wq_dnh": "DNH",
    "wk_dkh": "DKH",
    "bq_nh": "NH",
    "bk_kh": "KH",
    "attn_norm_d": "D",
    "q_norm_h": "H",
    "k_norm_h": "H",
}
_SMALLEST_GAIN = 1e-3


@dataclasses.dataclass(frozen=True)
class LayerWeights:
    """Query and key weights of one layer: query head n reads kv head n // (N / K).

    Attributes:
        layer: index in the decoder.
        wq_dnh, wk_dkh: weights, applied as x @ w; any float dtype.
        bq_nh, bk_kh: biases, or None.
        attn_norm_d: effective gain of the norm in front of attention, needed for `fold_norm`.
        q_norm_h, k_norm_h: effective gains of per-head query and key norms, or None where the model
            has none.
    """

    layer: int
    wq_dnh: np.ndarray
    wk_dkh: np.ndarray
    bq_nh: np.ndarray | None = None
    bk_kh: np.ndarray | None = None
    attn_norm_d: np.ndarray | None = None
    q_norm_h: np.ndarray | None = None
    k_norm_h: np.ndarray | None = None

    @classmethod
    def of(cls, layer: int, arrays: Mapping[str, np.ndarray]) -> LayerWeights:
        """Takes the arrays the edit needs out of a layer's mapping; other names are ignored.

        Raises:
            EditError: per-head queries or keys are missing, or shapes disagree.
        """
        for name in ("wq_dnh", "wk_dkh"):
            if arrays.get(name) is None:
                raise EditError(
                    f"layer {layer} has no {name}: the query-key product needs per-head queries "
                    "and keys, "
                    "so latent attention (MLA) cannot be edited."
                )
        taken = {name: np.asarray(arrays[name]) for name in _SHAPES if arrays.get(name) is not None}
        dims: dict[str, int] = {}
        for name, array in taken.items():
            if array.ndim != len(_SHAPES[name]):
                raise EditError(
                    f"layer {layer}: {name} has shape {array.shape}; expected "
                    f"{tuple(_SHAPES[name])}."
                )
            for letter, size in zip(_SHAPES[name], array.shape, strict=True):
                if dims.setdefault(letter, size) != size:
                    raise EditError(
                        f"layer {layer}: {name} has shape {array.shape}, but {letter} is "
                        f"{dims[letter]} in the other weights."
                    )
        if dims["N"] % dims["K"]:
            raise EditError(
                f"layer {layer} has {dims['N']} query heads and {dims['K']} key heads; the first "
                "must be a multiple of the second."
            )
        return cls(layer, **taken)

    @property
    def num_heads(self) -> int:
        """N."""
        return self.wq_dnh.shape[1]

    @property
    def num_kv_heads(self) -> int:
        """K."""
        return self.wk_dkh.shape[1]

    @property
    def head_dim(self) -> int:
        """H."""
        return self.wq_dnh.shape[2]

    @property
    def qk_norm(self) -> bool:
        """Whether queries or keys are normalised per head after projection."""
        return self.q_norm_h is not None or self.k_norm_h is not None

    def gain(self, fold_norm: bool) -> np.ndarray | None:
        """[D] float64 gain to fold into both factors, or None without `fold_norm`.

        Raises:
            EditError: the gain is missing, or too small somewhere to be divided out again.
        """
        if not fold_norm:
            return None
        if self.attn_norm_d is None:
            raise EditError(
                f"layer {self.layer}: fold_norm needs attn_norm_d, the gain of the norm before "
                "attention."
            )
        gain = self.attn_norm_d.astype(np.float64)
        size = np.abs(gain)
        if not size.min() >= _SMALLEST_GAIN * size.max():
            raise EditError(
                f"layer {self.layer}: the smallest norm gain {size.min():.3g} is under "
                f"{_SMALLEST_GAIN:g} of the largest "
                f"{size.max():.3g} and cannot be divided out; set fold_norm=False."
            )
        return gain

    def factors(self, *, fold_norm: bool, augmented: bool) -> tuple[np.ndarray, np.ndarray]:
        """The product's two factors: queries [D', N, H] and keys [D', K, H].

        D' is D, or D + 1 with biases as a last row. Float64 where an option changes them.

        Raises:
            EditError: biases are asked for and absent, or the norm gain cannot be folded.
        """
        queries, keys = self.wq_dnh, self.wk_dkh
        gain = self.gain(fold_norm)
        if gain is not None:
            queries = queries.astype(np.float64) * gain[:, None, None]
            keys = keys.astype(np.float64) * gain[:, None, None]
        if augmented:
            if self.bq_nh is None:
                raise EditError(
                    f"layer {self.layer} has no query bias, which bias='augmented' needs; use "
                    "bias='weights'."
                )
            key_bias = np.zeros(keys.shape[1:]) if self.bk_kh is None else self.bk_kh
            queries = np.concatenate(
                [queries.astype(np.float64), self.bq_nh.astype(np.float64)[None]]
            )
            keys = np.concatenate([keys.astype(np.float64), key_bias.astype(np.float64)[None]])
        return queries, keys

    def blocks(self, *, fold_norm: bool, augmented: bool) -> tuple[np.ndarray, np.ndarray]:
        """The factors a kv head at a time: queries [K, D', G, H] and keys [K, D', H]."""
        queries, keys = self.factors(fold_norm=fold_norm, augmented=augmented)
        dims, heads, width = queries.shape
        groups = self.num_kv_heads
        queries = queries.reshape(dims, groups, heads // groups, width).transpose(1, 0, 2, 3)
        return np.ascontiguousarray(queries), np.ascontiguousarray(keys.transpose(1, 0, 2))

    def metric(self, rotation_hh: np.ndarray | None) -> np.ndarray:
        """[H, H] float64 matrix between queries and keys: norm gains, a mean rotation, both."""
        between = np.eye(self.head_dim) if rotation_hh is None else rotation_hh.astype(np.float64)
        if self.q_norm_h is not None:
            between = self.q_norm_h.astype(np.float64)[:, None] * between
        if self.k_norm_h is not None:
            between = between * self.k_norm_h.astype(np.float64)
        return between

    def first_not_finite(self) -> str | None:
        """The name of the first array that holds NaN or infinity, if any."""
        for name in _SHAPES:
            array = getattr(self, name)
            if array is not None and not np.isfinite(array.astype(np.float32)).all():
                return name
        return None
