"""The decode loop: one `lax.while_loop` that ends when every row has, and what it counts."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.attention.steering import Readings, Steering
from vlm_jax.decoding.call import LoopInputs
from vlm_jax.decoding.processors import History, process
from vlm_jax.decoding.sampling import row_keys, sample
from vlm_jax.decoding.strategies.base import Step
from vlm_jax.models import Cache, Network, Watched


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepCounts:
    """How many heads of each layer were acted on at each step; int16 [B, slots, L].

    Step j is the decode row that predicted generated token j: the prompt's last row, then each
    generated token. Steps behind a row's end count 0.

    Attributes:
        fired: heads that reallocated; None where nothing can be.
        perception, reasoning: heads of the class; None where no head is classified.
    """

    fired: Any = None
    perception: Any = None
    reasoning: Any = None

    @classmethod
    def empty(cls, shape: tuple[int, int, int], steering: Steering | None) -> "StepCounts | None":
        """Returns zeros [B, slots, L] for the parts that a steering has, None if it has none."""
        if steering is None or not (steering.reallocation or steering.visual_gains):
            return None
        zeros = lambda part: None if part is None else jnp.zeros(shape, jnp.int16)
        classes = zeros(steering.visual_gains), zeros(steering.visual_gains)
        return cls(zeros(steering.reallocation), *classes)

    def put(
        self, step: Int[Array, ""], readings: Readings, going_b: Bool[Array, " B"]
    ) -> "StepCounts":
        """Returns the counts with those of a step, of rows that go on."""

        def write(counts: Array | None, flags_bln: Array) -> Array | None:
            if counts is None:
                return None
            heads_bl = jnp.where(going_b[:, None], jnp.sum(flags_bln, axis=-1), 0)
            return jax.lax.dynamic_update_slice_in_dim(
                counts, heads_bl[:, None].astype(counts.dtype), step, axis=1
            )

        return StepCounts(
            write(self.fired, readings.fired_bn),
            write(self.perception, readings.perception_bn),
            write(self.reasoning, readings.reasoning_bn),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
    """What the loop carries."""

    count: Array
    tokens_bn: Array
    ended_b: Array
    logits_bv: Array
    watched: Watched  # of the rows that gave these logits; readings are in `readings`
    cache: Cache
    history: History
    readings: Readings | None  # sums over the decode rows of rows that had not ended
    counts: StepCounts | None


def _apart(watched: Watched, width: int) -> tuple[Watched, Readings | None]:
    """Returns what was watched, without readings, and the readings of each sample's first view."""
    readings = watched.readings
    if width > 1:
        readings = jax.tree.map(lambda leaf: leaf[::width], readings)
    return dataclasses.replace(watched, readings=None), readings


def decode(
    model: Network,
    read: tuple[Float[Array, "rows V"], Watched],
    cache: Cache,
    inputs: LoopInputs,
    slots: int,
) -> tuple[Int[Array, "B slots"], Array, Array, Readings | None, StepCounts | None, Cache]:
    """Runs the loop.

    Args:
        model: the model.
        read: logits of the prompts' last rows, and what was watched of them.
        cache: what was read.
        inputs: traced settings.
        slots: room for tokens.

    Returns:
        Tokens, lengths, whether rows ended, mean readings, counts, and the cache.
    """
    logits_bv, watched = read
    depth = model.decoder.config.num_layers
    width = 1 if inputs.strategy is None else inputs.strategy.width
    watch = None if inputs.strategy is None else inputs.strategy.watch(depth)
    rows, (watched, readings) = logits_bv.shape[0] // width, _apart(watched, width)
    shape = rows, slots, depth
    counts = StepCounts.empty(shape, inputs.steering)
    if counts is not None and readings is not None:
        counts = counts.put(jnp.int32(0), readings, jnp.ones(rows, bool))
    state = _State(
        count=jnp.int32(0),
        tokens_bn=jnp.full((rows, slots), inputs.pad_id, jnp.int32),
        ended_b=jnp.zeros(rows, bool),
        logits_bv=logits_bv,
        watched=watched,
        cache=cache,
        history=History.start(inputs.settings, inputs.prompt_bp, slots, logits_bv.shape[1]),
        readings=readings,
        counts=counts,
    )
    limit = jnp.minimum(inputs.limit, slots)

    def choose(state: _State) -> _State:
        """Takes one token a row from the logits at hand."""
        biased_bv = state.logits_bv
        if inputs.strategy is not None:
            logits_bwv = biased_bv.reshape(rows, width, -1)
            step = Step(state.count, state.watched.views(width), model.decoder)
            biased_bv = inputs.strategy.scores(logits_bwv, step)
        if inputs.bias_bv is not None:
            biased_bv = biased_bv + inputs.bias_bv
        biased_bv = process(
            biased_bv, state.history, inputs.settings, inputs.stop_ids, state.count, slots
        )
        if "temperature" in inputs.settings:
            token_b = sample(biased_bv, row_keys(inputs.seeds_b, state.count), inputs.settings)
        else:
            token_b = jnp.argmax(biased_bv, axis=-1).astype(jnp.int32)
        token_b = jnp.where(state.ended_b, inputs.pad_id, token_b)
        tokens_bn = jax.lax.dynamic_update_slice_in_dim(
            state.tokens_bn, token_b[:, None], state.count, axis=1
        )
        ended_b = state.ended_b | jnp.isin(token_b, inputs.stop_ids)
        history = state.history.add(token_b, state.count, slots)
        return dataclasses.replace(
            state, count=state.count + 1, tokens_bn=tokens_bn, ended_b=ended_b, history=history
        )

    def advance(state: _State) -> _State:
        """Reads the last token and chooses the next."""
        token_b = jax.lax.dynamic_index_in_dim(
            state.tokens_bn, state.count - 1, axis=1, keepdims=False
        )
        every_b = token_b if width == 1 else jnp.repeat(token_b, width)
        logits_bv, cache, watched = model.step(every_b, state.cache, inputs.steering, watch)
        watched, new = _apart(watched, width)
        going = (~state.ended_b)[:, None, None].astype(jnp.float32)
        readings = jax.tree.map(lambda total, now: total + going * now, state.readings, new)
        counts = state.counts
        if counts is not None and new is not None:
            counts = counts.put(state.count, new, ~state.ended_b)
        return choose(
            dataclasses.replace(
                state,
                logits_bv=logits_bv,
                watched=watched,
                cache=cache,
                readings=readings,
                counts=counts,
            )
        )

    state = jax.lax.while_loop(
        lambda state: (state.count < limit) & ~jnp.all(state.ended_b), advance, choose(state)
    )
    is_stop_bn = jnp.isin(state.tokens_bn, inputs.stop_ids)
    first_b = jnp.where(jnp.any(is_stop_bn, axis=1), jnp.argmax(is_stop_bn, axis=1), state.count)
    # The first token is predicted by the prompt's last row, each later one by the token before it.
    steps_b = jnp.clip(first_b + state.ended_b, 1, state.count)[:, None, None]
    readings = jax.tree.map(lambda total: total / steps_b, state.readings)
    lengths_b = first_b.astype(jnp.int32)
    return state.tokens_bn, lengths_b, state.ended_b, readings, state.counts, state.cache
