"""Sampling: a token is drawn from the distribution that temperature, top-k and top-p leave."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from vlm_jax.decoding.search.greedy import Greedy
from vlm_jax.decoding.traced import traced


@traced
class Sampling(Greedy):
    """Draws a token, each row from its own stream."""

    def pick(self, scores_bv, inputs, count):
        """See `Greedy.pick`."""
        return sample(scores_bv, row_keys(inputs.seeds_b, count), inputs.settings)


def sample(
    logits_bv: Float[Array, "B V"], keys_b: UInt32[Array, "B 2"], settings: Mapping[str, Array]
) -> Int[Array, " B"]:
    """Draws one token a row.

    Args:
        logits_bv: float32 logits.
        keys_b: raw random keys, one a row.
        settings: temperature above 0, top_k and top_p, of `DecodeSettings.traced`.
    """
    vocabulary = logits_bv.shape[-1]
    scaled_bv = logits_bv / settings["temperature"]
    order_bv = jnp.argsort(-scaled_bv, axis=-1, stable=True)
    sorted_bv = jnp.take_along_axis(scaled_bv, order_bv, axis=-1)
    ranks_v, top_k = jnp.arange(vocabulary), settings["top_k"]
    kept_bv = (ranks_v < jnp.where(top_k > 0, top_k, vocabulary))[None]
    masses_bv = jax.nn.softmax(jnp.where(kept_bv, sorted_bv, -jnp.inf), axis=-1)
    # The likeliest token always stays; later ones while the mass before them is below p.
    before_bv = jnp.cumsum(masses_bv, axis=-1) - masses_bv
    kept_bv &= (before_bv < settings["top_p"]) | (ranks_v == 0)
    filtered_bv = jnp.where(kept_bv, sorted_bv, -jnp.inf)
    picks_b = jax.vmap(jax.random.categorical)(jax.random.wrap_key_data(keys_b), filtered_bv)
    return jnp.take_along_axis(order_bv, picks_b[:, None], axis=-1)[:, 0].astype(jnp.int32)


def row_keys(seeds_b: UInt32[Array, " B"], step: Array | int) -> UInt32[Array, "B 2"]:
    """Returns a key for each row at a step, from nothing but the row's own seed."""
    fold = lambda seed: jax.random.key_data(jax.random.fold_in(jax.random.key(seed), step))
    return jax.vmap(fold)(seeds_b)
