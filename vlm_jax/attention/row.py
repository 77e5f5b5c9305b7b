"""One query row a sample: the whole row of weights fits, so it is edited as it is."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vlm_jax.attention.segment import MASKED, Segment, Visibility, kinds_of
from vlm_jax.attention.steering import (
    Moments,
    Readings,
    State,
    Steering,
    frobenius_scale,
    visual_gain,
)
from vlm_jax.batch import Kind


def row_logits(
    q_b1nh: Float[Array, "B 1 N H"],
    segments: Sequence[Segment],
    seen: Visibility,
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
        logits = factor * jnp.einsum(
            "bkgh,bksh->bkgs", q_bkgh, segment.k_bksh, preferred_element_type=kind
        )
        visible = seen.sees(segment.seen)
        if visible is not None:
            logits = jnp.where(visible[:, None], logits, MASKED)
        pieces.append(logits.reshape(batch, heads, -1))
    return jnp.concatenate(pieces, axis=-1) if len(pieces) > 1 else pieces[0]


def row_values(
    weights_bns: Float[Array, "B N S"], segments: Sequence[Segment]
) -> Float[Array, "B 1 N H"]:
    """Sums the values of all segments under one row of weights; float32 or wider."""
    batch, heads, _ = weights_bns.shape
    out, start = None, 0
    for segment in segments:
        kv_heads, length, dim = segment.v_bksh.shape[1:]
        piece = weights_bns[..., start : start + length]
        read = jnp.einsum(
            "bkgs,bksh->bkgh",
            piece.reshape(batch, kv_heads, heads // kv_heads, length).astype(segment.v_bksh.dtype),
            segment.v_bksh,
            preferred_element_type=weights_bns.dtype,
        ).reshape(batch, 1, heads, dim)
        out = read if out is None else out + read
        start += length
    assert out is not None
    return out


def row_attention(
    q_b1nh: Float[Array, "B 1 N H"],
    segments: Sequence[Segment],
    seen: Visibility,
    scale: float | None = None,
) -> Float[Array, "B 1 N H"]:
    """Attends with one row a sample, unsteered."""
    logits = row_logits(q_b1nh, segments, seen, scale)
    return row_values(jax.nn.softmax(logits, axis=-1), segments)


def steered_row(
    q_b1nh: Float[Array, "B 1 N H"],
    segments: Sequence[Segment],
    seen: Visibility,
    steering: Steering,
    state: State,
    scale: float | None = None,
    *,
    project: bool = True,
) -> tuple[Float[Array, "B 1 N H"], Array, State, Readings]:
    """Attends with one decode row a sample, steered, head gains left out.

    Args:
        steering: of this layer.
        state: moments of the rows before this one.
        project: False counts the row in the moments and leaves its projection to the caller.

    Returns:
        The output; which heads' weights were changed at all (bool [B, N]); the state with this row
        added; what happened.
    """
    logits = row_logits(q_b1nh, segments, seen, scale)
    kinds_b1s = jnp.concatenate([kinds_of(segment) for segment in segments], axis=-1)[:, None]
    is_image, is_system = kinds_b1s == Kind.IMAGE, kinds_b1s == Kind.SYSTEM
    is_text = kinds_b1s == Kind.TEXT
    visible_b1s = _visible(segments, seen)
    if steering.logit_gains is not None:
        part = steering.logit_gains
        # A row after no image has nothing to rebalance against.
        applies = jnp.any(is_image, axis=-1, keepdims=True)
        gain = jnp.where(is_image, part.image[..., None], 1.0)
        gain = jnp.where(is_system, part.system[..., None], gain)
        logits = jnp.where(visible_b1s, logits * jnp.where(applies, gain, 1.0), MASKED)
    if steering.lens is not None:
        shift = jnp.mean(jnp.abs(logits), axis=1, keepdims=True)
        shifted = logits + steering.lens.strength[..., None] * shift
        logits = jnp.where(visible_b1s & is_image, shifted, logits)
    weights = jax.nn.softmax(logits, axis=-1)
    mass = lambda chosen: jnp.sum(jnp.where(chosen, weights, 0.0), axis=-1)
    image_bn, text_bn, system_bn = mass(is_image), mass(is_text), mass(is_system)
    changed = fired = jnp.zeros(image_bn.shape, bool)
    edited = weights
    if steering.reallocation is not None:
        edited, fired = _reallocate(steering, weights, kinds_b1s, text_bn, system_bn)
        changed = fired
    moments = state.moments
    if steering.projection is not None:
        own_b1s = _own(segments, seen)
        moments = _count(moments, edited, own_b1s)
        if project:
            edited, touched = _project(steering, edited, visible_b1s, own_b1s, moments)
            changed = changed | touched
    if steering.reallocation is not None or steering.projection is not None:
        weights = jnp.where(changed[..., None], edited, weights)
    if steering.logit_gains is not None or steering.lens is not None:
        changed = changed | _shifts(steering)
    perception = reasoning = jnp.zeros(image_bn.shape, bool)
    if steering.visual_gains is not None:
        _, perception, reasoning = visual_gain(steering.visual_gains, image_bn)
    readings = Readings(
        image_bn,
        text_bn,
        system_bn,
        *(flag.astype(jnp.float32) for flag in (fired, perception, reasoning)),
    )
    out = row_values(weights, segments)
    return out, changed, State(moments, state.gain_bn), readings


def _reallocate(steering: Steering, weights, kinds_b1s, text_bn, system_bn):
    part = steering.reallocation
    assert part is not None
    is_text = kinds_b1s == Kind.TEXT
    if part.text_includes_system:
        is_text = is_text | (kinds_b1s == Kind.SYSTEM)
        text_bn = text_bn + system_bn
    if part.trigger_reduce == "batch_sum":
        text_bn = jnp.broadcast_to(jnp.sum(text_bn, axis=0, keepdims=True), text_bn.shape)
    fired = text_bn >= part.threshold
    factor = jnp.where(is_text, part.text[..., None], 1.0)
    factor = jnp.where(kinds_b1s == Kind.IMAGE, part.image[..., None], factor)
    edited = weights * factor
    if part.renormalise:
        edited = edited / jnp.sum(edited, axis=-1, keepdims=True)
    identity = (part.image == 1) & (part.text == 1)
    edited = jnp.where(fired[..., None], edited, weights)
    return edited, fired & ~identity


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


def _project(steering: Steering, weights, visible_b1s, own_b1s, moments: Moments | None):
    part = steering.projection
    assert part is not None
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


def _visible(segments: Sequence[Segment], seen: Visibility) -> Array:
    """Which keys the row sees, [B, 1, S]."""
    pieces = []
    for segment in segments:
        visible = seen.sees(segment.seen)
        shape = (segment.k_bksh.shape[0], 1, segment.length)
        pieces.append(jnp.ones(shape, bool) if visible is None else visible)
    return jnp.concatenate(pieces, axis=-1)


def _own(segments: Sequence[Segment], seen: Visibility) -> Array:
    """Which key is the row's own, [B, 1, S]: the one of its order."""
    assert seen.order is not None
    orders = [segment.seen.order for segment in segments]
    assert all(order is not None for order in orders)
    return jnp.concatenate(orders, axis=-1)[:, None] == seen.order[:, :, None]  # type: ignore[arg-type]
