"""Beam search as transformers does it, of all samples at once."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.decoding.processors import History, process
from vlm_jax.decoding.search.base import Choice, Found, Now, Search
from vlm_jax.decoding.settings import stopping
from vlm_jax.decoding.traced import traced
from vlm_jax.settings import number, setting, whole

DEAD = -1e9
"""Score of an empty beam, far below any sum of log-probabilities."""


@traced
class Beam(Search):
    """Keeps the W likeliest beginnings, and the W best of the answers that have ended.

    Attributes:
        num_beams: W, how many beginnings are kept.
        length_penalty: answers are compared by the sum of their log-probabilities over their
            length to this power.
        early_stopping: when a sample is done. True: once W answers have ended. False: once its best
            beam, scored at its present length, is worse than these. "never": once it is worse even
            at the length that would score best.
    """

    num_beams: int = setting(1, whole, low=1)
    length_penalty: float = setting(1.0, number)
    early_stopping: bool | str = setting(False, stopping)

    @property
    def rows(self) -> int:
        """See `Search.rows`."""
        return self.num_beams

    def start(self, inputs, shape, carried):
        """See `Search.start`."""
        return BeamState.start(inputs, shape, self.num_beams, carried)

    def choose(self, scores_bcv, state, inputs, now: Now):
        """See `Search.choose`."""
        batch, width, vocabulary = scores_bcv.shape
        count_b = jnp.broadcast_to(now.count, batch)
        history = History.of(
            inputs.settings, inputs.prompt_bp, state.tokens_bwn, count_b, vocabulary
        )
        logs_rv = jax.nn.log_softmax(scores_bcv.reshape(batch * width, vocabulary), axis=-1)
        logs_rv = process(logs_rv, history, inputs.settings, inputs.stop_ids, now.count)
        sums_bwv = logs_rv.reshape(batch, width, vocabulary) + state.scores_bw[..., None]
        token_bw, beam_bw, state = self.take(sums_bwv, state, inputs, count_b, now.carried)
        return Choice(token_bw, beam_bw), state

    def take(
        self,
        sums_bwk: Float[Array, "B W K"],
        state: "BeamState",
        inputs: Any,
        count_b: Int[Array, " B"],
        carried: Any,
        table: tuple[Int[Array, "B W K"], Int[Array, "B W K"]] | None = None,
    ) -> tuple[Int[Array, "B W"], Int[Array, "B W"], "BeamState"]:
        """Takes the W best continuations; those that end become finished answers.

        Args:
            sums_bwk: score of each beam with each of K tokens.
            state: before the step.
            inputs: of the loop.
            count_b: tokens that the beams hold.
            carried: the loop's counters of each row, leaves [B C, ...].
            table: token id and row of each of the K continuations; None: token k of the
                vocabulary, and the beam's own row.

        Returns:
            The next token of each beam, the row that it continues, and the new state.
        """
        batch, width, wide = sums_bwk.shape
        # As many as go on if all of the best end, each by its own stop id.
        count = width * max(2, 1 + inputs.stop_ids.shape[0])
        score_bk, flat_bk = jax.lax.top_k(sums_bwk.reshape(batch, -1), count)
        beam_bk, token_bk = flat_bk // wide, flat_bk % wide
        row_bk = beam_bk
        if table is not None:
            look_up = lambda a: jnp.take_along_axis(a.reshape(batch, -1), flat_bk, axis=1)
            token_bk, row_bk = map(look_up, table)
        token_bk = token_bk.astype(jnp.int32)
        ends_bk = jnp.isin(token_bk, inputs.stop_ids) | (count_b + 1 >= inputs.limit)[:, None]
        tokens_bkn = jnp.take_along_axis(state.tokens_bwn, beam_bk[..., None], axis=1)
        places_n = jnp.arange(tokens_bkn.shape[-1])
        tokens_bkn = jnp.where(places_n == count_b[:, None, None], token_bk[..., None], tokens_bkn)
        finished = self._finish(
            state, score_bk, ends_bk, tokens_bkn, count_b, _rows(carried, row_bk)
        )
        running_bk = score_bk + jnp.where(ends_bk, DEAD, 0.0)
        scores_bw, next_bw = jax.lax.top_k(running_bk, width)
        pick = lambda a_bk: jnp.take_along_axis(a_bk, next_bw, axis=1)
        tokens_bwn = jnp.take_along_axis(tokens_bkn, next_bw[..., None], axis=1)
        improving_b = state.improving_b & self._improves(scores_bw, finished, count_b, inputs)
        state = BeamState(tokens_bwn, scores_bw, finished, improving_b, jnp.all(ends_bk, axis=1))
        return pick(token_bk), pick(row_bk), state

    def _finish(self, state, score_bk, ends_bk, tokens_bkn, count_b, carried) -> "Hypotheses":
        """Returns the W best answers among those that had ended before and those that end now."""
        width, before = state.scores_bw.shape[1], state.finished
        ends_bk = ends_bk & (jnp.arange(ends_bk.shape[1]) < width)
        length_b = (count_b + 1).astype(jnp.float32)
        score_bk = score_bk / (length_b**self.length_penalty)[:, None]
        closed_b = ~state.improving_b
        if self.early_stopping is True:
            closed_b = closed_b | jnp.all(before.there_bw, axis=1)
        score_bk = score_bk + jnp.where(closed_b[:, None], DEAD, 0.0)
        score_bk = score_bk + jnp.where(ends_bk, 0.0, DEAD)
        length_bk = jnp.broadcast_to(count_b[:, None] + 1, ends_bk.shape)
        now = Hypotheses(tokens_bkn, score_bk, length_bk, ends_bk, carried)
        every = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), before, now)
        _, best_bw = jax.lax.top_k(every.scores_bw, width)
        take = lambda leaf: jnp.take_along_axis(
            leaf, best_bw.reshape(*best_bw.shape, *[1] * (leaf.ndim - 2)), axis=1
        )
        return jax.tree.map(take, every)

    def _improves(self, scores_bw, finished: "Hypotheses", count_b, inputs) -> Bool[Array, " B"]:
        """Returns whether a sample's best beam may still beat one of its finished answers."""
        length_b = count_b + 1
        if self.early_stopping == "never":
            length_b = jnp.where(self.length_penalty > 0, inputs.limit, length_b)
        best_b = scores_bw[:, 0] / length_b.astype(jnp.float32) ** self.length_penalty
        worst_b = jnp.min(finished.scores_bw, axis=1)
        worst_bw = jnp.where(finished.there_bw, worst_b[:, None], DEAD)
        return jnp.any(best_b[:, None] > worst_bw, axis=1)

    def going(self, state):
        """See `Search.going`."""
        return jnp.ones(state.scores_bw.size, bool)

    def unfinished(self, state, inputs, count):
        """See `Search.unfinished`."""
        return jnp.any(self.open_b(state))

    def open_b(self, state: "BeamState") -> Bool[Array, " B"]:
        """Returns which samples may still find a better answer."""
        open_b = state.improving_b & ~state.ended_b
        if self.early_stopping is True:
            open_b = open_b & ~jnp.all(state.finished.there_bw, axis=1)
        return open_b

    def answers(self, state, inputs, carried, count):
        """See `Search.answers`."""
        best = jax.tree.map(lambda leaf: leaf[:, 0], state.finished)
        is_stop_bn = jnp.isin(best.tokens_bwn, inputs.stop_ids)
        is_stop_bn &= jnp.arange(is_stop_bn.shape[1]) < best.lengths_bw[:, None]
        ended_b = jnp.any(is_stop_bn, axis=1)
        length_b = jnp.where(ended_b, jnp.argmax(is_stop_bn, axis=1), best.lengths_bw)
        return Found(
            best.tokens_bwn, length_b.astype(jnp.int32), ended_b, best.carried, best.scores_bw
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hypotheses:
    """The W best answers of each sample that have ended, the best first.

    Attributes:
        tokens_bwn: their tokens, stop ids included.
        scores_bw: their scores after the length penalty.
        lengths_bw: tokens of each, the stop id included.
        there_bw: whether the entry is filled.
        carried: the loop's counters of their rows, leaves [B, W, ...].
    """

    tokens_bwn: Any
    scores_bw: Any
    lengths_bw: Any
    there_bw: Any
    carried: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BeamState:
    """The beams of each sample, the best first.

    Attributes:
        tokens_bwn: generated so far.
        scores_bw: sums of log-probabilities.
        finished: answers that have ended.
        improving_b: whether a beam may still beat one of these.
        ended_b: whether every continuation of the last step ended.
    """

    tokens_bwn: Any
    scores_bw: Any
    finished: Hypotheses
    improving_b: Any
    ended_b: Any

    @classmethod
    def start(
        cls, inputs: Any, shape: tuple[int, int, int], width: int, carried: Any
    ) -> "BeamState":
        """Returns the state before the first token, when one beam of each sample is alive.

        Args:
            inputs, shape: see `Search.start`.
            width: W.
            carried: the loop's counters of each beam, leaves [B W, ...].
        """
        batch, slots, _ = shape
        tokens_bwn = jnp.full((batch, width, slots), inputs.pad_id, jnp.int32)
        dead_bw = jnp.full((batch, width), DEAD, jnp.float32)
        none_bw = jnp.zeros((batch, width), bool)
        apart = lambda leaf: jnp.zeros((batch, width, *leaf.shape[1:]), leaf.dtype)
        finished = Hypotheses(
            tokens_bwn,
            dead_bw,
            jnp.zeros((batch, width), jnp.int32),
            none_bw,
            jax.tree.map(apart, carried),
        )
        return cls(
            tokens_bwn, dead_bw.at[:, 0].set(0.0), finished, jnp.ones(batch, bool), none_bw[:, 0]
        )


def _rows(carried: Any, row_bk: Int[Array, "B K"]) -> Any:
    """Returns the counters of the rows that continuations are of, leaves [B, K, ...]."""
    batch = len(row_bk)

    def take(leaf: Array) -> Array:
        apart = leaf.reshape(batch, -1, *leaf.shape[1:])
        places = row_bk.reshape(*row_bk.shape, *[1] * (leaf.ndim - 1))
        return jnp.take_along_axis(apart, places, axis=1)

    return jax.tree.map(take, carried)
