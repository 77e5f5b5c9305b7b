"""Factors and singular modes of every head's query-key product, never forming a D x D matrix.

With `Q^T = Z_L r_q` and `K^T = Z_R r_k` (Z orthonormal, r of head_dim) the product `M = Q^T W K` is
`Z_L (r_q W r_k^T) Z_R^T`: its singular modes are those of the small core. Queries of one group
share their key's factor.

Three routes give the same factors. `gram64` takes Cholesky factors of float64 Gram matrices: matrix
products, for CPU. `qr64` takes Householder QR, for ill-conditioned weights. `qr32` is its float32
form at HIGHEST matmul precision, for accelerators whose fast float64 or default precision cannot be
had. A Gram matrix squares the condition number and is never taken in float32.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vlm_jax.errors import EditError
from vlm_jax.steering.qk.weights import LayerWeights

ROUTES = ("auto", "gram64", "qr64", "qr32")
# Orthogonality of a Cholesky-QR basis is lost as eps cond^2. The plain edit needs only its leading
# directions; the channels need the whole joint basis.
_GRAM_CONDITION = {False: 1e6, True: 1e2}

_log = logging.getLogger(__name__)


class HeadFactors(NamedTuple):
    """Small float64 factors of one head; b is head_dim, or 2 head_dim in the joint basis.

    Attributes:
        r_q, r_k: [b, H] coordinates of queries and keys in the left and right basis.
        cross: [b, b] overlap Z_L^T Z_R of the two bases (the identity in the joint basis), or None
            where it was not asked for.
        left, values, right: [b, m], [m], [b, m] singular modes of the core, strongest first.
        symmetric: eigenvalues [b] and eigenvectors [b, b] of the core's symmetric part; joint only.
        antisymmetric: left [b, b], values [b] and right [b, b] of its antisymmetric part; joint
            only.
    """

    r_q: np.ndarray
    r_k: np.ndarray
    cross: np.ndarray | None
    left: np.ndarray
    values: np.ndarray
    right: np.ndarray
    symmetric: tuple[np.ndarray, np.ndarray] | None
    antisymmetric: tuple[np.ndarray, np.ndarray, np.ndarray] | None


def default_route() -> str:
    """`gram64` on CPU, `qr32` on accelerators."""
    return "gram64" if jax.default_backend() == "cpu" else "qr32"


def layers_at_once(num_kv_heads: int) -> int:
    """How many layers give every local device a kv head to work on."""
    return -(-jax.local_device_count() // num_kv_heads)


@dataclasses.dataclass(frozen=True)
class Factors:
    """The factors of a few layers, and what is needed to lift basis coordinates back to D.

    Attributes:
        layers: the layers, in order.
        route: the route that was taken.
        heads: per layer, per query head.
    """

    layers: tuple[int, ...]
    route: str
    heads: tuple[tuple[HeadFactors, ...], ...]
    _basis: tuple
    _joint: bool
    _num_kv_heads: int

    def lift(self, coordinates: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Directions in D from coordinates in the left basis.

        Args:
            coordinates: per layer, [N, b, R].

        Returns:
            per layer, [N, R, D'] float64.
        """
        devices, share = self._basis[0].shape[:2]
        heads, width = coordinates[0].shape[:2]
        # Ranks vary with energy cuts and ties; powers of two keep compilations few.
        rank = 1 << max(max(c.shape[2] for c in coordinates) - 1, 0).bit_length()
        stacked = np.zeros((len(coordinates), heads, width, rank))
        for index, array in enumerate(coordinates):
            stacked[index, :, :, : array.shape[2]] = array
        groups = heads // self._num_kv_heads
        items = stacked.reshape(-1, groups, width, rank)
        with _precision(self.route):
            lifted = np.asarray(
                _lift(self.route)(*self._basis, _shard(items, devices, devices * share))
            )
        lifted = lifted.reshape(devices * share, *lifted.shape[2:])[: len(items)]
        lifted = lifted.reshape(len(coordinates), heads, *lifted.shape[2:]).astype(np.float64)
        return [lifted[n, :, : c.shape[2]] for n, c in enumerate(coordinates)]


def factor_layers(
    layers: Sequence[LayerWeights],
    *,
    joint: bool = False,
    fold_norm: bool = False,
    augmented: bool = False,
    rotation_hh: np.ndarray | None = None,
    cross: bool = True,
    route: str = "auto",
) -> Factors:
    """Factors every head of a few layers, spread over the local devices by kv head.

    Args:
        layers: weights of equal shapes.
        joint: whether to use one basis for queries and keys, and to decompose both channels in it.
        fold_norm: fold the input norm's gain into both factors.
        augmented: append biases as the weights of a constant input.
        rotation_hh: [H, H] mean rotation between queries and keys, or None for offset 0.
        cross: whether to find the overlap of query and key spaces, which alignment, symmetry and
            overlap are read from.
        route: a word of `ROUTES`. `gram64` falls back to `qr64` where weights are too
            ill-conditioned.

    Raises:
        EditError: weights are not finite, or an option needs arrays the layers lack.
    """
    if route not in ROUTES:
        raise EditError(f"route={route!r} is not known; use one of {', '.join(ROUTES)}.")
    route = default_route() if route == "auto" else route
    blocks = [layer.blocks(fold_norm=fold_norm, augmented=augmented) for layer in layers]
    queries = np.concatenate([b[0] for b in blocks])
    keys = np.concatenate([b[1] for b in blocks])
    metric = np.stack([layer.metric(rotation_hh) for layer in layers])
    metric = np.repeat(metric, layers[0].num_kv_heads, axis=0)
    small, basis = _run(queries, keys, metric, route, joint, cross)
    if route == "gram64" and not np.max(small["condition"]) <= _GRAM_CONDITION[joint]:
        _refuse_not_finite(layers)
        _log.info(
            "layers %s: condition %.2g is too high for Gram matrices; using QR",
            [layer.layer for layer in layers],
            np.max(small["condition"]),
        )
        route = "qr64"
        small, basis = _run(queries, keys, metric, route, joint, cross)
    if not np.isfinite(small["values"]).all():
        _refuse_not_finite(layers)
        raise EditError(
            f"layers {[layer.layer for layer in layers]}: the singular values are not finite "
            "although "
            "the weights are; their scale is out of range."
        )
    per_layer = layers[0].num_kv_heads
    heads = tuple(
        tuple(
            _head(small, index, group, joint)
            for index in range(n * per_layer, (n + 1) * per_layer)
            for group in range(layers[0].num_heads // per_layer)
        )
        for n in range(len(layers))
    )
    return Factors(tuple(w.layer for w in layers), route, heads, basis, joint, per_layer)


def _run(queries, keys, metric, route, joint, cross) -> tuple[dict[str, np.ndarray], tuple]:
    devices = jax.local_device_count()
    count = queries.shape[0]
    padded = -(-count // devices) * devices
    with _precision(route):
        small, basis = _factor(route, joint, cross)(
            *(_shard(array, devices, padded) for array in (queries, keys, metric))
        )
        host = {name: np.asarray(array) for name, array in small.items()}
    flat = {name: array.reshape(padded, *array.shape[2:])[:count] for name, array in host.items()}
    return {name: array.astype(np.float64) for name, array in flat.items()}, basis


def _shard(items: np.ndarray, devices: int, padded: int) -> np.ndarray:
    """Repeats the last item until every device has as many, and puts devices in front."""
    if padded > len(items):
        items = np.concatenate([items, np.repeat(items[-1:], padded - len(items), axis=0)])
    return items.reshape(devices, padded // devices, *items.shape[1:])


def _head(small: dict[str, np.ndarray], item: int, group: int, joint: bool) -> HeadFactors:
    modes = min(small["r_q"].shape[-1], small["values"].shape[-1])
    r_k = small["r_k"][item]
    return HeadFactors(
        r_q=small["r_q"][item, group],
        r_k=r_k[group] if joint else r_k,
        cross=_cross(small, item, group, joint),
        left=small["left"][item, group][:, :modes],
        values=small["values"][item, group][:modes],
        right=small["right"][item, group][:, :modes],
        symmetric=(small["sym_values"][item, group], small["sym_vectors"][item, group])
        if joint
        else None,
        antisymmetric=(
            small["anti_left"][item, group],
            small["anti_values"][item, group],
            small["anti_right"][item, group],
        )
        if joint
        else None,
    )


def _cross(small: dict[str, np.ndarray], item: int, group: int, joint: bool) -> np.ndarray | None:
    if joint:
        return np.eye(small["r_q"].shape[2])
    return small["cross"][item, group] if "cross" in small else None


def _refuse_not_finite(layers: Sequence[LayerWeights]):
    for layer in layers:
        name = layer.first_not_finite()
        if name is not None:
            raise EditError(
                f"layer {layer.layer}: {name} holds NaN or infinity; the checkpoint is damaged, "
                "restore it before editing."
            )


def _precision(route: str) -> contextlib.AbstractContextManager:
    return jax.enable_x64(route.endswith("64"))


@functools.cache
def _factor(route: str, joint: bool, cross: bool):
    if joint:
        one = _joint_gram if route == "gram64" else _joint_qr
    else:
        one = functools.partial(
            _separate_gram if route == "gram64" else _separate_qr, with_cross=cross
        )

    def item(q_dgh, k_dh, metric_hh):
        dtype = _dtype(route)
        # Low-precision matmul defaults (bf16 on TPU, TF32 on GPU) would destroy the factors.
        with jax.default_matmul_precision("highest"):
            # Rows along D: products over the last dim of both operands are the fast ones on CPU.
            # The barrier keeps the transposition from being repeated inside each of them.
            q_ghd = jax.lax.optimization_barrier(jnp.transpose(q_dgh, (1, 2, 0)).astype(dtype))
            return one(q_ghd, k_dh.T.astype(dtype), metric_hh.astype(dtype))

    return jax.pmap(jax.vmap(item))


@functools.cache
def _lift(route: str):
    def item(basis_gbd, *operands):
        with jax.default_matmul_precision("highest"):
            coordinates_gbr = operands[-1].astype(_dtype(route))
            if route == "gram64":
                coordinates_gbr = jax.scipy.linalg.solve_triangular(
                    operands[0], coordinates_gbr, lower=False
                )
            return jnp.einsum("gbr,gbd->grd", coordinates_gbr, basis_gbd)

    return jax.pmap(jax.vmap(item))


def _dtype(route: str):
    return jnp.float64 if route.endswith("64") else jnp.float32


def _t(array):
    return jnp.swapaxes(array, -1, -2)


def _svd_of(core):
    left, values, right = jnp.linalg.svd(core)
    return {"left": left, "values": values, "right": _t(right)}


def _separate_gram(q_ghd, k_hd, metric_hh, with_cross):
    lower_q = jnp.linalg.cholesky(jnp.einsum("ghd,gid->ghi", q_ghd, q_ghd))
    lower_k = jnp.linalg.cholesky(k_hd @ k_hd.T)
    inverse_q, inverse_k = _inverse(lower_q), _inverse(lower_k)
    small = {
        "r_q": _t(lower_q),
        "r_k": _t(lower_k),
        "condition": jnp.maximum(
            jnp.max(_condition(lower_q, inverse_q)), _condition(lower_k, inverse_k)
        ),
        **_svd_of(_t(lower_q) @ metric_hh @ lower_k),
    }
    if with_cross:
        small["cross"] = inverse_q @ jnp.einsum("ghd,id->ghi", q_ghd, k_hd) @ _t(inverse_k)
    return small, (q_ghd, _t(lower_q))


def _separate_qr(q_ghd, k_hd, metric_hh, with_cross):
    basis_q, r_q = jnp.linalg.qr(_t(q_ghd))
    basis_k, r_k = jnp.linalg.qr(k_hd.T)
    small = {"r_q": r_q, "r_k": r_k, **_svd_of(r_q @ metric_hh @ r_k.T)}
    if with_cross:
        small["cross"] = _t(basis_q) @ basis_k
    return small, (_t(basis_q),)


def _joint_block(q_ghd, k_hd):
    return jnp.concatenate([q_ghd, jnp.broadcast_to(k_hd, q_ghd.shape)], axis=1)


def _joint_gram(q_ghd, k_hd, metric_hh):
    block = _joint_block(q_ghd, k_hd)
    lower = jnp.linalg.cholesky(jnp.einsum("gbd,gcd->gbc", block, block))
    small = _channels(_t(lower), metric_hh, q_ghd.shape[1])
    small["condition"] = jnp.max(_condition(lower, _inverse(lower)))
    return small, (block, _t(lower))


def _joint_qr(q_ghd, k_hd, metric_hh):
    basis, r = jnp.linalg.qr(_t(_joint_block(q_ghd, k_hd)))
    return _channels(r, metric_hh, q_ghd.shape[1]), (_t(basis),)


def _channels(r_gbc, metric_hh, head_dim):
    r_q, r_k = r_gbc[..., :head_dim], r_gbc[..., head_dim:]
    core = r_q @ metric_hh @ _t(r_k)
    values, vectors = jnp.linalg.eigh((core + _t(core)) / 2)
    anti = _svd_of((core - _t(core)) / 2)
    return {
        "r_q": r_q,
        "r_k": r_k,
        "sym_values": values,
        "sym_vectors": vectors,
        **{f"anti_{name}": array for name, array in anti.items()},
        **_svd_of(core),
    }


def _inverse(lower):
    eye = jnp.broadcast_to(jnp.eye(lower.shape[-1], dtype=lower.dtype), lower.shape)
    return jax.scipy.linalg.solve_triangular(lower, eye, lower=True)


def _condition(lower, inverse):
    """An estimate between cond and sqrt(H) cond; NaN where the Cholesky factor failed."""
    rms = jnp.sqrt(jnp.mean(jnp.sum(lower**2, axis=-2), axis=-1))
    return rms * jnp.sqrt(jnp.sum(inverse**2, axis=(-1, -2)))
