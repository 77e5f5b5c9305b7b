"""All ablated heads of one token in one pass that branches where each head is.

A head's output at the row that predicts the token becomes zero, or the mean of that head over other
rows. That changes nothing below its layer, so runs share one stream up to there; and they share the
keys and values of all rows before the token throughout. Against a run a head that is half of the
layers, and no copy of the cache.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vlm_jax.attention import NEVER, Segment, Visibility, attend
from vlm_jax.batch import Batch
from vlm_jax.models import Network, Params, merge
from vlm_jax.models.decoder import DecoderLayer
from vlm_jax.models.hooks import Attend
from vlm_jax.models.layers import text_angles


def branched_probabilities(
    graphdef,
    params: Params,
    batch: Batch,
    prompt: Sequence[Segment],
    sample: Int[Array, ""],
    query: Int[Array, ""],
    target: Int[Array, ""],
    mean_lnh: Float[Array, "L N H"] | None = None,
) -> Float[Array, " runs"]:
    """Returns P(target) after the row `query`: unablated, then without each head, layer by layer.

    Args:
        graphdef: of the model.
        params: of the model.
        batch: sequences, without images.
        prompt: each layer's keys and values of whole sequences, as read unablated.
        sample: which sequence.
        query: the row that predicts; heads are ablated there alone.
        target: the id whose probability is asked for.
        mean_lnh: what an ablated head's output becomes; None is zero.
    """
    model: Network = merge(graphdef, params)
    config = model.decoder.config
    x_1rd, angles = _row(model, batch, sample, query)
    for index, (layer, segment) in enumerate(zip(model.decoder.layers, prompt)):
        before = _before(segment, sample, query)
        kept = _together(layer, x_1rd, before, angles, query)
        put_nh = jnp.zeros((config.num_heads, 1)) if mean_lnh is None else mean_lnh[index]
        branches = _without_each(layer, x_1rd[:, :1], before, angles, query, put_nh)
        x_1rd = jnp.concatenate([kept, branches], axis=1)
    logits_rv = model.decoder.logits(model.decoder.normed(x_1rd))[0]
    return jax.nn.softmax(logits_rv, axis=-1)[:, target]


def head_outputs(
    graphdef,
    params: Params,
    batch: Batch,
    prompt: Sequence[Segment],
    sample: Int[Array, ""],
    query: Int[Array, ""],
) -> Float[Array, "L N H"]:
    """Returns what each head gives at one row, before the output projection, unablated.

    Args:
        graphdef, params, batch, prompt, sample, query: see `branched_probabilities`.
    """
    model: Network = merge(graphdef, params)
    x_1rd, angles = _row(model, batch, sample, query)
    kept = _Keep()
    for layer, segment in zip(model.decoder.layers, prompt):
        before = _before(segment, sample, query)
        x_1rd = _together(layer, x_1rd, before, angles, query, kept.attend)
    return jnp.concatenate(kept.outputs, axis=1)[0]


@dataclasses.dataclass
class _Keep:
    """Unsteered attention that keeps what the heads of each layer gave."""

    outputs: list[Array] = dataclasses.field(default_factory=list)

    def attend(
        self,
        q_btnh: Array,
        segments: Sequence[Segment],
        queries: Visibility,
        causal: bool,
        scale: float | None = None,
    ) -> Array:
        """Attends in the next layer."""
        self.outputs.append(attend(q_btnh, segments, queries, causal=causal, scale=scale))
        return self.outputs[-1]


@dataclasses.dataclass
class _Put:
    """Unsteered attention whose nth run has `put_nh` in place of what its nth head gave."""

    put_nh: Array

    def attend(
        self,
        q_btnh: Array,
        segments: Sequence[Segment],
        queries: Visibility,
        causal: bool,
        scale: float | None = None,
    ) -> Array:
        """Attends in the next layer."""
        out_n1nh = attend(q_btnh, segments, queries, causal=causal, scale=scale)
        own = jnp.eye(q_btnh.shape[2], dtype=bool)[:, None, :, None]
        return jnp.where(own, jnp.asarray(self.put_nh, out_n1nh.dtype), out_n1nh)


def _row(model: Network, batch: Batch, sample: Array, query: Array) -> tuple[Array, Array]:
    """Returns the embedding [1, 1, D] of a text row, and its rotary angles."""
    config = model.decoder.config
    position_3 = jnp.asarray(batch.positions_bt3)[sample, query]
    angles = text_angles(
        position_3[None, None],
        config.rope_dim,
        config.rope_theta,
        config.rope_factor,
        config.rope_axes,
    )
    token = jnp.asarray(batch.tokens_bt)[sample, query]
    return model.decoder.embed(token[None, None]), angles


def _before(segment: Segment, sample: Array, query: Array) -> Segment:
    """Returns the keys of one sequence that its row `query` sees, itself left out."""
    one = jax.tree.map(lambda leaf: jnp.asarray(leaf)[sample][None], segment)
    seen = jnp.arange(segment.length)[None] < query
    order_1s = jnp.where(seen, one.keys.order, NEVER)
    return dataclasses.replace(one, keys=Visibility(order=order_1s))


def _together(
    layer: DecoderLayer,
    x_1rd: Array,
    before: Segment,
    angles: Array,
    query: Array,
    attend: Attend = attend,
) -> Float[Array, "1 R D"]:
    """Runs a layer on all runs as rows of one sequence, each seeing its own key beside the rest."""
    runs = x_1rd.shape[1]
    each = Visibility(_full((1, runs), query), jnp.arange(runs, dtype=jnp.int32)[None])
    wide = jnp.broadcast_to(angles, (1, runs, angles.shape[-1]))
    extend_cache = lambda k, v: [before, Segment(k, v, each)]
    return layer(x_1rd, wide, each, extend_cache, causal=False, attend=attend)


def _without_each(
    layer: DecoderLayer, x_11d: Array, before: Segment, angles: Array, query: Array, put_nh: Array
) -> Float[Array, "1 N D"]:
    """Runs a layer on the unablated stream once for each head, that head's output `put_nh`."""
    heads = put_nh.shape[0]
    spread = lambda leaf: jnp.broadcast_to(leaf, (heads, *leaf.shape[1:]))
    here = Visibility(order=_full((heads, 1), query))
    keys = jax.tree.map(spread, before)
    extend_cache = lambda k, v: [keys, Segment(k, v, here)]
    put = _Put(put_nh).attend
    out_n1d = layer(spread(x_11d), spread(angles), here, extend_cache, causal=False, attend=put)
    return out_n1d.transpose(1, 0, 2)


def _full(shape: tuple[int, ...], value: Array) -> Array:
    return jnp.broadcast_to(value.astype(jnp.int32), shape)
