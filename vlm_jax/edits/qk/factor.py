"""Factors and singular modes of every head's query-key product, never forming a D x D matrix.

With `Q^T = Z_L r_q` and `K^T = Z_R r_k` (Z orthonormal, r of head_dim) the product `M = Q^T W K` is
`Z_L (r_q W r_k^T) Z_R^T`: its singular modes are those of the small core. Queries of one group
share their key's factor.

Three routes give the same factors. `gram64` takes Cholesky factors of float64 Gram matrices
(`grams`): matrix products, for CPU. `qr64` takes Householder QR, for ill-conditioned weights.
`qr32` is its float32 form at HIGHEST matmul precision, for accelerators whose fast float64 or
default precision cannot be had. A Gram matrix squares the condition number and is never taken in
float32. Whatever the route, cores are decomposed by `jnp.linalg.svd`, spread over the devices.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from vlm_jax.edits.qk.grams import gram_factors
from vlm_jax.edits.qk.weights import LayerWeights
from vlm_jax.errors import EditError

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


class Basis(Protocol):
    """What lifts coordinates back to D."""

    def lift(self, coordinates: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Per layer, [N, R, D'] float64 directions from [N, b, R] coordinates."""
        ...


class Factors(NamedTuple):
    """The factors of a few layers.

    Attributes:
        layers: the layers, in order.
        route: the route that was taken.
        heads: per layer, per query head.
        basis: lifts coordinates in the left basis back to D.
    """

    layers: tuple[int, ...]
    route: str
    heads: tuple[tuple[HeadFactors, ...], ...]
    basis: Basis


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
    metric = [layer.metric(rotation_hh) for layer in layers]
    options = {"joint": joint, "fold_norm": fold_norm, "augmented": augmented, "cross": cross}
    small, basis = {}, None
    if route == "gram64":
        small, basis = gram_factors(layers, metric, **options)
        worst = np.max(small["condition"])
        if worst <= _GRAM_CONDITION[joint]:
            small |= _decompose(small["core"], joint)
        else:
            _refuse_not_finite(layers)
            _log.info(
                "layers %s: condition %.2g is too high for Gram matrices; using QR",
                [layer.layer for layer in layers],
                worst,
            )
            route, basis = "qr64", None
    if basis is None:
        small, basis = _qr_factors(layers, metric, route, **options)
    if not np.isfinite(small["values"]).all():
        _refuse_not_finite(layers)
        raise EditError(
            f"layers {[layer.layer for layer in layers]}: the singular values are not finite "
            "although the weights are; their scale is out of range."
        )
    count = layers[0].num_heads
    heads = tuple(
        tuple(_head(small, index, joint) for index in range(n * count, (n + 1) * count))
        for n in range(len(layers))
    )
    return Factors(tuple(w.layer for w in layers), route, heads, basis)


def _decompose(core_nbb: np.ndarray, joint: bool) -> dict[str, np.ndarray]:
    """Singular modes of float64 cores, spread over the local devices."""
    devices = jax.local_device_count()
    padded = -(-len(core_nbb) // devices) * devices
    with _precision("gram64"):
        found = _decomposition(joint)(_shard(core_nbb, devices, padded))
        host = {name: np.asarray(array) for name, array in found.items()}
    return {name: a.reshape(padded, *a.shape[2:])[: len(core_nbb)] for name, a in host.items()}


def _qr_factors(layers, metric, route, *, joint, fold_norm, augmented, cross):
    """As `gram_factors`, with the modes, by QR on the devices."""
    blocks = [layer.blocks(fold_norm=fold_norm, augmented=augmented) for layer in layers]
    queries = np.concatenate([block[0] for block in blocks])
    keys = np.concatenate([block[1] for block in blocks])
    metric = np.repeat(np.stack(metric), layers[0].num_kv_heads, axis=0)
    devices = jax.local_device_count()
    count = queries.shape[0]
    padded = -(-count // devices) * devices
    with _precision(route):
        small, basis = _by_qr(route, joint, cross)(
            *(_shard(array, devices, padded) for array in (queries, keys, metric))
        )
        host = {name: np.asarray(array, np.float64) for name, array in small.items()}
    flat = {name: array.reshape(padded, *array.shape[2:])[:count] for name, array in host.items()}
    if not joint:
        flat["r_k"] = np.repeat(flat["r_k"][:, None], queries.shape[2], axis=1)
    heads = {name: array.reshape(-1, *array.shape[2:]) for name, array in flat.items()}
    return heads, _QRBasis(route, basis, layers[0].num_kv_heads)


@dataclasses.dataclass(frozen=True)
class _QRBasis:
    """Orthonormal bases on the devices, [devices, items, G, b, D']."""

    route: str
    basis: jax.Array
    num_kv_heads: int

    def lift(self, coordinates: Sequence[np.ndarray]) -> list[np.ndarray]:
        """See `Basis`."""
        devices, share = self.basis.shape[:2]
        heads, width = coordinates[0].shape[:2]
        # Ranks vary with energy cuts and ties; powers of two keep compilations few.
        rank = 1 << max(max(c.shape[2] for c in coordinates) - 1, 0).bit_length()
        stacked = np.zeros((len(coordinates), heads, width, rank))
        for index, array in enumerate(coordinates):
            stacked[index, :, :, : array.shape[2]] = array
        items = stacked.reshape(-1, heads // self.num_kv_heads, width, rank)
        with _precision(self.route):
            lifted = _lift(self.route)(self.basis, _shard(items, devices, devices * share))
            lifted = np.asarray(lifted, np.float64)
        lifted = lifted.reshape(devices * share, *lifted.shape[2:])[: len(items)]
        lifted = lifted.reshape(len(coordinates), heads, *lifted.shape[2:])
        return [lifted[n, :, : c.shape[2]] for n, c in enumerate(coordinates)]


def _shard(items: np.ndarray, devices: int, padded: int) -> np.ndarray:
    """Repeats the last item until every device has as many, and puts devices in front."""
    if padded > len(items):
        items = np.concatenate([items, np.repeat(items[-1:], padded - len(items), axis=0)])
    return items.reshape(devices, padded // devices, *items.shape[1:])


def _head(small: dict[str, np.ndarray], index: int, joint: bool) -> HeadFactors:
    own = {name: array[index] for name, array in small.items() if name != "condition"}
    modes = min(own["r_q"].shape[-1], own["values"].shape[-1])
    return HeadFactors(
        r_q=own["r_q"],
        r_k=own["r_k"],
        cross=np.eye(own["r_q"].shape[0]) if joint else own.get("cross"),
        left=own["left"][:, :modes],
        values=own["values"][:modes],
        right=own["right"][:, :modes],
        symmetric=(own["sym_values"], own["sym_vectors"]) if joint else None,
        antisymmetric=(own["anti_left"], own["anti_values"], own["anti_right"]) if joint else None,
    )


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


def _over_devices(one: Callable, devices: Sequence[Any] | None = None) -> Any:
    """Maps over devices and the items of each: this process's, since others may have no work."""
    return jax.pmap(jax.vmap(one), devices=devices or jax.local_devices())


@functools.cache
def _decomposition(joint: bool):
    return _over_devices(_channels if joint else _svd_of)


def lower_factoring(
    width: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    devices: Sequence[Any],
    joint: bool = False,
) -> Any:
    """Returns the program that accelerators factor layers by, lowered for some devices.

    Args:
        width, heads, kv_heads, head_dim: of the decoder.
        devices: that the heads of a few layers are spread over; they need not be there.
        joint: see `factor_layers`.
    """
    layers = -(-len(devices) // kv_heads)
    share = -(-layers * kv_heads // len(devices))
    shape = lambda *dims: jax.ShapeDtypeStruct((len(devices), share, *dims), jnp.float32)
    arrays = shape(width, heads // kv_heads, head_dim), shape(width, head_dim)
    item = _qr_item("qr32", joint, cross=True)
    return _over_devices(item, devices).lower(*arrays, shape(head_dim, head_dim))


@functools.cache
def _by_qr(route: str, joint: bool, cross: bool):
    return _over_devices(_qr_item(route, joint, cross))


def _qr_item(route: str, joint: bool, cross: bool) -> Callable:
    """What the QR routes do with the heads of one key head."""
    one = _joint_qr if joint else functools.partial(_separate_qr, with_cross=cross)

    def item(q_dgh, k_dh, metric_hh):
        dtype = _dtype(route)
        # Low-precision matmul defaults (bf16 on TPU, TF32 on GPU) would destroy the factors.
        with jax.default_matmul_precision("highest"):
            return one(
                jnp.moveaxis(q_dgh, 0, 1).astype(dtype), k_dh.astype(dtype), metric_hh.astype(dtype)
            )

    return item


@functools.cache
def _lift(route: str):
    def item(basis_gbd, coordinates_gbr):
        with jax.default_matmul_precision("highest"):
            return jnp.einsum("gbr,gbd->grd", coordinates_gbr.astype(_dtype(route)), basis_gbd)

    return _over_devices(item)


def _dtype(route: str):
    return jnp.float64 if route.endswith("64") else jnp.float32


def _t(array):
    return jnp.swapaxes(array, -1, -2)


def _svd_of(core):
    left, values, right = jnp.linalg.svd(core)
    return {"left": left, "values": values, "right": _t(right)}


def _channels(core):
    values, vectors = jnp.linalg.eigh((core + _t(core)) / 2)
    anti = _svd_of((core - _t(core)) / 2)
    return {
        "sym_values": values,
        "sym_vectors": vectors,
        **{f"anti_{name}": array for name, array in anti.items()},
        **_svd_of(core),
    }


def _separate_qr(q_gdh, k_dh, metric_hh, with_cross):
    basis_q, r_q = jnp.linalg.qr(q_gdh)
    basis_k, r_k = jnp.linalg.qr(k_dh)
    small = {"r_q": r_q, "r_k": r_k, **_svd_of(r_q @ metric_hh @ r_k.T)}
    if with_cross:
        small["cross"] = _t(basis_q) @ basis_k
    return small, _t(basis_q)


def _joint_qr(q_gdh, k_dh, metric_hh):
    head_dim = q_gdh.shape[-1]
    keys = jnp.broadcast_to(k_dh, q_gdh.shape)
    basis, r_gbc = jnp.linalg.qr(jnp.concatenate([q_gdh, keys], axis=-1))
    r_q, r_k = r_gbc[..., :head_dim], r_gbc[..., head_dim:]
    return {"r_q": r_q, "r_k": r_k, **_channels(r_q @ metric_hh @ _t(r_k))}, _t(basis)
