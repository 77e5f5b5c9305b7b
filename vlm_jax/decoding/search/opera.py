"""Over-trust penalty and retrospection (arXiv 2311.17911)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.batch import Kind
from vlm_jax.decoding.processors import History, process
from vlm_jax.decoding.search.base import Choice, Now
from vlm_jax.decoding.search.beam import DEAD, Beam, BeamState
from vlm_jax.decoding.search.retrospection import Beams, Retrospection, Taken, along, at, put, where
from vlm_jax.decoding.traced import traced
from vlm_jax.models import Watch
from vlm_jax.settings import number, one_of, setting, whole

EARLY = 10
"""Rows of an answer in which looking at the image is rewarded in place of the penalty.
Retrospection goes back to no token before this one."""

CHOOSE, REPLAY, SETTLE = range(3)
"""What the rows of a sample have read in this step: candidates, among which beams are chosen; the
last token that is left after others were withdrawn, once more; beams chosen without candidates."""


def over_trust(
    sums: Float[Array, "... N"], length: Int[Array, "..."]
) -> tuple[Float[Array, "..."], Int[Array, "..."]]:
    """Returns the greatest column score of a triangle of attention, and which column has it.

    A column's score is 1e-7 times the product of its entries, from the diagonal down.

    Args:
        sums: of the logarithms of each column's entries, scaled.
        length: rows of the triangle.
    """
    logs = jnp.where(jnp.arange(sums.shape[-1]) < length[..., None], sums, -jnp.inf)
    score = jnp.exp(jnp.minimum(np.log(1e-7) + jnp.max(logs, axis=-1), 60.0))
    return score, jnp.argmax(logs, axis=-1).astype(jnp.int32)


def mode(values: Int[Array, "... K"]) -> Int[Array, "..."]:
    """Returns the most frequent of K values, the least of several."""
    often = jnp.sum(values[..., None] == values[..., None, :], axis=-1)
    best = often == jnp.max(often, axis=-1, keepdims=True)
    return jnp.min(jnp.where(best, values, np.iinfo(np.int32).max), axis=-1)


@traced
class OPERA(Beam):
    """Penalises beams that trust one earlier token too much, and goes back to that token.

    Each beam's likeliest tokens, its candidates, are read before beams are chosen among them. The
    attention of a candidate to the answer's tokens (last layer, largest over heads, normalised) is
    a further row of a lower triangle; `over_trust` of the triangle is subtracted from its logit.
    When every beam has had the same greatest column more than `threshold` times, the sample goes
    back to that column's token and chooses another one behind it:

        answer so far   t0 ... t11 t12 t13    the greatest column was 11 too often, in every beam
        goes back to    t0 ... t11            12 tokens stay; t11 is read once more (REPLAY)
        chooses again   t0 ... t11 u12        t12 is banned behind t11; u12 is read (SETTLE)

    Withdrawn tokens keep their slots of the cache but are no longer seen, so an answer has twice as
    many slots as it may have tokens.

    The released code multiplies in half precision, which overflows; sums of logarithms give the
    intended products. Counts of greatest columns are reset for withdrawn tokens. Mean readings of
    attention include the rows of withdrawn tokens.

    Attributes:
        num_beams: W, how many beginnings are kept.
        candidates: tokens of each beam that are read.
        penalty: strength of the penalty.
        scale: what attention is multiplied by.
        threshold: how often a column may be the greatest in every beam.
        window: how many tokens are taken back at most.
        control: "off" is beam search.
    """

    num_beams: int = setting(5, whole, low=1)
    candidates: int = setting(5, whole, low=1)
    penalty: float = setting(1.0, number, low=0)
    scale: float = setting(50.0, number, low=0)
    threshold: int = setting(15, whole, low=1)
    window: int = setting(512, whole, low=1)
    control: str = setting("", one_of, known=("", "off"))

    @property
    def acting(self) -> Beam:
        """See `Search.acting`."""
        names = [field.name for field in dataclasses.fields(Beam)]
        return Beam(**{name: getattr(self, name) for name in names}) if self.control else self

    @property
    def rows(self) -> int:
        """See `Search.rows`."""
        return self.num_beams * self.candidates

    @property
    def beams(self) -> int:
        """See `Search.beams`."""
        return self.num_beams

    @property
    def withdraws(self) -> bool:
        """See `Search.withdraws`."""
        return True

    def room(self, slots: int) -> int:
        """See `Search.room`."""
        return 2 * slots

    def watch(self, depth: int) -> Watch:
        """See `Search.watch`."""
        return Watch(weights=(depth - 1,))

    def start(self, inputs, shape, carried):
        """See `Search.start`."""
        batch, slots, _ = shape
        width, wide = self.num_beams, self.candidates
        zeros = lambda *dims, dtype=jnp.int32: jnp.zeros((batch, *dims), dtype)
        beams = Beams(
            BeamState.start(inputs, shape, width, self._beams_of(carried)),
            zeros(width, slots),
            zeros(width, slots, dtype=jnp.float32),
        )
        before = min(slots, self.window + 1)
        keep = lambda leaf: zeros(before, *leaf.shape[1:], dtype=leaf.dtype)
        return Retrospection(
            beams=beams,
            count_b=zeros(),
            mode_b=jnp.full(batch, SETTLE, jnp.int32),
            tokens_bwc=zeros(width, wide),
            logs_bwc=zeros(width, wide, dtype=jnp.float32),
            kept=jax.tree.map(keep, beams.bare),
            columns_bnw=zeros(slots, width),
            chosen_bn2w=zeros(slots, 2, width),
            used_bn=zeros(slots),
            banned_bnu2w=zeros(slots, wide, 2, width),
        )

    def choose(self, scores_bcv, state, inputs, now: Now):
        """See `Search.choose`."""
        batch, width, wide = len(scores_bcv), self.num_beams, self.candidates
        count_b, open_b = state.count_b, self.open_b(state.beams.search)
        choosing_b, replaying_b = (state.mode_b == which for which in (CHOOSE, REPLAY))

        # CHOOSE: beams are taken among the candidates, or the sample goes back to `to_b` tokens.
        sums_bwcn, penalty_bwc, column_bwc = self._attended(state, now)
        among = self._take_candidates(state, sums_bwcn, penalty_bwc, inputs, now.carried)
        columns_bnw = put(state.columns_bnw, mode(column_bwc), count_b, open_b & choosing_b)
        back_b, to_b = self._goes_back(state, columns_bnw, inputs, now.count)
        back_b = back_b & choosing_b & open_b
        take_b = choosing_b & ~back_b

        # SETTLE: the beams that were read stay. What is likely behind these or those taken now.
        settled = dataclasses.replace(state.beams, sums_bwn=sums_bwcn[:, :, 0])
        beams = where(take_b, among.beams, settled)
        first_bw = jnp.broadcast_to(jnp.arange(width) * wide, (batch, width))
        kept_bw = jnp.where(take_b[:, None], among.row_bw, first_bw)
        read_b = count_b + take_b
        logs_bwv = self._logs(scores_bcv, kept_bw, beams.search.tokens_bwn, read_b, inputs)

        # REPLAY: beams are taken among all tokens but those that were chosen here before.
        again = self._take_again(state, logs_bwv, inputs, now.carried)
        beams = where(replaying_b, again.beams, beams)
        kept_bw = jnp.where(replaying_b[:, None], again.row_bw, kept_bw)

        beams = where(back_b, state.earlier(to_b), beams.written(read_b, now))
        next_b = jnp.where(back_b, to_b, read_b + replaying_b)
        seen_b = jnp.where(back_b, to_b - 1, read_b)
        fewer_b = jnp.where(back_b, count_b - to_b + 2, 0)

        # Candidates are read next, or one token of each beam in all of its rows.
        alone_b = back_b | replaying_b
        logs_bwc, likely_bwc = jax.lax.top_k(logs_bwv, wide)
        last_b11 = jnp.maximum(next_b - 1, 0)[:, None, None]
        last_bw1 = jnp.take_along_axis(beams.search.tokens_bwn, last_b11, axis=2)
        chosen_b2w = jnp.stack([among.row_bw // wide, among.token_bw], axis=1)
        again_b2w = jnp.stack([again.row_bw // wide, again.token_bw], axis=1)
        chosen_b2w = jnp.where(replaying_b[:, None, None], again_b2w, chosen_b2w)
        used_bn, banned_bnu2w = state.banned(to_b, back_b)
        following = Retrospection(
            beams=beams,
            count_b=next_b,
            mode_b=jnp.where(back_b, REPLAY, jnp.where(replaying_b, SETTLE, CHOOSE)),
            tokens_bwc=jnp.where(alone_b[:, None, None], last_bw1, likely_bwc).astype(jnp.int32),
            logs_bwc=logs_bwc,
            kept=state.keep(beams, next_b, ~alone_b),
            columns_bnw=columns_bnw,
            chosen_bn2w=put(state.chosen_bn2w, chosen_b2w, count_b, take_b | replaying_b),
            used_bn=used_bn,
            banned_bnu2w=banned_bnu2w,
        )
        following = where(open_b, following, state)
        choice = Choice(
            following.tokens_bwc.reshape(batch, -1),
            jnp.broadcast_to(jnp.repeat(jnp.arange(width), wide), (batch, width * wide)),
            kept_bw,
            beams.seen(seen_b, fewer_b, now),
        )
        return choice, following

    def _attended(
        self, state: Retrospection, now: Now
    ) -> tuple[Float[Array, "B W C N"], Float[Array, "B W C"], Int[Array, "B W C"]]:
        """Returns each candidate's sums of columns, its penalty, and its greatest column."""
        held_b = jnp.where(state.mode_b == CHOOSE, state.count_b, state.count_b - 1)
        added_bwcn, image_bwc = self._attention(state.beams.places_bwn, now, held_b)
        sums_bwcn = state.beams.sums_bwn[:, :, None] + added_bwcn
        held_b11 = held_b[:, None, None]
        penalty_bwc, column_bwc = over_trust(
            sums_bwcn, jnp.broadcast_to(held_b11 + 1, image_bwc.shape)
        )
        return sums_bwcn, jnp.where(held_b11 < EARLY, -image_bwc, penalty_bwc), column_bwc

    def _attention(
        self, places_bwn: Int[Array, "B W N"], now: Now, held_b: Int[Array, " B"]
    ) -> tuple[Float[Array, "B W C N"], Float[Array, "B W C"]]:
        """Returns the logarithms of a new row of the triangle, 0 behind it, and the image's mass.

        Args:
            places_bwn: places of the beams' tokens.
            now: with the weights of the rows that were read.
            held_b: tokens that the beams held before these.
        """
        batch, width, slots = places_bwn.shape
        wide, prompt = self.candidates, now.kinds_bp.shape[1]
        weights_bcs = now.watched.weights_bjs[:, 0].reshape(batch, width * wide, -1)
        weights_bcs = weights_bcs / jnp.sum(weights_bcs, axis=-1, keepdims=True)
        is_image_b1p = (now.kinds_bp == Kind.IMAGE)[:, None]
        image_bc = jnp.sum(jnp.where(is_image_b1p, weights_bcs[..., :prompt], 0.0), axis=-1)
        own_c1 = ((now.count - 1) * width + jnp.arange(width * wide))[:, None]
        steps_n = jnp.arange(slots)
        places_bcn = jnp.repeat(places_bwn, wide, axis=1)
        places_bcn = jnp.where(steps_n == held_b[:, None, None], own_c1, places_bcn)
        row_bcn = jnp.take_along_axis(weights_bcs, prompt + places_bcn, axis=2, mode="clip")
        logs_bcn = jnp.log(jnp.maximum(self.scale * row_bcn, 1e-30))
        logs_bcn = jnp.where(steps_n <= held_b[:, None, None], logs_bcn, 0.0)
        apart = lambda a: a.reshape(batch, width, wide, *a.shape[2:])
        return apart(logs_bcn), apart(image_bc)

    def _take_candidates(
        self,
        state: Retrospection,
        sums_bwcn: Float[Array, "B W C N"],
        penalty_bwc: Float[Array, "B W C"],
        inputs: Any,
        carried: Any,
    ) -> Taken:
        """Takes the best candidates; see `Beam.take`."""
        width, wide = penalty_bwc.shape[1:]
        logs_bwc = jax.nn.log_softmax(state.logs_bwc - self.penalty * penalty_bwc, axis=-1)
        sums_bwc = logs_bwc + state.beams.search.scores_bw[..., None]
        rows_wc = jnp.arange(width * wide).reshape(width, wide)
        rows_bwc = jnp.broadcast_to(rows_wc, sums_bwc.shape)
        # Few candidates: beams that end leave none, which are filled up with dead ones.
        missing = (0, 0), (0, 0), (0, max(2, 1 + inputs.stop_ids.shape[0], wide) - wide)
        sums_bwc = jnp.pad(sums_bwc, missing, constant_values=2 * DEAD)
        fill = lambda a: jnp.pad(a, missing, mode="edge")
        table = fill(state.tokens_bwc), fill(rows_bwc)
        search, count_b = state.beams.search, state.count_b
        token_bw, row_bw, search = self.take(sums_bwc, search, inputs, count_b, carried, table)
        beams = Beams(
            search,
            along(state.beams.places_bwn, row_bw // wide),
            along(sums_bwcn.reshape(len(row_bw), width * wide, -1), row_bw),
        )
        return Taken(beams, token_bw, row_bw)

    def _take_again(
        self, state: Retrospection, logs_bwv: Float[Array, "B W V"], inputs: Any, carried: Any
    ) -> Taken:
        """Takes beams among all tokens but those that were chosen at this place before.

        Where no sample replays, nothing is computed and what is returned means nothing.
        """
        before, count_b = state.beams, state.count_b
        batch, width = before.search.scores_bw.shape

        def take() -> tuple[Array, Array, BeamState]:
            sums_bwv = state.allowed(logs_bwv + before.search.scores_bw[..., None])
            return self.take(sums_bwv, before.search, inputs, count_b, self._beams_of(carried))

        none_bw = jnp.zeros((batch, width), jnp.int32)
        token_bw, beam_bw, search = jax.lax.cond(
            jnp.any(state.mode_b == REPLAY), take, lambda: (none_bw, none_bw, before.search)
        )
        beams = Beams(search, along(before.places_bwn, beam_bw), along(before.sums_bwn, beam_bw))
        return Taken(beams, token_bw, beam_bw * self.candidates)

    def _logs(self, scores_bcv, rows_bw, tokens_bwn, count_b, inputs) -> Float[Array, "B W V"]:
        """Returns the processed log-probabilities behind some rows."""
        batch, _, vocabulary = scores_bcv.shape
        scores_bwv = jnp.take_along_axis(scores_bcv, rows_bw[..., None], axis=1)
        history = History.of(inputs.settings, inputs.prompt_bp, tokens_bwn, count_b, vocabulary)
        logs_rv = jax.nn.log_softmax(scores_bwv.reshape(-1, vocabulary), axis=-1)
        step_r = jnp.repeat(count_b, rows_bw.shape[1])
        logs_rv = process(logs_rv, history, inputs.settings, inputs.stop_ids, step_r)
        return logs_rv.reshape(batch, -1, vocabulary)

    def _goes_back(
        self, state: Retrospection, columns_bnw: Int[Array, "B N W"], inputs: Any, used: Array
    ) -> tuple[Bool[Array, " B"], Int[Array, " B"]]:
        """Returns which samples go back, and how many tokens they keep then.

        Args:
            state: before the step.
            columns_bnw: which column was the greatest in each beam, at each token so far.
            inputs: of the loop.
            used: slots that are used.
        """
        count_b, slots = state.count_b, columns_bnw.shape[1]
        column_b = mode(at(columns_bnw, count_b))
        so_far_bn = jnp.arange(slots) <= count_b[:, None]
        same_bnw = (columns_bnw == column_b[:, None, None]) & so_far_bn[..., None]
        often_b = jnp.all(jnp.sum(same_bnw, axis=1) > self.threshold, axis=1)
        to_b = column_b + 1
        to_b = jnp.where(at(state.used_bn, to_b) < self.candidates, to_b, column_b)
        may_b = at(state.used_bn, to_b) < self.candidates
        near_b = (to_b < count_b) & (count_b - to_b <= self.window)
        fits_b = used + inputs.limit - to_b + 1 <= 2 * inputs.limit
        return often_b & (column_b >= EARLY) & may_b & near_b & fits_b, to_b

    def _beams_of(self, carried: Any) -> Any:
        """Returns what is counted of the first row of each beam."""
        return jax.tree.map(lambda leaf: leaf[:: self.candidates], carried)

    def predicts(self, state, count):
        """See `Search.predicts`."""
        token_b = state.count_b + (state.mode_b == CHOOSE)
        return jnp.repeat(token_b, self.rows)

    def going(self, state):
        """See `Search.going`."""
        return jnp.repeat(self.open_b(state.beams.search), self.rows)

    def unfinished(self, state, inputs, count):
        """See `Search.unfinished`."""
        return jnp.any(self.open_b(state.beams.search))

    def answers(self, state, inputs, carried, count):
        """See `Search.answers`."""
        return super().answers(state.beams.search, inputs, carried, count)
