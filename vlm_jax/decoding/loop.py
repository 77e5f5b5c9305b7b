"""The decode loop: one `lax.while_loop` until every sample has ended, with counters of steering."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.attention.segment import kinds_of
from vlm_jax.attention.steering import Readings, Steering
from vlm_jax.decoding.search import Choice, Found, LoopInputs, Now
from vlm_jax.decoding.strategies.base import Step
from vlm_jax.models import Cache, Network, Prefix, Watched


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepCounts:
    """How many heads of each layer were acted on at each step; int16 [B, slots, L].

    Step j is the decode row that predicted generated token j: the prompt's last row, then each
    generated token. Steps behind a row's end count 0.

    In the loop leaves are [B, slots, L, P]: heads are counted in P parts, one for each device that
    shares them, so that counting sends nothing. `summed` adds the parts on the host.

    Attributes:
        fired: heads that reallocated; None where nothing can be.
        perception, reasoning: heads of the class; None where no head is classified.
    """

    fired: Any = None
    perception: Any = None
    reasoning: Any = None

    @classmethod
    def empty(cls, shape: tuple[int, ...], steering: Steering | None) -> "StepCounts | None":
        """Returns zeros [B, slots, L, P] for what a steering reports, None if that is nothing."""
        flags = () if steering is None else steering.flags
        return cls(**{name: jnp.zeros(shape, jnp.int16) for name in flags}) if flags else None

    def put(
        self, step: Int[Array, "*B"], readings: Readings, going_b: Bool[Array, " B"]
    ) -> "StepCounts":
        """Returns the counts with those of one more step.

        Args:
            step: index of the step, a scalar or one for each row.
            readings: of the step, leaves [B, L, N].
            going_b: rows that have not ended; the others count 0.
        """

        def write(counts: Array | None, flags_bln: Array) -> Array | None:
            if counts is None:
                return None
            apart = flags_bln.reshape(*flags_bln.shape[:2], counts.shape[-1], -1)
            heads_blp = jnp.where(going_b[:, None, None], jnp.sum(apart, axis=-1), 0)
            now_b1lp = heads_blp[:, None].astype(counts.dtype)
            if step.ndim:
                here_bs = jnp.arange(counts.shape[1]) == step[:, None]
                return jnp.where(here_bs[..., None, None], now_b1lp, counts)
            return jax.lax.dynamic_update_slice_in_dim(counts, now_b1lp, step, axis=1)

        return StepCounts(
            **{n: write(counts, getattr(readings, f"{n}_bn")) for n, counts in vars(self).items()}
        )

    def summed(self) -> "StepCounts":
        """Returns the counts of all heads, [B, slots, L], of leaves on the host."""
        return jax.tree.map(lambda counts: counts.sum(axis=-1, dtype=counts.dtype), self)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Carried:
    """Sums and counters of the rows of a search, leaves [B C, ...]."""

    readings: Readings | None  # sums over the decode rows of rows that had not ended
    counts: StepCounts | None
    read_r: Any = None  # number of these decode rows, where tokens may be withdrawn


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LoopState:
    """The carry of the while loop; r are all rows of the batch, [B W C]."""

    count: Array
    tokens_r: Array
    logits_rv: Array
    watched: Watched  # of the rows that gave these logits; readings are in `carried`
    cache: Cache
    search: Any
    carried: _Carried


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The order of a batch's rows: for each of B samples W views, for each view C search rows.

    Two samples, W = 2 views, C = 2 rows of a search: rows 0 1 | 2 3 are the views of sample 0, rows
    4 5 | 6 7 those of sample 1. The search chooses by rows 0 1 4 5, the first views.

    Attributes:
        samples: B.
        views: W.
        rows: C.
    """

    samples: int
    views: int
    rows: int

    @classmethod
    def of(cls, inputs: LoopInputs, prompts: int) -> "_Rows":
        """Returns the order of the rows of a batch of so many prompts, views counted."""
        views = 1 if inputs.strategy is None else inputs.strategy.width
        return cls(prompts // views, views, inputs.search.rows)

    def of_search(self, tree: Any) -> Any:
        """Returns the rows of the first views: leaves [B W C, ...] to [B C, ...]."""
        if self.views == 1:
            return tree
        apart = lambda leaf: leaf.reshape(self.samples, self.views, self.rows, *leaf.shape[1:])
        flat = lambda leaf: apart(leaf)[:, 0].reshape(-1, *leaf.shape[1:])
        return jax.tree.map(flat, tree)

    def of_strategy(self, leaf_r: Float[Array, "rows ..."]) -> Float[Array, "BC W ..."]:
        """Returns the W views of each row of the search side by side."""
        rest = leaf_r.shape[1:]
        if self.rows > 1:
            leaf_r = leaf_r.reshape(self.samples, self.views, self.rows, *rest)
            leaf_r = jnp.moveaxis(leaf_r, 2, 1)
        return leaf_r.reshape(self.samples * self.rows, self.views, *rest)

    def every(self, leaf: Array) -> Array:
        """Repeats each sample's values for its views: [B, ...] to [B W, ...]."""
        return leaf if self.views == 1 else jnp.repeat(leaf, self.views, axis=0)

    def spread(self, tree: Any) -> Any:
        """Repeats each prompt's leaves for its rows of the search: [B W, ...] to [B W C, ...]."""
        many = lambda leaf: jnp.repeat(leaf, self.rows, axis=0)
        return tree if self.rows == 1 else jax.tree.map(many, tree)


@dataclasses.dataclass(frozen=True)
class _Loop:
    """Condition and body of the while loop.

    Attributes:
        model, inputs: see `decode`; the limit is at most the number of slots.
        rows: the order of the rows.
        first_rv: logits of the prompts' last rows, for strategies with `needs_first`.
        prefix: what the rows go on from; None where prompts were read whole.
    """

    model: Network
    inputs: LoopInputs
    rows: _Rows
    first_rv: Any
    prefix: Prefix | None

    @classmethod
    def of(
        cls,
        model: Network,
        inputs: LoopInputs,
        rows: _Rows,
        first_rv: Any,
        prefix: Prefix | None,
    ) -> "_Loop":
        """Returns the steps, given the prefixes of all prompts."""
        count = rows.samples * rows.views * rows.rows
        return cls(
            model, inputs, rows, first_rv, None if prefix is None else prefix.shared_by(count)
        )

    def unfinished(self, state: LoopState) -> Bool[Array, ""]:
        """Returns whether any sample has not ended."""
        return self.inputs.search.unfinished(state.search, self.inputs, state.count)

    def choose(self, state: LoopState) -> LoopState:
        """Returns the state with the next token of each row, chosen by `state.logits_rv`."""
        inputs, rows = self.inputs, self.rows
        search, strategy, scores_rv = inputs.search, inputs.strategy, state.logits_rv
        if strategy is not None:
            watched = jax.tree.map(rows.of_strategy, state.watched)
            first_bwv = rows.of_strategy(self.first_rv) if strategy.needs_first else None
            step = Step(state.count, watched, first_bwv)
            scores_rv = strategy.scores(rows.of_strategy(scores_rv), step)
        scores_bcv = scores_rv.reshape(rows.samples, rows.rows, -1)
        if inputs.bias_bv is not None:
            scores_bcv = scores_bcv + inputs.bias_bv[:, None]
        before = () if self.prefix is None else self.prefix.segments[:1]
        kinds = [kinds_of(segment) for segment in (*before, state.cache.prompt[0])]
        kinds_bp = jnp.concatenate(kinds, axis=1)[:: rows.views * rows.rows]
        now = Now(state.count, state.carried, state.watched, kinds_bp)
        choice, chosen = search.choose(scores_bcv, state.search, inputs, now)
        cache, carried = state.cache, state.carried
        if choice.parents_bc is not None:
            cache, carried = _move(cache, carried, choice, rows)
        return LoopState(
            count=state.count + 1,
            tokens_r=rows.every(choice.tokens_bc).reshape(-1),
            logits_rv=state.logits_rv,
            watched=state.watched,
            cache=cache,
            search=chosen,
            carried=carried,
        )

    def advance(self, state: LoopState) -> LoopState:
        """Reads the last token of each row with the model, then chooses the next."""
        rows, search = self.rows, self.inputs.search
        steering = _of_rows(self.inputs.steering, rows)
        watch = (self.inputs.strategy or search).watch(self.model.decoder.config.num_layers)
        logits_rv, cache, watched = self.model.step(
            state.tokens_r, state.cache, steering, watch, self.prefix
        )
        new, going_r = rows.of_search(watched.readings), search.going(state.search)
        going = going_r[:, None, None].astype(jnp.float32)
        add = lambda total, now: total + going * now
        readings = jax.tree.map(add, state.carried.readings, new)
        counts = state.carried.counts
        if counts is not None and new is not None:
            counts = counts.put(search.predicts(state.search, state.count), new, going_r)
        read_r = jax.tree.map(lambda read_r: read_r + going_r, state.carried.read_r)
        carried = _Carried(readings, counts, read_r)
        return self.choose(
            dataclasses.replace(
                state,
                logits_rv=logits_rv,
                watched=dataclasses.replace(watched, readings=None),
                cache=cache,
                carried=carried,
            )
        )


def decode(
    model: Network,
    read: tuple[Float[Array, "rows V"], Watched],
    cache: Cache,
    inputs: LoopInputs,
    slots: int,
    prefix: Prefix | None = None,
    parts: int = 1,
) -> tuple[Int[Array, "B slots"], Array, Array, Readings | None, StepCounts | None, Any, Cache]:
    """Decodes until every sample has ended; returns the answers.

    Args:
        model: the model.
        read: logits of the prompts' last rows, and what was watched of them.
        cache: of the prompts, spread over the rows of the search (`Cache.spread`).
        inputs: traced settings.
        slots: static number of tokens that an answer may have.
        prefix: what the prompts go on from, as for `Network.prefill`.
        parts: that heads are counted in (`StepCounts`).

    Returns:
        Tokens, lengths, whether rows ended, mean readings, counts in parts, scores, and the cache.
    """
    inputs = _limited(inputs, slots)
    state = begin(model, read, cache, inputs, slots, prefix, parts)
    state = go_on(model, state, inputs, slots, read[0], prefix)
    return *end(state, inputs), state.cache


def begin(
    model: Network,
    read: tuple[Float[Array, "rows V"], Watched],
    cache: Cache,
    inputs: LoopInputs,
    slots: int,
    prefix: Prefix | None = None,
    parts: int = 1,
) -> LoopState:
    """Returns the state of the loop with the first token chosen; see `decode`."""
    inputs, rows, search = _limited(inputs, slots), _Rows.of(inputs, len(read[0])), inputs.search
    logits_rv, watched = rows.spread(read)
    readings = rows.of_search(watched.readings)
    of_search, decoder = rows.samples * rows.rows, model.decoder.config
    counted = of_search, slots, decoder.num_layers, parts
    counts = StepCounts.empty(counted, _of_rows(inputs.steering, rows))
    if counts is not None and readings is not None:
        counts = counts.put(jnp.int32(0), readings, jnp.ones(of_search, bool))
    read_r = jnp.ones(of_search, jnp.int32) if search.withdraws else None
    carried = _Carried(readings, counts, read_r)
    shape = rows.samples, slots, logits_rv.shape[1]
    state = LoopState(
        count=jnp.int32(0),
        tokens_r=jnp.zeros(logits_rv.shape[0], jnp.int32),
        logits_rv=logits_rv,
        watched=_first_watched(watched, cache),
        cache=cache,
        search=search.start(inputs, shape, carried),
        carried=carried,
    )
    return _Loop.of(model, inputs, rows, logits_rv, prefix).choose(state)


def go_on(
    model: Network,
    state: LoopState,
    inputs: LoopInputs,
    until: Any,
    first_rv: Any = None,
    prefix: Prefix | None = None,
) -> LoopState:
    """Runs the loop on from a state, until every sample has ended or has `until` tokens.

    Args:
        model, inputs, prefix: see `decode`.
        state: what `begin` or an earlier call of this returned.
        until: number of tokens, those before the call included.
        first_rv: logits of the prompts' last rows, for a strategy with `needs_first`.
    """
    rows = _Rows.of(inputs, len(state.logits_rv) // inputs.search.rows)
    first_rv = None if first_rv is None else rows.spread(first_rv)
    loop = _Loop.of(model, _limited(inputs, until), rows, first_rv, prefix)
    return jax.lax.while_loop(loop.unfinished, loop.advance, state)


def end(
    state: LoopState, inputs: LoopInputs
) -> tuple[Int[Array, "B slots"], Array, Array, Readings | None, StepCounts | None, Any]:
    """Returns the answers of a state, finished or not: as `decode`, without the cache."""
    found: Found = inputs.search.answers(state.search, inputs, state.carried, state.count)
    # The first token is predicted by the prompt's last row, each later one by the token before it.
    steps_b = jnp.clip(found.lengths_b + found.ended_b, 1, state.count)
    steps_b = steps_b if found.carried.read_r is None else found.carried.read_r
    mean = lambda total: total / steps_b[:, None, None]
    readings = jax.tree.map(mean, found.carried.readings)
    answers = found.tokens_bn, found.lengths_b, found.ended_b, readings, found.carried.counts
    return *answers, found.scores_b


def _limited(inputs: LoopInputs, most: Any) -> LoopInputs:
    """Returns the inputs with a limit of at most so many tokens."""
    return dataclasses.replace(inputs, limit=jnp.minimum(inputs.limit, most))


def _first_watched(watched: Watched, cache: Cache) -> Watched:
    """Returns what was watched of the prompts in the shapes of later rows, which see slots too."""
    weights_rjs = watched.weights_bjs
    if weights_rjs is not None:
        weights_rjs = jnp.pad(weights_rjs, ((0, 0), (0, 0), (0, cache.new[0].length)))
    return dataclasses.replace(watched, readings=None, weights_bjs=weights_rjs)


def _move(cache: Cache, carried: _Carried, choice: Choice, rows: _Rows) -> tuple[Cache, _Carried]:
    """Returns cache and counters moved to the rows that continue them, as a search chose."""
    parents_bc, kept_bw = choice.parents_bc, choice.kept_bw
    assert parents_bc is not None
    from_bc = parents_bc
    if kept_bw is not None:
        from_bc = jnp.take_along_axis(kept_bw, parents_bc, axis=1)
    from_r = (from_bc + rows.rows * jnp.arange(rows.samples)[:, None]).reshape(-1)
    carried = jax.tree.map(lambda leaf: jnp.take(leaf, from_r, axis=0), carried)
    every = lambda tree: jax.tree.map(rows.every, tree)
    return cache.gather(every(parents_bc), every(kept_bw), every(choice.withdrawn)), carried


def _of_rows(steering: Steering | None, rows: _Rows) -> Steering | None:
    """Repeats a steering of prompts for their rows of the search."""
    many = lambda leaf: leaf if leaf.shape[0] == 1 else jnp.repeat(leaf, rows.rows, axis=0)
    return steering if rows.rows == 1 else jax.tree.map(many, steering)
