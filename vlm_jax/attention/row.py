"""One query row a sample: the whole row of weights fits, so it is edited as it is."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vlm_jax.attention.parts.base import DecodeRow, Prompt, RowKeys
from vlm_jax.attention.segment import MASKED, Segment, Visibility
from vlm_jax.attention.steering import Readings, State, Steering


def row_logits(
    q_b1nh: Float[Array, "B 1 N H"],
    segments: Sequence[Segment],
    queries: Visibility,
    scale: float | None = None,
) -> Float[Array, "B N S"]:
    """Returns the masked logits of one row over the keys of all segments."""
    batch, _, heads, dim = q_b1nh.shape
    kv_heads = segments[0].k_bksh.shape[1]
    q_bkgh = q_b1nh.reshape(batch, kv_heads, heads // kv_heads, dim)
    kind = jnp.promote_types(q_b1nh.dtype, jnp.float32)
    factor = dim**-0.5 if scale is None else scale
    pieces = []
    for segment in segments:
        sharing = segment.sharing(batch)
        logits = factor * _scores(_fold(q_bkgh, sharing), segment.k_bksh, kind)
        logits = _unfold(logits, sharing).reshape(batch, heads, -1)
        visible = queries.sees(segment.keys)
        if visible is not None:
            logits = jnp.where(visible, logits, MASKED)
        pieces.append(logits)
    return jnp.concatenate(pieces, axis=-1) if len(pieces) > 1 else pieces[0]


def _fold(rows_bkgx: Array, sharing: int) -> Array:
    """Returns rows that share keys as further query heads of one row: [B / W, K, W G, ...]."""
    if sharing == 1:
        return rows_bkgx
    rows, kv_heads, group, *rest = rows_bkgx.shape
    apart = rows_bkgx.reshape(-1, sharing, kv_heads, group, *rest)
    return jnp.moveaxis(apart, 1, 2).reshape(rows // sharing, kv_heads, sharing * group, *rest)


def _unfold(rows_bkgx: Array, sharing: int) -> Array:
    """Returns the rows of `_fold` as rows again: [B, K, G, ...]."""
    if sharing == 1:
        return rows_bkgx
    rows, kv_heads, group, *rest = rows_bkgx.shape
    apart = rows_bkgx.reshape(rows, kv_heads, sharing, group // sharing, *rest)
    return jnp.moveaxis(apart, 2, 1).reshape(rows * sharing, kv_heads, group // sharing, *rest)


@functools.partial(jax.jit, static_argnames="kind", inline=True)
def _scores(q_bkgh: Array, k_bksh: Array, kind: jnp.dtype) -> Array:
    """Products of the row's queries with the keys, [B, K, G, S].

    XLA's CPU backend runs a batch of narrow matrix products on one core, but a batch of
    matrix-vector products on all of them; reading a key once for each of its few query heads then
    costs less than the idle cores. Many heads on one sample are better read together.

    A key head's only query: see `_in_pairs`.
    """
    together = lambda q, k: jnp.einsum("bkgh,bksh->bkgs", q, k, preferred_element_type=kind)
    batch, _, group, _ = q_bkgh.shape
    if group == 1:
        return _in_pairs(together, q_bkgh, k_bksh)
    if group > 2 * batch:
        return together(q_bkgh, k_bksh)

    def apart(q: Array, k: Array) -> Array:
        one = lambda head: jnp.einsum("bkh,bksh->bks", head, k, preferred_element_type=kind)
        return jnp.stack([one(q[:, :, index]) for index in range(group)], axis=2)

    return jax.lax.platform_dependent(q_bkgh, k_bksh, cpu=apart, default=together)


def _in_pairs(product: Callable[[Array, Array], Array], one_bkgx: Array, read: Array) -> Array:
    """Returns products of one row for each key head, G = 1, with what is read of that head.

    On TPU the vector unit would make them, by the compiler's estimate at a quarter of the memory's
    rate and less. With a second row beside the one they are products of matrices.
    """
    twice = lambda one, read: product(jnp.repeat(one, 2, axis=2), read)[:, :, :1]
    return jax.lax.platform_dependent(one_bkgx, read, tpu=twice, default=product)


@functools.partial(jax.jit, static_argnames="kind", inline=True)
def _values(weights_bkgs: Array, v_bksh: Array, kind: jnp.dtype) -> Array:
    """Sums of the values under the row's weights, [B, K, G, H]."""
    together = lambda w, v: jnp.einsum("bkgs,bksh->bkgh", w, v, preferred_element_type=kind)
    if weights_bkgs.shape[2] == 1:
        return _in_pairs(together, weights_bkgs, v_bksh)
    return together(weights_bkgs, v_bksh)


def row_values(
    weights_bns: Float[Array, "B N S"], segments: Sequence[Segment]
) -> Float[Array, "B 1 N O"]:
    """Sums the values of all segments under one row of weights; float32 or wider."""
    batch, heads, _ = weights_bns.shape
    out, start = None, 0
    for segment in segments:
        kv_heads, length, dim = segment.values_bksh.shape[1:]
        piece = weights_bns[..., start : start + length]
        piece = piece.reshape(batch, kv_heads, heads // kv_heads, length)
        sharing = segment.sharing(batch)
        folded = _fold(piece.astype(segment.values_bksh.dtype), sharing)
        read = _values(folded, segment.values_bksh, weights_bns.dtype)
        read = _unfold(read, sharing).reshape(batch, 1, heads, dim)
        out = read if out is None else out + read
        start += length
    assert out is not None
    return out


def row_attention(
    q_b1nh: Float[Array, "B 1 N H"],
    segments: Sequence[Segment],
    queries: Visibility,
    scale: float | None = None,
) -> Float[Array, "B 1 N O"]:
    """Attends with one row a sample, unsteered."""
    logits = row_logits(q_b1nh, segments, queries, scale)
    return row_values(jax.nn.softmax(logits, axis=-1), segments)


def read_row(
    q_b1nh: Float[Array, "B 1 N H"],
    segments: Sequence[Segment],
    queries: Visibility,
    steering: Steering,
    state: State,
    scale: float | None = None,
    prompt: Prompt | None = None,
) -> tuple[Float[Array, "B 1 N O"], DecodeRow]:
    """Attends with one decode row a sample, with all that parts do to logits and weights.

    Args:
        steering: of this layer.
        state: what parts remember of the rows before this one.
        prompt: whose last row this is; None for a generated row.

    Returns:
        The output, before parts change it, and what became of the row.
    """
    row = DecodeRow(segments, queries, RowKeys.of(segments, queries), dict(state), prompt)
    logits = row_logits(q_b1nh, segments, queries, scale)
    row.changed_bn = jnp.zeros(logits.shape[:2], bool)
    for part in steering.parts.values():
        logits = part.logits(logits, row)
    row.lse_bn = jax.nn.logsumexp(logits, axis=-1)
    weights = jax.nn.softmax(logits, axis=-1)
    mass = lambda chosen: jnp.sum(jnp.where(chosen, weights, 0.0), axis=-1)
    row.image_bn, row.text_bn, row.system_bn = (
        mass(chosen) for chosen in (row.keys.image_b1s, row.keys.text_b1s, row.keys.system_b1s)
    )
    for part in steering.parts.values():
        weights = part.weights(weights, row)
    return row_values(weights, segments), row


def steered_row(
    q_b1nh: Float[Array, "B 1 N H"],
    segments: Sequence[Segment],
    queries: Visibility,
    steering: Steering,
    state: State,
    scale: float | None = None,
) -> tuple[Float[Array, "B 1 N O"], State, Readings]:
    """Attends with one generated row a sample, steered.

    Args:
        steering: of this layer.
        state: what parts remember of the rows before this one.

    Returns:
        The output, the state with this row added, and what happened.
    """
    out, row = read_row(q_b1nh, segments, queries, steering, state, scale)
    for part in steering.parts.values():
        out = part.output(out, row)
    return out, row.state, readings_of(row)


def readings_of(row: DecodeRow) -> Readings:
    """Returns what happened in a row."""
    return Readings.of((row.image_bn, row.text_bn, row.system_bn), row.flags)
