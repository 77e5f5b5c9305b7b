"""The attention function that every layer of every tower calls once."""

import functools
from collections.abc import Sequence
from typing import overload

import jax
from jaxtyping import Array, Float

from vlm_jax.attention.fused import read_segments
from vlm_jax.attention.prefill import steered_prefill
from vlm_jax.attention.row import row_attention, steered_row
from vlm_jax.attention.segment import Segment, Visibility, merge
from vlm_jax.attention.steering import Readings, Rows, State, Steering


@functools.partial(jax.jit, static_argnames=("causal", "scale"), inline=True)
def _unsteered(q_btnh, segments, queries, causal, scale):
    if q_btnh.shape[1] == 1 and not causal:
        return row_attention(q_btnh, segments, queries, scale)
    reads = read_segments(q_btnh, segments, queries, causal=causal, scale=scale)
    return merge([read.out_btnh for read in reads], [read.lse_btn for read in reads])[0]


@overload
def attend(
    q_btnh: Array,
    segments: Sequence[Segment],
    queries: Visibility | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    steering: None = None,
    rows: None = None,
    state: None = None,
) -> Array: ...


@overload
def attend(
    q_btnh: Array,
    segments: Sequence[Segment],
    queries: Visibility | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    steering: Steering,
    rows: Rows | None = None,
    state: State | None = None,
) -> tuple[Array, State, Readings]: ...


def attend(
    q_btnh: Float[Array, "B T N H"],
    segments: Sequence[Segment],
    queries: Visibility | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    steering: Steering | None = None,
    rows: Rows | None = None,
    state: State | None = None,
):
    """Attends to segments of keys as if they were one.

    Args:
        q_btnh: queries; query head n reads key head n // (N / K).
        segments: disjoint segments of keys and values.
        queries: order and group of each query; None when every query sees every key.
        causal: queries and the one segment are the same places in the same order, padded on the
            right, if at all, so that what is above the diagonal may be skipped.
        scale: factor on the logits; H ** -0.5 when None.
        steering: what to do to this layer's heads and masses (leaves [b, N]); None is the vanilla
            function, and identity values give its bits.
        rows: with steering, which rows of a prompt are text, last or padding; None for decode rows
            (T = 1).
        state: with steering, what the layer's parts keep from earlier calls; None where there are
            none, as when a prompt is read at once.

    Returns:
        The output in the queries' dtype; with steering also the new state and the readings of the
        decode row. Softmax and sums are float32 or wider.
    """
    queries = queries or Visibility()
    if steering is None:
        return _unsteered(q_btnh, segments, queries, causal, scale).astype(q_btnh.dtype)
    if rows is not None:
        out, state, readings = steered_prefill(
            q_btnh, segments, queries, steering, rows, before=state, causal=causal, scale=scale
        )
    else:
        out, state, readings = steered_row(q_btnh, segments, queries, steering, state or {}, scale)
    return out.astype(q_btnh.dtype), state, readings
