"""Steered attention of a prompt: tiles for all rows, one edited row a sample for the last."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vlm_jax.attention.blockwise import Tap
from vlm_jax.attention.fused import read_segments
from vlm_jax.attention.row import RowKeys, steered_row
from vlm_jax.attention.segment import Segment, Visibility, kinds_of, merge
from vlm_jax.attention.steering import (
    EnergyRescale,
    Moments,
    Readings,
    Rows,
    State,
    Steering,
    VisualGains,
    energy_factors,
    frobenius_scale,
    visual_gain,
)
from vlm_jax.batch import Kind


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
) -> tuple[Float[Array, "B T N H"], State, Readings]:
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
        ValueError: a projection needs earlier rows that nobody has counted or may not be changed
            any more, or a part needs the last row where prompts go on.
    """
    part, last_b = steering.projection, rows.last_b
    counts = part is not None and part.counts
    keys = _Keys.of(segments, q_btnh.shape[1])
    counted = None if before is None else before.moments
    _check(steering, goes_on=last_b is None, uncounted=bool(keys.earlier) and counted is None)
    rescaled = steering.energy_rescale is not None and steering.energy_rescale.prefill == "official"
    if steering.energy_rescale is not None and rescaled:
        q_btnh = _rescale(steering.energy_rescale, q_btnh, segments, rows, scale)
    averages = steering.visual_gains is not None and steering.visual_gains.rows == "q"
    tap = _tap(steering, rows, masses=averages, squares=counts)
    reads = read_segments(q_btnh, segments, queries, causal=causal, scale=scale, tap=tap)
    out, lse = merge([read.out_btnh for read in reads], [read.lse_btn for read in reads])
    mass = [jnp.exp(read.lse_btn - lse) for read in reads]

    moments = None
    if part is not None and counts:
        trace_btn = jnp.exp(_diagonal(q_btnh, keys.own, scale) - lse)
        squares_btn = _sum(m * m * r.squares_btn for m, r in zip(mass, reads))
        first_bt = rows.real_bt
        if last_b is not None:
            first_bt = first_bt & (jnp.arange(out.shape[1]) < last_b[:, None])
        read = _Counted(trace_btn, squares_btn, first_bt, counted)
        if part.prefill == "causal":
            out = _project_causal(out, keys, read, part)
        moments = read.moments()
    if last_b is None:
        return out, State(moments), Readings.none(out.shape[0], out.shape[2])

    pick = lambda a: jnp.take_along_axis(a, _column(last_b, a.ndim), axis=1)
    last_queries = jax.tree.map(pick, queries)
    official = part is not None and part.prefill == "official"
    row, changed, state, readings = steered_row(
        pick(q_btnh),
        segments,
        last_queries,
        steering,
        State(moments),
        scale,
        gained_b=pick(rows.after_image_bt)[:, 0],
        project=not official,
        rescale=not rescaled,
    )
    is_last = (jnp.arange(out.shape[1]) == last_b[:, None])[..., None]
    if steering.touches_row:
        out = jnp.where((is_last & changed[:, None])[..., None], row, out)
    if part is not None and official:
        out = _project_official(out, keys.own.v_bksh, state.moments, rows, part)
    if part is not None and part.zero_trace == "skip":
        state = dataclasses.replace(state, moments=None)

    if steering.visual_gains is not None:
        image_bn, known_b = readings.image_bn, RowKeys.of(segments, last_queries).has_image_b
        if averages:
            image_btn = _sum(m * r.image_btn for m, r in zip(mass, reads))
            image_btn = jnp.where(is_last, image_bn[:, None], image_btn)
            image_bn = _mean(image_btn, rows.after_image_bt)
            known_b = jnp.any(rows.after_image_bt, axis=1)
        gain, state, readings = _classify(steering.visual_gains, image_bn, known_b, state, readings)
        out = out * gain[:, None, :, None]
    return out, state, readings


def _classify(
    part: VisualGains, image_bn: Array, known_b: Array, state: State, readings: Readings
) -> tuple[Array, State, Readings]:
    """Returns the heads' gains by their visual ratio, remembered and reported."""
    gain, perception, reasoning = visual_gain(part, image_bn, known_b)
    readings = dataclasses.replace(
        readings,
        perception_bn=perception.astype(jnp.float32),
        reasoning_bn=reasoning.astype(jnp.float32),
    )
    if part.mode == "prefill_cached":
        state = dataclasses.replace(
            state, gain_bn=gain, perception_bn=perception, reasoning_bn=reasoning
        )
    return gain, state, readings


def _rescale(
    part: EnergyRescale,
    q_btnh: Array,
    segments: Sequence[Segment],
    rows: Rows,
    scale: float | None,
) -> Array:
    """Returns queries whose logits have the energy that is asked for.

    The energy of all rows on all keys is the inner product of both Gram matrices, so that nobody
    forms the map: sum_ij (q_i . k_j)^2 = <Q^T Q, K^T K>.
    """
    batch, _, heads, dim = q_btnh.shape
    wide = jnp.promote_types(q_btnh.dtype, jnp.float32)
    gram = lambda letters, real, a: jnp.einsum(
        letters, *[jnp.where(real, a, 0.0).astype(wide)] * 2, precision=jax.lax.Precision.HIGHEST
    )
    q_bnhe = gram("btnh,btne->bnhe", rows.real_bt[..., None, None], q_btnh)
    k_bkhe = _sum(
        gram("bksh,bkse->bkhe", (kinds_of(s) != Kind.PAD)[:, None, :, None], s.k_bksh)
        for s in segments
    )
    kv_heads = k_bkhe.shape[1]
    pairs = q_bnhe.reshape(batch, kv_heads, heads // kv_heads, dim, dim) * k_bkhe[:, :, None]
    factor = 1.0 / dim if scale is None else scale * scale
    energy_bn = factor * jnp.sum(pairs, axis=(3, 4)).reshape(batch, heads)
    return (q_btnh * energy_factors(part, energy_bn)[:, None, :, None]).astype(q_btnh.dtype)


def _tap(steering: Steering, rows: Rows, masses: bool, squares: bool) -> Tap | None:
    if steering.logit_gains is None:
        return Tap(masses=masses, squares=squares) if masses or squares else None
    part = steering.logit_gains
    return Tap(rows.after_image_bt, part.image, part.system, masses, squares)


def _column(index_b: Array, dims: int) -> Array:
    return index_b.reshape(-1, *([1] * (dims - 1)))


def _sum(terms: Iterable[Any]) -> Any:
    total = None
    for term in terms:
        total = term if total is None else total + term
    return total


def _mean(values_btn: Array, rows_bt: Array) -> Array:
    """Mean over some rows; 0 where a sample has none."""
    chosen = rows_bt[..., None]
    count = jnp.maximum(jnp.sum(chosen, axis=1), 1)
    return jnp.sum(jnp.where(chosen, values_btn, 0.0), axis=1) / count


def _diagonal(q_btnh: Array, own: Segment, scale: float | None) -> Array:
    """Logits of each row on its own key, [B, T, N].

    Rows whose logits have gains are text, and the logits of text keys have none.
    """
    batch, length, heads, dim = q_btnh.shape
    kv_heads = own.k_bksh.shape[1]
    kind = jnp.promote_types(q_btnh.dtype, jnp.float32)
    logits = jnp.einsum(
        "btkgh,bkth->btkg",
        q_btnh.reshape(batch, length, kv_heads, heads // kv_heads, dim),
        own.k_bksh,
        preferred_element_type=kind,
    ).reshape(batch, length, heads)
    return logits * (dim**-0.5 if scale is None else scale)


def _heads(v_bksh: Array, heads: int) -> Array:
    """Values by query head, [B, S, N, H]."""
    batch, kv_heads, length, dim = v_bksh.shape
    spread = jnp.broadcast_to(v_bksh[:, :, None], (batch, kv_heads, heads // kv_heads, length, dim))
    return spread.reshape(batch, heads, length, dim).transpose(0, 2, 1, 3)


@dataclasses.dataclass(frozen=True)
class _Keys:
    """The keys of a call.

    Attributes:
        own: of the queries.
        earlier: the segments, or parts of them, before those.
    """

    own: Segment
    earlier: tuple[Segment, ...]

    @classmethod
    def of(cls, segments: Sequence[Segment], length: int) -> "_Keys":
        *earlier, last = segments
        before = last.length - length
        if not before:
            return cls(last, tuple(earlier))
        return cls(last.slice(before, length), (*earlier, last.slice(0, before)))

    def earlier_values(self, heads: int) -> Array | float:
        """Sum of the earlier values, by query head, [B, 1, N, H]."""
        total: Array | float = 0.0
        for segment in self.earlier:
            real = (kinds_of(segment) != Kind.PAD)[:, None, :, None]
            values = segment.v_bksh.astype(jnp.promote_types(segment.v_bksh.dtype, jnp.float32))
            summed = jnp.sum(jnp.where(real, values, 0.0), axis=2, keepdims=True)
            total = total + _heads(summed, heads)
        return total


def _check(steering: Steering, goes_on: bool, uncounted: bool) -> None:
    """Raises ValueError where a prompt cannot be read in several calls.

    Args:
        goes_on: whether more rows follow in a later call.
        uncounted: whether there are earlier keys whose rows nobody has counted.
    """
    counts = steering.projection is not None and steering.projection.counts
    if goes_on:
        steering.check_shares_prefix()
    if counts and uncounted:
        raise ValueError(
            "A projection with zero_trace='running' or prefill='causal' counts the rows of a "
            "prompt from the first on, but some were read by a call that did not: pass the state "
            "that it returned with the same projection, or read the prompt at once."
        )


@dataclasses.dataclass(frozen=True)
class _Counted:
    """Traces and squares of each row, the rows before the last, and those of earlier calls."""

    trace_btn: Array
    squares_btn: Array
    first_bt: Array
    earlier: Moments | None

    def _first(self) -> list[Array]:
        """Returns traces, squares and counts [B, T, N], zero from the last row on."""
        values = self.trace_btn, self.squares_btn, jnp.ones_like(self.trace_btn)
        return [jnp.where(self.first_bt[..., None], a, 0.0) for a in values]

    def moments(self) -> Moments:
        """Returns the moments of all rows before the last."""
        own = Moments(*(jnp.sum(a, axis=1) for a in self._first()))
        return own if self.earlier is None else self.earlier + own

    def running(self) -> list[Array]:
        """Returns traces, squares and counts of the rows up to each row, [B, T, N]."""
        own = [jnp.cumsum(a, axis=1) for a in self._first()]
        if self.earlier is None:
            return own
        return [a[:, None] + b for a, b in zip(jax.tree.leaves(self.earlier), own)]


def _project_causal(out, keys: _Keys, read: _Counted, part) -> Array:
    """Projects each row before the last with the traces and norms of the rows up to it."""
    real = read.first_bt[..., None]
    trace, squares, count = read.running()
    count = jnp.maximum(count, 1.0)
    eta = frobenius_scale(squares, trace, count)
    values = _heads(keys.own.v_bksh, out.shape[2]).astype(out.dtype)
    summed = jnp.cumsum(jnp.where(real[..., None], values, 0.0), axis=1)
    summed = summed + keys.earlier_values(out.shape[2])
    beta = part.beta[:, None]
    mean = (count - trace) / (count * count)
    wide = lambda a: a[..., None]
    edited = wide((1 - beta) * eta) * (out - wide(trace / count) * values)
    edited = edited + wide(beta * eta * mean) * summed
    return jnp.where(((part.on > 0)[:, None] & real)[..., None], edited, out)


def _project_official(out, v_bksh, moments: Moments | None, rows: Rows, part) -> Array:
    """Projects all rows with the traces and norms of the whole prompt, later rows included."""
    assert moments is not None
    count = jnp.sum(rows.real_bt, axis=1).astype(out.dtype)[:, None]
    eta = frobenius_scale(moments.squares_bn, moments.trace_bn, count)
    values = _heads(v_bksh, out.shape[2]).astype(out.dtype)
    summed = jnp.sum(jnp.where(rows.real_bt[..., None, None], values, 0.0), axis=1, keepdims=True)
    mean = (moments.sums_bn - moments.trace_bn) / (count * count)
    wide = lambda a: a[:, None, :, None]
    edited = wide((1 - part.beta) * eta) * (out - wide(moments.trace_bn / count) * values)
    edited = edited + wide(part.beta * eta * mean) * summed
    return jnp.where(wide(part.on > 0) & rows.real_bt[..., None, None], edited, out)
