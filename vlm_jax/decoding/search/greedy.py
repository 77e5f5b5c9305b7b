"""Greedy decoding: the likeliest token, always."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vlm_jax.decoding.processors import History, process
from vlm_jax.decoding.search.base import Choice, Found, Now, Search
from vlm_jax.decoding.traced import traced


@traced
class Greedy(Search):
    """Takes the likeliest token."""

    def start(self, inputs, shape, carried):
        """See `Search.start`."""
        rows, slots, vocabulary = shape
        return _State(
            tokens_bn=jnp.full((rows, slots), inputs.pad_id, jnp.int32),
            ended_b=jnp.zeros(rows, bool),
            history=History.start(inputs.settings, inputs.prompt_bp, slots, vocabulary),
        )

    def choose(self, scores_bcv, state, inputs, now: Now):
        """See `Search.choose`."""
        scores_bv = process(
            scores_bcv[:, 0], state.history, inputs.settings, inputs.stop_ids, now.count
        )
        token_b = jnp.where(state.ended_b, inputs.pad_id, self.pick(scores_bv, inputs, now.count))
        tokens_bn = jax.lax.dynamic_update_slice_in_dim(
            state.tokens_bn, token_b[:, None], now.count, axis=1
        )
        ended_b = state.ended_b | jnp.isin(token_b, inputs.stop_ids)
        state = _State(tokens_bn, ended_b, state.history.add(token_b))
        return Choice(token_b[:, None]), state

    def pick(self, scores_bv: Float[Array, "B V"], inputs, count: Array) -> Int[Array, " B"]:
        """Returns the token of each row."""
        return jnp.argmax(scores_bv, axis=-1).astype(jnp.int32)

    def going(self, state):
        """See `Search.going`."""
        return ~state.ended_b

    def unfinished(self, state, inputs, count):
        """See `Search.unfinished`."""
        return (count < inputs.limit) & ~jnp.all(state.ended_b)

    def answers(self, state, inputs, carried, count):
        """See `Search.answers`."""
        is_stop_bn = jnp.isin(state.tokens_bn, inputs.stop_ids)
        first_b = jnp.where(jnp.any(is_stop_bn, axis=1), jnp.argmax(is_stop_bn, axis=1), count)
        return Found(state.tokens_bn, first_b.astype(jnp.int32), state.ended_b, carried)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
    tokens_bn: Any
    ended_b: Any
    history: History
