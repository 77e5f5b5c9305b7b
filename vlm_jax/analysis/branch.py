"""All zeroed heads of one token in one pass that branches where each head is.

A head that is zero changes nothing below its layer, so runs share one stream up to there; and they
share the keys and values of all rows before the token throughout. Against a run a head that is half
of the layers, and no copy of the cache.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vlm_jax.attention import NEVER, Segment, Visibility
from vlm_jax.attention.steering import HeadGains, State, Steering
from vlm_jax.batch import Batch, Kind
from vlm_jax.models import VLM, Params, merge
from vlm_jax.models.decoder import DecoderLayer, Steer
from vlm_jax.models.layers import rms_norm, text_angles


def branched_probabilities(
    graphdef,
    params: Params,
    batch: Batch,
    prompt: Sequence[Segment],
    sample: Int[Array, ""],
    query: Int[Array, ""],
    target: Int[Array, ""],
) -> Float[Array, " runs"]:
    """Returns P(target) after the row `query`: unablated, then without each head, layer by layer.

    Args:
        graphdef: of the model.
        params: of the model.
        batch: sequences, without images.
        prompt: each layer's keys and values of whole sequences, as read unablated.
        sample: which sequence.
        query: the row that predicts; heads are zero there alone.
        target: the id whose probability is asked for.
    """
    model: VLM = merge(graphdef, params)
    config = model.decoder.config
    position_3 = jnp.asarray(batch.positions_bt3)[sample, query]
    angles = text_angles(
        position_3[None, None],
        config.head_dim,
        config.rope_theta,
        config.rope_factor,
        config.mrope_section,
    )
    x_1rd = model.decoder.embed(jnp.asarray(batch.tokens_bt)[sample, query][None, None])
    for layer, segment in zip(model.decoder.layers, prompt):
        before = _before(segment, sample, query)
        kept = _together(layer, x_1rd, before, angles, query)
        branches = _without_each(layer, x_1rd[:, :1], before, angles, query, config.num_heads)
        x_1rd = jnp.concatenate([kept, branches], axis=1)
    hidden_1rd = rms_norm(x_1rd, model.decoder.final_norm_d[...], config.rms_norm_eps)
    logits_rv = model.decoder.logits(hidden_1rd)[0]
    return jax.nn.softmax(logits_rv, axis=-1)[:, target]


def _before(segment: Segment, sample: Array, query: Array) -> Segment:
    """Returns the keys of one sequence that its row `query` sees, itself left out."""
    one = jax.tree.map(lambda leaf: jnp.asarray(leaf)[sample][None], segment)
    seen = jnp.arange(segment.length)[None] < query
    order_1s = jnp.where(seen, one.seen.order, NEVER)
    return dataclasses.replace(one, seen=Visibility(order=order_1s))


def _together(
    layer: DecoderLayer, x_1rd: Array, before: Segment, angles: Array, query: Array
) -> Float[Array, "1 R D"]:
    """Runs a layer on all runs as rows of one sequence, each seeing its own key beside the rest."""
    runs = x_1rd.shape[1]
    each = Visibility(_full((1, runs), query), jnp.arange(runs, dtype=jnp.int32)[None])
    wide = jnp.broadcast_to(angles, (1, runs, angles.shape[-1]))
    return layer(x_1rd, wide, each, lambda k, v: [before, Segment(k, v, each)], causal=False)


def _without_each(
    layer: DecoderLayer, x_11d: Array, before: Segment, angles: Array, query: Array, heads: int
) -> Float[Array, "1 N D"]:
    """Runs a layer on the unablated stream once for each head, that head zero."""
    spread = lambda leaf: jnp.broadcast_to(leaf, (heads, *leaf.shape[1:]))
    gain_n1n = (1.0 - jnp.eye(heads, dtype=jnp.float32))[:, None]
    steer = Steer(Steering(head_gains=HeadGains(gain_n1n)), before=(State(),))
    here = Visibility(order=_full((heads, 1), query))
    kinds = jnp.full((heads, 1), Kind.TEXT, jnp.int8)
    keys = jax.tree.map(spread, before)
    remember = lambda k, v: [keys, Segment(k, v, here, kinds)]
    out_n1d = layer(spread(x_11d), spread(angles), here, remember, causal=False, steer=steer)
    return out_n1d.transpose(1, 0, 2)


def _full(shape: tuple[int, ...], value: Array) -> Array:
    return jnp.broadcast_to(value.astype(jnp.int32), shape)
