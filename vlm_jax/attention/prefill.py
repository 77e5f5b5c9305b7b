"""Steered attention of a prompt: tiles for all rows, one edited row a sample for the last."""

import dataclasses
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vlm_jax.attention.blockwise import Tap
from vlm_jax.attention.fused import read_segments
from vlm_jax.attention.parts.base import Part, Prompt
from vlm_jax.attention.row import read_row, readings_of
from vlm_jax.attention.segment import Segment, Visibility, by_key_head, merge
from vlm_jax.attention.steering import Readings, Rows, State, Steering


def steered_prefill(
    q_btnh: Float[Array, "B T N H"],
    segments: Sequence[Segment],
    queries: Visibility,
    steering: Steering,
    rows: Rows,
    *,
    before: State | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> tuple[Float[Array, "B T N O"], State, Readings]:
    """Attends with all rows of prompts, steered.

    Args:
        segments: the keys; the last ones are the queries' own, those before were read earlier.
        steering: of this layer.
        rows: what the queries are.
        before: what the calls that read the earlier keys returned, or None.

    Returns:
        The output, the state that later calls continue from, and what happened in the last row
        (nothing where prompts go on in another call).

    Raises:
        ValueError: a part needs earlier rows that nobody has counted or that may not be changed
            any more, or the last row where prompts go on.
    """
    if rows.last_b is None:
        steering.check_shares_prefix()
    parts = steering.parts.values()
    prompt = Prompt(q_btnh, segments, queries, rows, scale, before)
    for part in parts:
        prompt.q_btnh = part.queries(prompt.q_btnh, prompt)
    tap = _tap(parts, prompt)
    prompt.reads = read_segments(
        prompt.q_btnh, segments, queries, causal=causal, scale=scale, tap=tap
    )
    out, prompt.lse_btn = merge(
        [read.out_btnh for read in prompt.reads], [read.lse_btn for read in prompt.reads]
    )
    state: State = {}
    for part in parts:
        out = part.prompt_rows(out, prompt, state)
    if rows.last_b is None:
        return out, state, Readings.none(out.shape[0], out.shape[2])

    pick = lambda a: jnp.take_along_axis(a, _column(rows.last_b, a.ndim), axis=1)
    q_b1nh = _last_queries(prompt.q_btnh, segments[-1].k_bksh.shape[1], rows.last_b)
    of_last = jax.tree.map(pick, queries)
    last, row = read_row(q_b1nh, segments, of_last, steering, state, scale, prompt)
    if steering.touches_row:
        put_bt1n = prompt.is_last_bt1 & row.changed_bn[:, None]
        out = jnp.where(put_bt1n[..., None], last, out)
    for part in parts:
        out = part.prompt_end(out, prompt, row)
    return out, row.state, readings_of(row)


def _tap(parts: Iterable[Part], prompt: Prompt) -> Tap | None:
    """Returns what parts ask of the reader; it projects rows if no part changes them before."""
    found, changed = [], False
    for part in parts:
        tap = part.tap(prompt)
        if tap is not None:
            found.append(dataclasses.replace(tap, projection=None) if changed else tap)
        changed |= type(part).prompt_rows is not Part.prompt_rows
    return Tap.together(found)


def _column(index_b: Array | None, dims: int) -> Array:
    assert index_b is not None
    return index_b.reshape(-1, *([1] * (dims - 1)))


def _last_queries(q_btnh: Array, kv_heads: int, last_b: Array | None) -> Array:
    """Returns each sample's query of its last row, [B, 1, N, H].

    It is picked head by head from the layout in which the kernel reads queries: for rows of any
    other, XLA first copies the queries of all rows.
    """
    batch, _, heads, dim = q_btnh.shape
    q_bkgth = by_key_head(q_btnh, kv_heads)
    at_bkg11 = jnp.broadcast_to(_column(last_b, q_bkgth.ndim), (*q_bkgth.shape[:3], 1, 1))
    return jnp.take_along_axis(q_bkgth, at_bkg11, axis=3).reshape(batch, 1, heads, dim)
