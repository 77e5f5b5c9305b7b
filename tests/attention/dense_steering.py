"""The readable oracle of steering: every step of `Steering` on a materialised T x S map.

Written from the definitions (`Steering`, `Projection`), not from the streaming form. Rows that
earlier calls have read are kept as they were read, so that the projection of a decode row is taken
literally: project the whole map, keep its last row.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tests.attention.dense import dense_logits
from vlm_jax.attention.causal_projection import EPSILON, LARGEST_SCALE
from vlm_jax.attention.parts.energy_rescale import ENERGY_FACTORS
from vlm_jax.attention.segment import MASKED, Segment, Visibility, kinds_of
from vlm_jax.attention.steering import (
    EnergyRescale,
    Projection,
    Readings,
    Reallocation,
    Registers,
    Rows,
    Steering,
)
from vlm_jax.batch import Kind


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class History:
    """The rows read so far, R of them, as steps 1 to 4 left them.

    Attributes:
        weights_bnrs: the weights, over the keys that there were.
        own_brs: each row's own key.
        real_br: rows that are not padding.
        gains: visual gain, perception and reasoning of each head, [B, N], at prefill.
    """

    weights_bnrs: Float[Array, "B N R S"]
    own_brs: Bool[Array, "B R S"]
    real_br: Bool[Array, "B R"]
    gains: Any = None


@dataclasses.dataclass(frozen=True)
class _Keys:
    """All keys, and which each row sees."""

    v_bnsh: Array
    kinds_bs: Array
    order_bs: Array
    visible_bts: Array

    @classmethod
    def of(cls, segments: Sequence[Segment], queries: Visibility, heads: int) -> "_Keys":
        join = lambda pieces, axis: jnp.concatenate(list(pieces), axis=axis)
        v_bksh = join((s.v_bksh for s in segments), 2)
        masks = [queries.sees(s.keys) for s in segments]
        return cls(
            jnp.repeat(v_bksh, heads // v_bksh.shape[1], axis=1),
            join((kinds_of(s) for s in segments), 1),
            join((s.keys.order for s in segments), 1),
            join(masks, 2),
        )

    def are(self, kind: Kind) -> Bool[Array, "B T S"]:
        """Keys of a kind that each row sees."""
        return self.visible_bts & (self.kinds_bs == kind)[:, None]


def dense_steered(
    q_btnh: Float[Array, "B T N H"],
    segments: Sequence[Segment],
    queries: Visibility,
    steering: Steering,
    rows: Rows | None = None,
    history: History | None = None,
    scale: float | None = None,
) -> tuple[Float[Array, "B T N H"], History, Readings]:
    """Attends, steered, through the whole map; arguments and results as of `attend`.

    Args:
        history: what the call before returned; None at prefill.
    """
    heads = q_btnh.shape[2]
    keys = _Keys.of(segments, queries, heads)
    decode_bt = _decode_rows(q_btnh, rows)
    logits = dense_logits(q_btnh, segments, queries, scale)
    if steering.energy_rescale is not None:
        block = dense_logits(q_btnh, segments, Visibility(), scale)
        logits = logits * _factors(steering.energy_rescale, block, keys, rows, decode_bt)
    logits = _logits(logits, keys, steering, rows, decode_bt)
    weights = jax.nn.softmax(logits)
    masses = [
        jnp.sum(jnp.where(keys.are(kind)[:, None], weights, 0.0), axis=-1)
        for kind in (Kind.IMAGE, Kind.TEXT, Kind.SYSTEM)
    ]
    fired = jnp.zeros(masses[0].shape, bool)
    if steering.reallocation is not None:
        weights, fired = _reallocate(steering.reallocation, weights, masses, keys, decode_bt)
    own_bts = keys.order_bs[:, None] == _order(queries)[:, :, None]
    real_bt = jnp.ones(decode_bt.shape, bool) if rows is None else rows.real_bt
    history = _extend(history, weights, own_bts, real_bt)
    if steering.projection is not None:
        weights = _project(steering.projection, weights, keys, history, rows, decode_bt)
    out = jnp.einsum("bnts,bnsh->btnh", weights, keys.v_bnsh.astype(weights.dtype))
    pick = lambda a_bnt: jnp.sum(jnp.where(decode_bt[:, None], a_bnt, 0.0), axis=-1)
    perception = reasoning = jnp.zeros((*out.shape[:1], heads), bool)
    if steering.visual_gains is not None:
        gains = _visual_gains(steering, masses[0], keys, rows, decode_bt)
        if steering.visual_gains.mode == "prefill_cached" and rows is None:
            gains = history.gains
        history = dataclasses.replace(history, gains=gains)
        gain, perception, reasoning = gains
        out = out * gain[:, None, :, None]
    if steering.head_gains is not None:
        out = out * steering.head_gains.gain[:, None, :, None]
    if steering.registers is not None:
        out = out * _register_share(steering.registers, logits, keys, rows)
    read = [pick(a) for a in (*masses, fired.astype(weights.dtype))]
    classes = [a.astype(jnp.float32) for a in (perception, reasoning)]
    return out, history, Readings(*read, *classes)


def _order(queries: Visibility) -> Int[Array, "B T"]:
    if queries.order is None:
        raise ValueError("Steering needs the order of queries and keys; the queries have none.")
    return queries.order


def _decode_rows(q_btnh, rows: Rows | None) -> Bool[Array, "B T"]:
    """The last row of each prompt, and rows of generated tokens."""
    if rows is None:
        return jnp.ones(q_btnh.shape[:2], bool)
    if rows.last_b is None:
        return jnp.zeros(q_btnh.shape[:2], bool)
    return jnp.arange(q_btnh.shape[1]) == rows.last_b[:, None]


def _factors(part: EnergyRescale, block_bnts, keys: _Keys, rows: Rows | None, decode_bt) -> Array:
    """Step 0: factors on the logits of each row, from the unmasked q x k block of the call."""
    counted = keys.visible_bts
    if rows is not None and part.prefill == "official":
        counted = rows.real_bt[..., None] & (keys.kinds_bs != Kind.PAD)[:, None]
    squares = jnp.where(counted[:, None], block_bnts * block_bnts, 0.0)
    energy = jnp.sum(squares, axis=-1, keepdims=True)
    acts = decode_bt
    if rows is not None and part.prefill == "official":
        energy, acts = jnp.sum(energy, axis=2, keepdims=True), jnp.ones_like(decode_bt)
    mean = jnp.mean(energy, axis=1, keepdims=True)
    factor = jnp.sqrt(part.target[:, :, None, None] * mean / (energy + EPSILON))
    on = (part.on > 0)[:, :, None, None] & acts[:, None, :, None]
    return jnp.where(on, jnp.clip(factor, *ENERGY_FACTORS), 1.0)


def _logits(logits_bnts, keys: _Keys, steering: Steering, rows: Rows | None, decode_bt) -> Array:
    """Steps 1 and 2."""
    image, system = keys.are(Kind.IMAGE)[:, None], keys.are(Kind.SYSTEM)[:, None]
    if steering.logit_gains is not None:
        part = steering.logit_gains
        gained = jnp.any(image, axis=-1)[:, 0] if rows is None else rows.after_image_bt
        gain = jnp.where(image, part.image[:, :, None, None], 1.0)
        gain = jnp.where(system, part.system[:, :, None, None], gain)
        logits_bnts = logits_bnts * jnp.where(gained[:, None, :, None], gain, 1.0)
    if steering.lens is not None:
        shift = jnp.mean(jnp.abs(logits_bnts), axis=1, keepdims=True)
        lifted = logits_bnts + steering.lens.strength[:, :, None, None] * shift
        logits_bnts = jnp.where(image & decode_bt[:, None, :, None], lifted, logits_bnts)
    if steering.image_boost is not None:
        lift = steering.image_boost.strength[:, :, None, None] * jnp.abs(logits_bnts)
        lifted = logits_bnts + lift
        logits_bnts = jnp.where(image & decode_bt[:, None, :, None], lifted, logits_bnts)
    return jnp.where(keys.visible_bts[:, None], logits_bnts, MASKED)


def _reallocate(part: Reallocation, weights, masses, keys: _Keys, decode_bt):
    """Step 4."""
    _, text_mass, system_mass = masses
    image, text = keys.are(Kind.IMAGE)[:, None], keys.are(Kind.TEXT)[:, None]
    if part.text_includes_system:
        text = text | keys.are(Kind.SYSTEM)[:, None]
        text_mass = text_mass + system_mass
    if part.trigger_reduce == "batch_sum":
        decode_mass = jnp.where(decode_bt[:, None], text_mass, 0.0)
        text_mass = jnp.sum(decode_mass, axis=(0, 2))[None, :, None]
    fired = decode_bt[:, None] & (text_mass >= part.threshold[:, :, None])
    fired = fired & jnp.any(image, axis=-1)
    factor = jnp.where(image, part.image[:, :, None, None], 1.0)
    factor = jnp.where(text, part.text[:, :, None, None], factor)
    edited = weights * factor
    if part.renormalise:
        left = jnp.sum(edited, axis=-1, keepdims=True)
        edited = jnp.where(left == 0, weights, edited / jnp.where(left == 0, 1.0, left))
    fired = fired & ((part.image != 1) | (part.text != 1))[:, :, None]
    return jnp.where(fired[..., None], edited, weights), fired


def _extend(history: History | None, weights, own_bts, real_bt) -> History:
    if history is None:
        return History(weights, own_bts, real_bt)
    later = weights.shape[-1] - history.weights_bnrs.shape[-1]
    widen = lambda a: jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, later)])
    return History(
        jnp.concatenate([widen(history.weights_bnrs), weights], axis=2),
        jnp.concatenate([widen(history.own_brs), own_bts], axis=1),
        jnp.concatenate([history.real_br, real_bt], axis=1),
        history.gains,
    )


def _projected(history: History, rows_br, on_keys_bts, beta_bn) -> Float[Array, "B N R S"]:
    """The map of some rows, projected; beta mean(A) goes to the keys `on_keys_bts` of each row."""
    a = jnp.where(rows_br[:, None, :, None], history.weights_bnrs, 0.0)
    own = (history.own_brs & rows_br[..., None])[:, None]
    n = jnp.sum(rows_br, axis=1).astype(a.dtype)[:, None, None, None]
    total = lambda m: jnp.sum(m, axis=(2, 3), keepdims=True)
    hat = a - jnp.where(own, total(jnp.where(own, a, 0.0)) / n, 0.0)
    scale = jnp.sqrt(total(a * a) / (total(hat * hat) + EPSILON))
    tilde = jnp.minimum(scale, LARGEST_SCALE) * hat
    beta = beta_bn[:, :, None, None]
    mean = total(tilde) / (n * n)
    return (1 - beta) * tilde + jnp.where(on_keys_bts[:, None], beta * mean, 0.0)


def _project(part: Projection, weights, keys: _Keys, history: History, rows, decode_bt):
    """Step 5."""
    length, on = weights.shape[2], (part.on > 0)[:, :, None, None]
    first = history.real_br.shape[1] - length
    edit = lambda which_bt, new: jnp.where(on & which_bt[:, None, :, None], new, weights)

    def running(row: Array) -> Array:
        """One row of the projected map of the rows up to it, [B, N, S]."""
        upto = history.real_br & (jnp.arange(first + length) <= first + row)
        visible = jax.lax.dynamic_index_in_dim(keys.visible_bts, row, axis=1)
        projected = _projected(history, upto, visible, part.beta)
        return jax.lax.dynamic_index_in_dim(projected, first + row, axis=2, keepdims=False)

    if rows is not None and part.prefill == "official":
        real_keys = jnp.any(history.own_brs & history.real_br[..., None], axis=1, keepdims=True)
        return edit(rows.real_bt, _projected(history, rows.real_bt, real_keys, part.beta))
    seen_keys = jnp.sum(keys.visible_bts, axis=-1)[:, None, :, None]
    beta = part.beta[:, :, None, None]
    mean = jnp.sum(weights, axis=-1, keepdims=True) / seen_keys
    shrunk = (1 - beta) * weights + jnp.where(keys.visible_bts[:, None], beta * mean, 0.0)
    before_bt = jnp.zeros_like(decode_bt)
    if rows is not None and part.prefill == "causal":
        before_bt = rows.real_bt & ~decode_bt
    run_bt = before_bt | decode_bt if part.zero_trace == "running" else before_bt
    new = edit(decode_bt, shrunk)
    if part.counts:
        each = jnp.moveaxis(jax.lax.map(running, jnp.arange(length)), 0, 2)
        new = jnp.where(on & run_bt[:, None, :, None], each, new)
    return new


def _visual_gains(steering: Steering, image_bnt, keys: _Keys, rows: Rows | None, decode_bt):
    """Step 6: gain and class of each head, by its mean mass on image keys over some rows."""
    part = steering.visual_gains
    assert part is not None
    has_image_bt = jnp.any(keys.are(Kind.IMAGE), axis=-1)
    asked_bt = decode_bt & has_image_bt
    if rows is not None and part.rows == "q":
        asked_bt = rows.after_image_bt
    count = jnp.sum(asked_bt, axis=1)[:, None]
    ratio = jnp.sum(jnp.where(asked_bt[:, None], image_bnt, 0.0), axis=-1) / jnp.maximum(count, 1)
    perception = (count > 0) & (ratio >= part.perception_from)
    reasoning = (count > 0) & (ratio <= part.reasoning_to)
    one = jnp.ones_like(ratio)
    gain = jnp.where(perception, part.perception_gain, one)
    return jnp.where(reasoning & ~perception, part.reasoning_gain, gain), perception, reasoning


def _register_share(part: Registers, logits_bnts, keys: _Keys, rows: Rows | None) -> Array:
    """Step 6: what the keys keep of a softmax in which each row's slots take part, [B, T, N, 1]."""
    seen_bt = jnp.sum(keys.visible_bts, axis=-1)
    real_b1 = jnp.sum(keys.kinds_bs != Kind.PAD, axis=1)[:, None]
    length = part.budget[:, :, None] if part.mode == "budget" else real_b1[:, None]
    slots_bnt = length - seen_bt[:, None]
    if rows is None and part.mode == "prefill":
        slots_bnt = jnp.zeros_like(slots_bnt)
    sigma = part.sigma[:, :, None] * (jnp.log(length * 1.0) if part.log_length else 1.0)
    number = jnp.arange(1, 65)
    registers = jnp.where(number <= slots_bnt[..., None], -number * sigma[..., None], -jnp.inf)
    shape = (*logits_bnts.shape[:3], registers.shape[-1])
    every = jnp.concatenate([logits_bnts, jnp.broadcast_to(registers, shape)], axis=-1)
    kept = jax.nn.softmax(every)[..., : logits_bnts.shape[-1]]
    kept_btn = jnp.sum(kept, axis=-1).transpose(0, 2, 1)
    if part.dealt:
        heads = kept_btn.shape[-1]
        from_bnm = jax.nn.one_hot((jnp.arange(heads) + part.ahead.astype(int)) % heads, heads)
        kept_btn = jnp.einsum(
            "btm,bnm->btn", kept_btn, jnp.broadcast_to(from_bnm, (len(kept_btn), heads, heads))
        )
    return kept_btn[..., None]
