"""Attention to one segment in tiles: an online softmax that never holds the T x S map."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vlm_jax.attention.segment import MASKED, Segment, Visibility

BLOCK = 512
"""Queries and keys of a tile: 512 x 512 float32 logits of a head are 1 MiB, a core's cache."""

_Sums = tuple[Array, Array, Array]  # running maximum, sum of exponentials, weighted values


def segment_attention(
    q_btnh: Float[Array, "B T N H"],
    segment: Segment,
    seen: Visibility,
    *,
    causal: bool = False,
    scale: float | None = None,
    block: int = BLOCK,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
    """Attends to one segment of keys.

    Args:
        q_btnh: queries; query head n reads key head n // (N / K).
        segment: the keys, with what each may be seen by.
        seen: order and group of each query.
        causal: promises that queries and keys are the same places in the same order, so that tiles
            above the diagonal can be skipped. The mask itself always comes from `seen`.
        scale: factor on the logits; H ** -0.5 when None.
        block: queries and keys of a tile.

    Returns:
        The normalised output and the log-sum-exp of the logits, float32 (float64 for float64).
    """
    batch, length, heads, dim = q_btnh.shape
    kv_heads, keys = segment.k_bksh.shape[1], segment.length
    factor = dim**-0.5 if scale is None else scale
    q_bkgth = q_btnh.reshape(batch, length, kv_heads, heads // kv_heads, dim).transpose(
        0, 2, 3, 1, 4
    )
    outs, lses = [], []
    for start in range(0, length, block):
        size = min(block, length - start)
        limit = min(start + size, keys) if causal else keys
        sums = _over_keys(
            q_bkgth[..., start : start + size, :],
            segment if limit == keys else segment.slice(0, limit),
            seen if size == length else seen.slice(start, size),
            factor,
            block,
        )
        top, total, acc = sums
        outs.append(acc / total[..., None])
        lses.append(top + jnp.log(total))
    out = jnp.concatenate(outs, axis=3) if len(outs) > 1 else outs[0]
    lse = jnp.concatenate(lses, axis=3) if len(lses) > 1 else lses[0]
    return (
        out.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, dim),
        lse.transpose(0, 3, 1, 2).reshape(batch, length, heads),
    )


def _over_keys(
    q_bkgth: Array, segment: Segment, seen: Visibility, scale: float, block: int
) -> _Sums:
    """Runs the online softmax over the keys: the ragged rest first, then whole blocks in a scan."""
    blocks, rest = divmod(segment.length, block)
    if rest or not blocks:
        first = segment.slice(blocks * block, rest) if blocks else segment
        sums = _tile(q_bkgth, first, seen, scale)
    else:
        blocks -= 1
        sums = _tile(q_bkgth, segment.slice(blocks * block, block), seen, scale)
    if not blocks:
        return sums

    def step(sums: _Sums, index: Array) -> tuple[_Sums, None]:
        tile = _tile(q_bkgth, segment.slice(index * block, block), seen, scale)
        return _combine(sums, tile), None

    return jax.lax.scan(step, sums, jnp.arange(blocks))[0]


def _tile(q_bkgth: Array, segment: Segment, seen: Visibility, scale: float) -> _Sums:
    kind = jnp.promote_types(q_bkgth.dtype, jnp.float32)
    logits = scale * jnp.einsum(
        "bkgth,bksh->bkgts", q_bkgth, segment.k_bksh, preferred_element_type=kind
    )
    visible = seen.sees(segment.seen)
    if visible is not None:
        logits = jnp.where(visible[:, None, None], logits, MASKED)
    top = jnp.max(logits, axis=-1)
    weights = jnp.exp(logits - top[..., None])
    acc = jnp.einsum(
        "bkgts,bksh->bkgth",
        weights.astype(segment.v_bksh.dtype),
        segment.v_bksh,
        preferred_element_type=kind,
    )
    return top, jnp.sum(weights, axis=-1), acc


def _combine(a: _Sums, b: _Sums) -> _Sums:
    top = jnp.maximum(a[0], b[0])
    fa, fb = jnp.exp(a[0] - top), jnp.exp(b[0] - top)
    return top, fa * a[1] + fb * b[1], fa[..., None] * a[2] + fb[..., None] * b[2]
