"""One query row a sample: the whole row of weights fits, so it is edited as it is."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vlm_jax.attention.segment import MASKED, Segment, Visibility, kinds_of
from vlm_jax.attention.steering import (
    LogitGains,
    Moments,
    Projection,
    Readings,
    Reallocation,
    State,
    Steering,
    energy_factors,
    frobenius_scale,
    visual_gain,
)
from vlm_jax.batch import Kind


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
    """
    together = lambda q, k: jnp.einsum("bkgh,bksh->bkgs", q, k, preferred_element_type=kind)
    batch, _, group, _ = q_bkgh.shape
    if group == 1 or group > 2 * batch:
        return together(q_bkgh, k_bksh)

    def apart(q: Array, k: Array) -> Array:
        one = lambda head: jnp.einsum("bkh,bksh->bks", head, k, preferred_element_type=kind)
        return jnp.stack([one(q[:, :, index]) for index in range(group)], axis=2)

    return jax.lax.platform_dependent(q_bkgh, k_bksh, cpu=apart, default=together)


def row_values(
    weights_bns: Float[Array, "B N S"], segments: Sequence[Segment]
) -> Float[Array, "B 1 N H"]:
    """Sums the values of all segments under one row of weights; float32 or wider."""
    batch, heads, _ = weights_bns.shape
    out, start = None, 0
    for segment in segments:
        kv_heads, length, dim = segment.v_bksh.shape[1:]
        piece = weights_bns[..., start : start + length]
        piece = piece.reshape(batch, kv_heads, heads // kv_heads, length)
        sharing = segment.sharing(batch)
        read = jnp.einsum(
            "bkgs,bksh->bkgh",
            _fold(piece.astype(segment.v_bksh.dtype), sharing),
            segment.v_bksh,
            preferred_element_type=weights_bns.dtype,
        )
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
) -> Float[Array, "B 1 N H"]:
    """Attends with one row a sample, unsteered."""
    logits = row_logits(q_b1nh, segments, queries, scale)
    return row_values(jax.nn.softmax(logits, axis=-1), segments)


def steered_row(
    q_b1nh: Float[Array, "B 1 N H"],
    segments: Sequence[Segment],
    queries: Visibility,
    steering: Steering,
    state: State,
    scale: float | None = None,
    *,
    gained_b: Bool[Array, " B"] | None = None,
    project: bool = True,
    rescale: bool = True,
) -> tuple[Float[Array, "B 1 N H"], Array, State, Readings]:
    """Attends with one decode row a sample, steered, head gains left out.

    Args:
        steering: of this layer.
        state: moments of the rows before this one.
        gained_b: rows that logit gains act on; by default those that see an image key.
        project: False counts the row in the moments and leaves its projection to the caller.
        rescale: False leaves the row's logits at the energy that they have: its queries are
            rescaled.

    Returns:
        The output; which heads' weights were changed at all (bool [B, N]); the state with this row
        added; what happened.
    """
    keys = RowKeys.of(segments, queries)
    logits = row_logits(q_b1nh, segments, queries, scale)
    rescaled = steering.energy_rescale if rescale else None
    if rescaled is not None:
        energy_bn = jnp.sum(jnp.where(keys.visible_b1s, logits * logits, 0.0), axis=-1)
        factor_bn = energy_factors(rescaled, energy_bn)
        logits = jnp.where(keys.visible_b1s, logits * factor_bn[..., None], logits)
    if steering.logit_gains is not None:
        logits = _gain(steering.logit_gains, logits, keys, gained_b)
    if steering.lens is not None:
        shift = jnp.mean(jnp.abs(logits), axis=1, keepdims=True)
        shifted = logits + steering.lens.strength[..., None] * shift
        logits = jnp.where(keys.visible_b1s & keys.image_b1s, shifted, logits)
    weights = jax.nn.softmax(logits, axis=-1)
    mass = lambda chosen: jnp.sum(jnp.where(chosen, weights, 0.0), axis=-1)
    image_bn, text_bn, system_bn = map(mass, (keys.image_b1s, keys.text_b1s, keys.system_b1s))
    changed = fired = jnp.zeros(image_bn.shape, bool)
    edited = weights
    if steering.reallocation is not None:
        edited, fired = _reallocate(steering.reallocation, weights, keys, text_bn, system_bn)
        changed = fired
    moments = state.moments
    if steering.projection is not None:
        if moments is None and steering.projection.zero_trace == "running":
            raise ValueError(
                "A projection with zero_trace='running' goes on from the rows before: pass the "
                "state that prefill or the step before returned."
            )
        own_b1s = _own(segments, queries)
        moments = _count(moments, edited, own_b1s)
        if project:
            projected, touched = _project(
                steering.projection, edited, keys.visible_b1s, own_b1s, moments
            )
            edited = jnp.where(touched[..., None], projected, edited)
            changed = changed | touched
    if steering.reallocation is not None or steering.projection is not None:
        weights = jnp.where(changed[..., None], edited, weights)
    if steering.logit_gains is not None or steering.lens is not None:
        changed = changed | _shifts(steering)
    if rescaled is not None:
        changed = changed | (rescaled.on > 0)
    perception, reasoning = state.perception_bn, state.reasoning_bn
    if perception is None or reasoning is None:
        perception = reasoning = jnp.zeros(image_bn.shape, bool)
        if steering.visual_gains is not None:
            _, perception, reasoning = visual_gain(
                steering.visual_gains, image_bn, keys.has_image_b
            )
    readings = Readings(
        image_bn,
        text_bn,
        system_bn,
        *(flag.astype(jnp.float32) for flag in (fired, perception, reasoning)),
    )
    out = row_values(weights, segments)
    return out, changed, dataclasses.replace(state, moments=moments), readings


@dataclasses.dataclass(frozen=True)
class RowKeys:
    """What the keys of a row are, bool [B, 1, S]; a key that the row does not see is of no kind."""

    visible_b1s: Array
    image_b1s: Array
    text_b1s: Array
    system_b1s: Array

    @classmethod
    def of(cls, segments: Sequence[Segment], queries: Visibility) -> "RowKeys":
        """Reads kinds and orders of all segments."""
        visible = _visible(segments, queries)
        kinds = jnp.concatenate([kinds_of(segment) for segment in segments], axis=-1)[:, None]
        return cls(
            visible, *(visible & (kinds == kind) for kind in (Kind.IMAGE, Kind.TEXT, Kind.SYSTEM))
        )

    @property
    def has_image_b(self) -> Array:
        """Rows that see an image key."""
        return jnp.any(self.image_b1s, axis=(1, 2))


def _gain(part: LogitGains, logits, keys: RowKeys, gained_b) -> Array:
    gained = (keys.has_image_b if gained_b is None else gained_b)[:, None, None]
    gain = jnp.where(keys.image_b1s, part.image[..., None], 1.0)
    gain = jnp.where(keys.system_b1s, part.system[..., None], gain)
    return jnp.where(gained, logits * gain, logits)


def _reallocate(part: Reallocation, weights, keys: RowKeys, text_bn, system_bn):
    text_b1s = keys.text_b1s
    if part.text_includes_system:
        text_b1s = text_b1s | keys.system_b1s
        text_bn = text_bn + system_bn
    if part.trigger_reduce == "batch_sum":
        text_bn = jnp.broadcast_to(jnp.sum(text_bn, axis=0, keepdims=True), text_bn.shape)
    identity = (part.image == 1) & (part.text == 1)
    fired = (text_bn >= part.threshold) & keys.has_image_b[:, None] & ~identity
    factor = jnp.where(text_b1s, part.text[..., None], 1.0)
    factor = jnp.where(keys.image_b1s, part.image[..., None], factor)
    edited = weights * factor
    if part.renormalise:
        total = jnp.sum(edited, axis=-1, keepdims=True)
        edited = jnp.where(total > 0, edited / jnp.where(total > 0, total, 1.0), weights)
    return jnp.where(fired[..., None], edited, weights), fired


def _count(moments: Moments | None, weights, own_b1s) -> Moments | None:
    """Adds a row to the sums over rows."""
    if moments is None:
        return None
    own = jnp.sum(jnp.where(own_b1s, weights, 0.0), axis=-1)
    return Moments(
        moments.trace_bn + own,
        moments.squares_bn + jnp.sum(weights * weights, axis=-1),
        moments.sums_bn + jnp.sum(weights, axis=-1),
    )


def _project(part: Projection, weights, visible_b1s, own_b1s, moments: Moments | None):
    on = jnp.broadcast_to(part.on > 0, weights.shape[:2])
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


def _shifts(steering: Steering) -> Array:
    """Heads whose logits move."""
    moves = jnp.zeros((), bool)
    if steering.logit_gains is not None:
        moves = moves | (steering.logit_gains.image != 1) | (steering.logit_gains.system != 1)
    if steering.lens is not None:
        moves = moves | (steering.lens.strength != 0)
    return moves


def _visible(segments: Sequence[Segment], queries: Visibility) -> Array:
    """Which keys the row sees, [B, 1, S]."""
    pieces = []
    for segment in segments:
        visible = queries.sees(segment.keys)
        shape = (segment.k_bksh.shape[0], 1, segment.length)
        pieces.append(jnp.ones(shape, bool) if visible is None else visible)
    return jnp.concatenate(pieces, axis=-1)


def _own(segments: Sequence[Segment], queries: Visibility) -> Array:
    """Which key is the row's own, [B, 1, S]: the one of its order."""
    assert queries.order is not None
    orders = [segment.keys.order for segment in segments]
    assert all(order is not None for order in orders)
    return jnp.concatenate(orders, axis=-1)[:, None] == queries.order[:, :, None]  # type: ignore[arg-type]
