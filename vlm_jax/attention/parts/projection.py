"""Projection of the attention map: zero trace, Frobenius rescale, shrinkage to the mean (AIR)."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vlm_jax.attention.blockwise import Tap
from vlm_jax.attention.causal_projection import (
    CausalProjection,
    counted,
    frobenius_scale,
    own_weights,
    project_causal,
)
from vlm_jax.attention.parts.base import DecodeRow, Part, Prompt, State, Values, choice, host, part
from vlm_jax.attention.segment import Segment, Visibility, kinds_of
from vlm_jax.batch import Kind

NAME = "projection"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moments:
    """Trace, squares and sums of the attention rows of a head so far; float32 [B, N]."""

    trace_bn: Float[Array, "B N"]
    squares_bn: Float[Array, "B N"]
    sums_bn: Float[Array, "B N"]

    def __add__(self, other: "Moments") -> "Moments":
        return jax.tree.map(jnp.add, self, other)


@part
class Projection(Part):
    """Zero trace, Frobenius rescale and shrinkage to the mean by `beta`, in heads with `on` > 0.

    With A the n x n map of the rows read so far (n real keys), as the parts before left them: zero
    trace is A - tr(A)/n I, the rescale multiplies by ||A|| / ||A - tr(A)/n I|| (see
    `frobenius_scale`), and shrinkage is (1 - beta) A + beta mean(A). A row that shrinks only does
    so to its own mean over the keys it sees; beta 0 is then the identity. Zero trace has none.

    Attributes:
        zero_trace: at decode rows, "skip" shrinks only; "running" takes the last row of the
            projected map of all rows up to it, each frozen as it was when it was read.
        prefill: rows before the last prompt row: "off" leaves them; "causal" treats each as
            "running" would, with the map of the rows up to it; "official" projects all prompt rows,
            the last one too, with the map of the whole prompt and puts beta mean(A) on later keys
            also (as the released AIR* does, for replication only).
    """

    on: Values
    beta: Values
    zero_trace: Literal["skip", "running"] = choice(default="skip", words=("skip", "running"))
    prefill: Literal["off", "causal", "official"] = choice(
        default="off", words=("off", "causal", "official")
    )

    identity: ClassVar[Mapping[str, float]] = {"on": 0, "beta": 0}

    @property
    def counts(self) -> bool:
        """Whether traces and norms of the rows read so far are needed."""
        return self.zero_trace == "running" or self.prefill != "off"

    @property
    def touches_row(self) -> bool:
        """See `Part.touches_row`."""
        return True

    def acts(self):
        """See `Part.acts`."""
        return (host(self.on) > 0) & (self.counts | (host(self.beta) != 0))

    @property
    def on_prefix(self) -> bool:
        """See `Part.on_prefix`."""
        return self.counts

    @property
    def whole_prompts(self) -> str | None:
        """See `Part.whole_prompts`."""
        if self.prefill == "official":
            return "A projection with prefill='official' puts later keys into all rows of a prompt"
        return None

    @property
    def keeps_rows(self) -> str | None:
        """See `Part.keeps_rows`."""
        if self.zero_trace == "running":
            return "a projection with zero_trace='running' counts all rows; set zero_trace='skip'"
        return None

    def tap(self, prompt: Prompt):
        """See `Part.tap`."""
        if not self.counts:
            return None
        project = None
        if self.prefill == "causal" and _counted_before(prompt) is None:
            project = self._causal(prompt)
        return Tap(squares=True, own=True, projection=project)

    def _causal(self, prompt: Prompt) -> CausalProjection:
        """Returns what becomes of the rows before the last one."""
        counted_bt, last_b = prompt.rows.real_bt, prompt.rows.last_b
        if last_b is not None:
            counted_bt = counted_bt & (jnp.arange(counted_bt.shape[1]) < last_b[:, None])
        return CausalProjection(self.on, self.beta, counted_bt)

    def prompt_rows(self, out_btnh, prompt: Prompt, state: State):
        """Counts the rows before the last one; projects them where `prefill` is "causal".

        Raises:
            ValueError: earlier rows were read by a call that did not count them.
        """
        if not self.counts:
            return out_btnh
        keys = _Keys.of(prompt.segments, out_btnh.shape[1])
        before = _counted_before(prompt)
        if keys.earlier and before is None:
            raise ValueError(
                "A projection with zero_trace='running' or prefill='causal' counts the rows of a "
                "prompt from the first on, but some were read by a call that did not: pass the "
                "state that it returned with the same projection, or read the prompt at once."
            )
        trace_btn = prompt.reads[-1].own_btn
        if trace_btn is None:
            trace_btn = own_weights(prompt.q_btnh, keys.own.k_bksh, prompt.lse_btn, prompt.scale)
        squares = [m * m * read.squares_btn for m, read in zip(prompt.masses, prompt.reads)]
        squares_btn = functools.reduce(jnp.add, squares)
        project = self._causal(prompt)
        read = _Counted(trace_btn, squares_btn, project.rows_bt, before)
        if self.prefill == "causal" and not prompt.reads[-1].projected:
            out_btnh = project_causal(
                out_btnh, keys.own.values_bksh, keys.earlier_values(), read.running(), project,
                dtype=prompt.q_btnh.dtype,
            )  # fmt: skip
        state[NAME] = read.moments()
        return out_btnh

    def weights(self, weights_bns, row: DecodeRow):
        """See `Part.weights`.

        Raises:
            ValueError: the rows before are not known, but zero trace goes on from them.
        """
        moments = row.state.get(NAME)
        if moments is None and self.zero_trace == "running":
            raise ValueError(
                "A projection with zero_trace='running' goes on from the rows before: pass the "
                "state that prefill or the step before returned."
            )
        own_b1s = _own(row.segments, row.queries)
        if moments is not None:
            moments = row.state[NAME] = _count(moments, weights_bns, own_b1s)
        if row.prompt is not None and self.prefill == "official":
            return weights_bns  # `prompt_end` projects it with all other rows
        projected, touched = _project(self, weights_bns, row.keys.visible_b1s, own_b1s, moments)
        row.change(touched)
        return jnp.where(touched[..., None], projected, weights_bns)

    def prompt_end(self, out_btnh, prompt: Prompt, row: DecodeRow):
        """Projects all rows where `prefill` is "official"."""
        if self.prefill == "official":
            values = _Keys.of(prompt.segments, out_btnh.shape[1]).own.values_bksh
            out_btnh = _project_official(out_btnh, values, row.state[NAME], prompt, self)
        if self.zero_trace == "skip":
            row.state.pop(NAME, None)
        return out_btnh


def _counted_before(prompt: Prompt) -> Moments | None:
    """Returns what the calls that read the earlier keys have counted."""
    return None if prompt.before is None else prompt.before.get(NAME)


def _count(moments: Moments, weights, own_b1s) -> Moments:
    """Adds a row to the sums over rows."""
    own = jnp.sum(jnp.where(own_b1s, weights, 0.0), axis=-1)
    return Moments(
        moments.trace_bn + own,
        moments.squares_bn + jnp.sum(weights * weights, axis=-1),
        moments.sums_bn + jnp.sum(weights, axis=-1),
    )


def _project(part: Projection, weights, visible_b1s, own_b1s, moments: Moments | None):
    """Returns a row's projected weights, and the heads whose weights they replace."""
    on: Bool[Array, "B N"] = jnp.broadcast_to(part.on > 0, weights.shape[:2])
    beta = part.beta[..., None]
    count = jnp.sum(visible_b1s, axis=-1).astype(weights.dtype)  # [B, 1]
    if part.zero_trace == "skip" or moments is None:
        mean = (jnp.sum(weights, axis=-1) / count)[..., None]
        edited = (1 - beta) * weights + jnp.where(visible_b1s, beta * mean, 0.0)
        return edited, on & (part.beta != 0)
    eta = frobenius_scale(moments.squares_bn, moments.trace_bn, count)[..., None]
    diagonal = (moments.trace_bn / count)[..., None]
    mean = ((moments.sums_bn - moments.trace_bn) / (count * count))[..., None]
    edited = (1 - beta) * (weights - jnp.where(own_b1s, diagonal, 0.0))
    edited = eta * (edited + jnp.where(visible_b1s, beta * mean, 0.0))
    return edited, on


def _own(segments: Sequence[Segment], queries: Visibility) -> Array:
    """Which key is the row's own, [B, 1, S]: the one of its order."""
    assert queries.order is not None
    orders = [segment.keys.order for segment in segments]
    assert all(order is not None for order in orders)
    return jnp.concatenate(orders, axis=-1)[:, None] == queries.order[:, :, None]  # type: ignore[arg-type]


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

    def earlier_values(self) -> Array | float:
        """Sum of the earlier values, [B, K, 1, H]."""
        total: Array | float = 0.0
        rows = self.own.k_bksh.shape[0]
        for segment in self.earlier:
            real = (segment.of_keys(kinds_of(segment)) != Kind.PAD)[:, None, :, None]
            values = segment.values_bksh.astype(
                jnp.promote_types(segment.values_bksh.dtype, jnp.float32)
            )
            summed = jnp.sum(jnp.where(real, values, 0.0), axis=2)
            total = total + jnp.repeat(summed, segment.sharing(rows), axis=0)[:, :, None]
        return total


@dataclasses.dataclass(frozen=True)
class _Counted:
    """Traces and squares of each row, the rows before the last, and those of earlier calls."""

    trace_btn: Array
    squares_btn: Array
    first_bt: Array
    earlier: Moments | None

    def _first(self) -> list[Array]:
        """Returns traces, squares and counts [B, T, N], zero from the last row on."""
        return counted(self.trace_btn, self.squares_btn, self.first_bt)

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


def _project_official(out, v_bksh, moments: Moments, prompt: Prompt, part) -> Array:
    """Projects all rows with the traces and norms of the whole prompt, later rows included."""
    count = jnp.sum(prompt.rows.real_bt, axis=1).astype(out.dtype)[:, None]
    eta = frobenius_scale(moments.squares_bn, moments.trace_bn, count)
    values = _heads(v_bksh, out.shape[2]).astype(out.dtype)
    summed = jnp.sum(
        jnp.where(prompt.rows.real_bt[..., None, None], values, 0.0), axis=1, keepdims=True
    )
    mean = (moments.sums_bn - moments.trace_bn) / (count * count)
    wide = lambda a: a[:, None, :, None]
    edited = wide((1 - part.beta) * eta) * (out - wide(moments.trace_bn / count) * values)
    edited = edited + wide(part.beta * eta * mean) * summed
    return jnp.where(wide(part.on > 0) & prompt.rows.real_bt[..., None, None], edited, out)
