"""Segments read by a fused kernel, where there is one: ours on TPUs, cuDNN's on GPUs.

What it returns is what the tiles return, so that everything else (the edited last row, gains of
heads) goes on from either. Ours does all that tiles do (`attention/pallas.py`). cuDNN's reads one
causal segment: its log-sum-exp is bfloat16, which is fine for one segment, whose output does not
use it. Merging segments, or reading what is inside tiles, needs float32, so those use tiles there.
"""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Float

from vlm_jax.attention.blockwise import Read, Tap, segment_attention
from vlm_jax.attention.causal_projection import (
    CausalProjection,
    counted,
    own_weights,
    project_causal,
)
from vlm_jax.attention.pallas import fits as kernel_fits
from vlm_jax.attention.pallas import kernel_attention
from vlm_jax.attention.segment import Segment, Visibility
from vlm_jax.batch import Kind

TILES, PALLAS = "tiles", "pallas"
_KERNELS = {
    "tpu": (PALLAS, "our fused attention"),
    "gpu": ("cudnn", "cuDNN's fused attention"),
}
_LARGEST_HEAD = 128
_TOLERANCE = 0.02, 0.05, 0.02, 0.02, 0.02  # of outputs of order 1, log-sum-exps of order 5, shares


def read_segments(
    q_btnh: Float[Array, "B T N H"],
    segments: Sequence[Segment],
    queries: Visibility,
    *,
    causal: bool,
    scale: float | None = None,
    tap: Tap | None = None,
) -> list[Read]:
    """Attends to each of some segments, by the fused kernel where it does what is asked.

    Args:
        segments: the keys; those that rows share are read once for all of these
            (`_read_together`).
        causal: if there is one segment, its keys are the queries' own places, in order and padded
            on the right, if at all. Rows of padding then read something that means nothing.
        q_btnh, queries, scale, tap: as `segment_attention` takes them.
    """
    alone = len(segments) == 1
    causal = causal and alone
    fits = causal and tap is None and _fits(q_btnh, segments[0], queries)
    if fits and (kernel := choice()) not in (TILES, PALLAS):
        return [by_kernel(q_btnh, segments[0], scale, kernel)]
    ours = functools.partial(kernel_attention, dtype=q_btnh.dtype if alone else jnp.float32)

    def read(q_btnh: Array, segment: Segment, queries: Visibility, tap: Tap | None) -> Read:
        kernel = kernel_fits(q_btnh, segment) and choice() == PALLAS
        reader = ours if kernel else segment_attention
        return reader(q_btnh, segment, queries, causal=causal, scale=scale, tap=tap)

    return [_read_together(read, q_btnh, segment, queries, tap) for segment in segments]


def _read_together(
    read: Callable[[Array, Segment, Visibility, Tap | None], Read],
    q_btnh: Array,
    segment: Segment,
    queries: Visibility,
    tap: Tap | None,
) -> Read:
    """Reads a segment with the queries of all rows that share its keys as those of one row.

    Three rows of two queries that share keys, a b | c d | e f, are read as a b c d e f. Where a tap
    has gains of each row's own, the keys of the layer are copied to all rows instead.
    """
    rows = q_btnh.shape[0]
    if segment.sharing(rows) == 1:
        return read(q_btnh, segment, queries, tap)
    if tap is not None and tap.rows_bt is not None and _rows_of_gains(tap) > 1:
        return read(q_btnh, segment.apart(rows), queries, tap)
    join = lambda a: a.reshape(segment.k_bksh.shape[0], -1, *a.shape[2:])
    if tap is not None and tap.rows_bt is not None:
        tap = dataclasses.replace(tap, rows_bt=join(tap.rows_bt))
    keys, kinds_bs = jax.tree.map(segment.of_keys, (segment.keys, segment.kinds_bs))
    own = dataclasses.replace(segment, keys=keys, kinds_bs=kinds_bs)
    found = read(join(q_btnh), own, jax.tree.map(join, queries), tap)
    return jax.tree.map(lambda a: a.reshape(rows, -1, *a.shape[2:]), found)


def _rows_of_gains(tap: Tap) -> int:
    return max(leaf.shape[0] for leaf in (tap.image_bn, tap.system_bn))


def _fits(q_btnh: Array, segment: Segment, queries: Visibility) -> bool:
    width = q_btnh.shape[-1]
    one_width = segment.values_bksh.shape[-1] == width
    heads_fit = one_width and width % 8 == 0 and width <= _LARGEST_HEAD
    return heads_fit and q_btnh.dtype in (jnp.bfloat16, jnp.float16) and queries.group is None


def by_kernel(
    q_btnh: Float[Array, "B T N H"], segment: Segment, scale: float | None, kernel: str
) -> Read:
    """Reads a causal segment by one of the implementations of `jax.nn.dot_product_attention`."""
    out_btnh, lse_btn = jax.nn.dot_product_attention(
        q_btnh,
        segment.k_bksh.transpose(0, 2, 1, 3),
        segment.values_bksh.transpose(0, 2, 1, 3),
        scale=scale,
        is_causal=True,
        implementation=kernel,  # type: ignore[arg-type]
        return_residual=True,
    )
    return Read(out_btnh.astype(jnp.float32), lse_btn.astype(jnp.float32))


def choice() -> str:
    """How segments are read here, "pallas", "cudnn" or "tiles"; tried and logged at first use.

    Here is where the program that is being traced will run: on the mesh in scope, if there is one.
    A kernel of ours cannot be split by the partitioner, so that several TPUs without a mesh in
    scope read in tiles.
    """
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    platform = jax.default_backend() if device is None else platform_of(device)
    if platform == "tpu" and mesh.empty and jax.device_count() > 1:
        return TILES
    return _tried(platform)


def platform_of(device: Any) -> str:
    """Returns the platform of an abstract device; that of jax 0.10.0 says its kind alone.

    "TPU v5 lite" is of "tpu", "cpu" of "cpu", "NVIDIA H200" of "gpu".
    """
    first = device.device_kind.split()[0].lower()
    return getattr(device, "platform", first if first in ("cpu", "tpu") else "gpu")


@functools.cache
def _tried(platform: str) -> str:
    kernel, name = _KERNELS.get(platform, (TILES, ""))
    if kernel == TILES:
        return TILES
    if platform != jax.default_backend():
        logging.info("Prompts will attend by %s, which cannot be tried here.", name)
        return kernel
    reason = fault(kernel)
    if reason:
        logging.info("Prompts attend in tiles: %s %s.", name, reason)
        return TILES
    logging.info("Prompts attend by %s.", name)
    return kernel


def fault(kernel: str) -> str:
    """Says what is wrong with a kernel on this machine; empty if it gives what the tiles give.

    A thread of its own tries it, since this one may be tracing a program, for another mesh.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        try:
            apart = thread.submit(_apart, kernel).result()
        except Exception as error:  # whatever a missing or an old library makes of it
            said = str(error) or type(error).__name__
            return f"does not run here ({said.splitlines()[0]})"
    if all(far <= allowed for far, allowed in zip(apart, _TOLERANCE)):
        return ""
    return f"is {max(apart):.2g} from the tiles' result"


def _apart(kernel: str) -> list[float]:
    """Returns how far a kernel's output, log-sum-exp and shares are from those of the tiles."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.bfloat16)
    places = jnp.arange(256, dtype=jnp.int32)[None]
    queries, kinds = Visibility(order=places), jnp.where(places < 99, Kind.IMAGE, Kind.TEXT)
    k_bksh, v_bksh = draw(1, 2, 256, 64), draw(1, 2, 256, 64)
    segment = Segment(k_bksh, v_bksh, queries, kinds.astype(jnp.int8))
    q_btnh, tap = draw(1, 256, 4, 64), None
    if kernel == PALLAS:
        gains = jnp.full((1, 4), 1.5, jnp.float32)
        # Not from the first row on: of its map zero trace leaves nothing but rounding.
        project = CausalProjection(gains, gains / 2, (places > 64) & (places < 255))
        tap = Tap(places > 128, gains, gains, True, True, True, project)
        found = kernel_attention(q_btnh, segment, queries, causal=True, tap=tap)
    else:
        found = by_kernel(q_btnh, segment, None, kernel)
    expected = segment_attention(q_btnh, segment, queries, causal=True, tap=tap)
    if tap is not None and tap.projection is not None:
        expected = _projected(expected, q_btnh, segment, tap.projection)
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return [float(jnp.max(jnp.abs(one - other))) for one, other in pairs]


def _projected(read: Read, q_btnh: Array, segment: Segment, projection: CausalProjection) -> Read:
    """Returns what was read in tiles, projected, with each row's weight on its own key."""
    own_btn = own_weights(q_btnh, segment.k_bksh, read.lse_btn)
    rows = counted(own_btn, read.squares_btn, projection.rows_bt)
    running = [jnp.cumsum(a, axis=1) for a in rows]
    out_btnh = project_causal(
        read.out_btnh, segment.values_bksh, 0.0, running, projection, dtype=read.out_btnh.dtype
    )
    return dataclasses.replace(read, out_btnh=out_btnh, own_btn=own_btn)
