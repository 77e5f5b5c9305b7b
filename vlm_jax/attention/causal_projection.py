"""Projection of each row of a causal attention map with traces and norms of the rows up to it.

With A the map, and of the rows up to row i their number n, their trace t and eta, their Frobenius
rescale, row i becomes

    (1 - beta) eta (A_i - t / n I_i) + beta eta (n - t) / n^2 L_i

where I is the identity and L has ones up to the diagonal; its output, without the map,

    scale (out_i - own v_i) + level sum_{s <= i} v_s

Here by XLA, from rows that were read; on TPUs the attention kernel does it while it reads them
(`pallas_projection`), where they see no other segment.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vlm_jax.attention.segment import by_key_head

EPSILON = 1e-8
"""Added to what both rescales of AIR* divide by, as released."""

LARGEST_SCALE = 8.0
"""Limit of the Frobenius rescale. The map of a prompt's first few rows is nearly diagonal, the
first row's is: all that zero trace leaves of it is rounding, which must not be blown up. Maps of
whole prompts are far from it (about 1.01 to 1.1)."""

_BLOCK = 128
"""Rows whose running sums one product makes."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CausalProjection:
    """How rows are projected.

    Attributes:
        on_bn: heads that are, > 0.
        beta_bn: how far their rows move to their mean.
        rows_bt: rows that are counted and projected; others are left as they are.
    """

    on_bn: Float[Array, "b N"]
    beta_bn: Float[Array, "b N"]
    rows_bt: Bool[Array, "B T"]


def frobenius_scale(squares: Array, trace: Array, count: Array) -> Array:
    """Returns sqrt(||A||^2 / ||A - tr(A)/n I||^2), at most `LARGEST_SCALE`.

    Args:
        squares: ||A||^2.
        trace: tr(A).
        count: n.
    """
    rest = jnp.maximum(squares - trace * trace / count, 0.0)
    return jnp.minimum(jnp.sqrt(squares / (rest + EPSILON)), LARGEST_SCALE)


def factors(trace: Array, squares: Array, count: Array, beta: Array) -> tuple[Array, Array, Array]:
    """Returns scale, own and level of rows, from sums over the rows up to each."""
    count = jnp.maximum(count, 1.0)
    eta = frobenius_scale(squares, trace, count)
    mean = (count - trace) / (count * count)
    return (1 - beta) * eta, trace / count, beta * eta * mean


def counted(trace_btn: Array, squares_btn: Array, rows_bt: Array) -> list[Array]:
    """Returns traces, squares and numbers [B, T, N] of rows, zero of those that are not counted."""
    values = trace_btn, squares_btn, jnp.ones_like(trace_btn)
    return [jnp.where(rows_bt[..., None], a, 0.0) for a in values]


def own_weights(
    q_btnh: Array, k_bkth: Array, lse_btn: Array, scale: float | None = None
) -> Float[Array, "B T N"]:
    """Returns each row's weight on its own key.

    Rows whose logits have gains are text, and the logits of text keys have none.
    """
    batch, length, heads, dim = q_btnh.shape
    kv_heads = k_bkth.shape[1]
    kind = jnp.promote_types(q_btnh.dtype, jnp.float32)
    logits = jnp.einsum(
        "btkgh,bkth->btkg",
        q_btnh.reshape(batch, length, kv_heads, heads // kv_heads, dim),
        k_bkth,
        preferred_element_type=kind,
    ).reshape(batch, length, heads)
    return jnp.exp(logits * (dim**-0.5 if scale is None else scale) - lse_btn)


def project_causal(
    out_btnh: Float[Array, "B T N H"],
    v_bksh: Float[Array, "B K T H"],
    earlier: Array | float,
    running: Sequence[Float[Array, "B T N"]],
    projection: CausalProjection,
    *,
    dtype: Any,
) -> Float[Array, "B T N H"]:
    """Returns rows projected, in the dtype of `out_btnh`.

    Arrays are laid out as kernels write rows, by key head and group, in blocks of rows, so that
    values are spread to no query head. Sums of the values up to a row are those of the blocks
    before, and within its block a product with a triangle of ones. Barriers keep compilers from
    storing the values, and the rows on their way to the output's product, as float32 as well.

    Args:
        out_btnh: the rows as they were read.
        v_bksh: the values of their own keys.
        earlier: sum of the values that all rows see beside these, [B, K, 1, H].
        running: traces, squares and numbers of the rows up to each.
        projection: how they are projected.
        dtype: to which they are rounded on their way to the output's product.
    """
    v_bksh = jax.lax.optimization_barrier(v_bksh)
    batch, length, heads, dim = out_btnh.shape
    kv_heads, kind = v_bksh.shape[1], out_btnh.dtype
    size = math.gcd(length, _BLOCK)
    blocks = length // size
    rows = (batch, kv_heads, heads // kv_heads, blocks, size)
    by_head = lambda a: by_key_head(a, kv_heads).reshape(*rows, -1)
    out = by_head(out_btnh)
    trace, squares, count = (by_head(a[..., None]) for a in running)
    per_head = lambda a: jnp.broadcast_to(a, (batch, heads)).reshape(*rows[:3], 1, 1, 1)
    on = per_head(projection.on_bn > 0)
    scale, own, level = factors(trace, squares, count, per_head(projection.beta_bn))
    real = projection.rows_bt.reshape(batch, 1, blocks, size, 1)
    values = v_bksh.reshape(batch, kv_heads, blocks, size, dim)
    within = jnp.einsum(
        "ts,bknsh->bknth",
        jnp.tril(jnp.ones((size, size), values.dtype)),
        jnp.where(real, values, 0),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=kind,
    )
    before = jnp.cumsum(jnp.pad(within[:, :, :-1, -1], ((0, 0), (0, 0), (1, 0), (0, 0))), axis=2)
    before = (before + earlier)[:, :, None, :, None]
    edited = scale * (out - own * values[:, :, None].astype(kind))
    edited = edited + level * (within[:, :, None] + before)
    edited = jnp.where(on & real[:, :, None], edited, out)
    edited = jax.lax.optimization_barrier(edited.astype(dtype)).astype(kind)
    return jnp.moveaxis(edited.reshape(batch, heads, length, dim), 1, 2)
