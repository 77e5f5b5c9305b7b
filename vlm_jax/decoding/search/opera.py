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
from vlm_jax.decoding.traced import traced
from vlm_jax.models import Watch, Withdrawn
from vlm_jax.settings import number, one_of, setting, whole

EARLY = 10
"""Rows of an answer in which looking at the image is rewarded in place of the penalty.
Retrospection goes back to no token before this one."""

CHOOSE, REPLAY, SETTLE = range(3)
"""What was read last: candidates, of which beams are to be chosen; the last token that is left when
others were taken back, once more; beams that were chosen, without candidates."""


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

    Each beam's likeliest tokens, its candidates, are read before beams are chosen among them. What
    they attend to in the last layer, the largest over heads and brought to a sum of 1, is a further
    row of a triangle of attention among the answer's tokens; `over_trust` is taken from their
    logits. When every beam has had the same column for the greatest more than `threshold` times,
    all go back to the token behind it and choose another. Tokens are taken back by not being seen:
    their slots stay, and an answer has twice as many slots as it may have tokens.

    The released code multiplies in half precision, which overflows; sums of logarithms give what
    was meant. How often columns were the greatest is forgotten with the tokens that are taken back.
    Means of what attention did count the rows of these tokens too.

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
        beams = _Beams(
            BeamState.start(inputs, shape, width, self._beams_of(carried)),
            zeros(width, slots),
            zeros(width, slots, dtype=jnp.float32),
        )
        before = min(slots, self.window + 1)
        keep = lambda leaf: zeros(before, *leaf.shape[1:], dtype=leaf.dtype)
        return _State(
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
        count_b, before = state.count_b, state.kept.places_bwn.shape[1]
        open_b = self.open_b(state.beams.search)
        choosing_b, replaying_b = (state.mode_b == which for which in (CHOOSE, REPLAY))
        first_bw = jnp.broadcast_to(jnp.arange(width) * wide, (batch, width))

        # Candidates, with what they attended to; and the beams that they would make.
        held_b = jnp.where(choosing_b, count_b, count_b - 1)
        added_bwcn, image_bwc = self._attention(state.beams.places_bwn, now, held_b)
        sums_bwcn = state.beams.sums_bwn[:, :, None] + added_bwcn
        penalty_bwc, column_bwc = over_trust(
            sums_bwcn, jnp.broadcast_to(held_b[:, None, None] + 1, image_bwc.shape)
        )
        early_b11 = held_b[:, None, None] < EARLY
        penalty_bwc = jnp.where(early_b11, -image_bwc, penalty_bwc)
        token_bw, row_bw, taken = self._take(state, penalty_bwc, inputs, now.carried)
        taken = _Beams(
            taken,
            _along(state.beams.places_bwn, row_bw // wide),
            _along(sums_bwcn.reshape(batch, width * wide, -1), row_bw),
        )

        # Or else the beams of an earlier token.
        columns_bnw = _put(state.columns_bnw, mode(column_bwc), count_b, open_b & choosing_b)
        back_b, to_b = self._goes_back(state, columns_bnw, inputs, now.count)
        back_b = back_b & choosing_b & open_b
        take_b = choosing_b & ~back_b
        earlier = jax.tree.map(lambda leaf: _at(leaf, to_b % before), state.kept)
        earlier = earlier.with_carried(state.beams.search.finished.carried)

        # What is likely behind the beams; those that have gone back choose among all of it.
        settled = dataclasses.replace(state.beams, sums_bwn=sums_bwcn[:, :, 0])
        beams = _where(replaying_b, state.beams, _where(take_b, taken, settled))
        kept_bw = jnp.where(take_b[:, None], row_bw, first_bw)
        read_b = count_b + take_b
        logs_bwv = self._logs(scores_bcv, kept_bw, beams.search.tokens_bwn, read_b, inputs)

        def choose_again() -> tuple[Array, Array, BeamState]:
            sums_bwv = logs_bwv + state.beams.search.scores_bw[..., None]
            banned_bu2w = _at(state.banned_bnu2w, count_b)
            sums_bwv = _without(sums_bwv, banned_bu2w, _at(state.used_bn, count_b))
            carried = self._beams_of(now.carried)
            return self.take(sums_bwv, state.beams.search, inputs, count_b, carried)

        again_bw, parent_bw, again = jax.lax.cond(
            jnp.any(replaying_b), choose_again, lambda: (token_bw, first_bw, state.beams.search)
        )
        again = _Beams(
            again,
            _along(state.beams.places_bwn, parent_bw),
            _along(state.beams.sums_bwn, parent_bw),
        )
        beams = _where(replaying_b, again, beams)
        kept_bw = jnp.where(replaying_b[:, None], parent_bw * wide, kept_bw)

        # The beams' last token that was read is where they are kept.
        place_bw = jnp.broadcast_to((now.count - 1) * width + jnp.arange(width), (batch, width))
        is_last_bn = jnp.arange(beams.places_bwn.shape[2]) == read_b[:, None] - 1
        places_bwn = jnp.where(is_last_bn[:, None], place_bw[..., None], beams.places_bwn)
        beams = _where(back_b, earlier, dataclasses.replace(beams, places_bwn=places_bwn))
        next_b = jnp.where(back_b, to_b, read_b + replaying_b)
        seen_b = jnp.where(back_b, to_b - 1, read_b)

        # What is read next: candidates, or one token of each beam in all of its rows.
        logs_bwc, likely_bwc = jax.lax.top_k(logs_bwv, wide)
        last_bw = jnp.take_along_axis(
            beams.search.tokens_bwn, jnp.maximum(next_b - 1, 0)[:, None, None], axis=2
        )
        alone_b = back_b | replaying_b
        tokens_bwc = jnp.where(alone_b[:, None, None], last_bw, likely_bwc).astype(jnp.int32)
        chosen_b2w = jnp.stack([row_bw // wide, token_bw], axis=1)
        chosen_b2w = jnp.where(
            replaying_b[:, None, None], jnp.stack([parent_bw, again_bw], axis=1), chosen_b2w
        )
        used_b = _at(state.used_bn, to_b)
        uses_bu2w = _put(
            _at(state.banned_bnu2w, to_b), _at(state.chosen_bn2w, to_b), used_b, back_b
        )
        following = _State(
            beams=beams,
            count_b=next_b,
            mode_b=jnp.where(back_b, REPLAY, jnp.where(replaying_b, SETTLE, CHOOSE)),
            tokens_bwc=tokens_bwc,
            logs_bwc=logs_bwc,
            kept=jax.tree.map(
                lambda kept, leaf: _put(kept, leaf, next_b % before, ~alone_b),
                state.kept,
                beams.bare,
            ),
            columns_bnw=columns_bnw,
            chosen_bn2w=_put(state.chosen_bn2w, chosen_b2w, count_b, take_b | replaying_b),
            used_bn=_put(state.used_bn, used_b + 1, to_b, back_b),
            banned_bnu2w=_put(state.banned_bnu2w, uses_bu2w, to_b, back_b),
        )
        following = _where(open_b, following, state)
        choice = Choice(
            following.tokens_bwc.reshape(batch, -1),
            jnp.broadcast_to(jnp.repeat(jnp.arange(width), wide), (batch, width * wide)),
            kept_bw,
            _seen(beams.places_bwn, seen_b, jnp.where(back_b, count_b - to_b + 2, 0), now, width),
        )
        return choice, following

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

    def _take(
        self, state: "_State", penalty_bwc: Float[Array, "B W C"], inputs: Any, carried: Any
    ) -> tuple[Int[Array, "B W"], Int[Array, "B W"], BeamState]:
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
        return self.take(sums_bwc, search, inputs, count_b, carried, table)

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
        self, state: "_State", columns_bnw: Int[Array, "B N W"], inputs: Any, used: Array
    ) -> tuple[Bool[Array, " B"], Int[Array, " B"]]:
        """Returns which samples go back, and how many tokens they keep then.

        Args:
            state: before the step.
            columns_bnw: which column was the greatest in each beam, at each token so far.
            inputs: of the loop.
            used: slots that are used.
        """
        count_b, slots = state.count_b, columns_bnw.shape[1]
        column_b = mode(_at(columns_bnw, count_b))
        so_far_bn = jnp.arange(slots) <= count_b[:, None]
        same_bnw = (columns_bnw == column_b[:, None, None]) & so_far_bn[..., None]
        often_b = jnp.all(jnp.sum(same_bnw, axis=1) > self.threshold, axis=1)
        to_b = column_b + 1
        to_b = jnp.where(_at(state.used_bn, to_b) < self.candidates, to_b, column_b)
        may_b = _at(state.used_bn, to_b) < self.candidates
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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Beams:
    """The beams of each sample.

    Attributes:
        search: their tokens and scores.
        places_bwn: places of the cache that their tokens were written to.
        sums_bwn: for each token, the sum of the logarithms of what later ones attended to it.
    """

    search: BeamState
    places_bwn: Any
    sums_bwn: Any

    @property
    def bare(self) -> "_Beams":
        """Without what is counted of the answers that have ended."""
        return self.with_carried(None)

    def with_carried(self, carried: Any) -> "_Beams":
        """Returns them with what is counted of the answers that have ended."""
        finished = dataclasses.replace(self.search.finished, carried=carried)
        return dataclasses.replace(self, search=dataclasses.replace(self.search, finished=finished))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
    """Where the samples stand.

    Attributes:
        beams: now.
        count_b: tokens that they hold.
        mode_b: what was read last.
        tokens_bwc: what is read next.
        logs_bwc: log-probabilities of candidates.
        kept: the beams that held so many tokens, in a ring [B, window, ...].
        columns_bnw: the greatest column of each beam when it held so many tokens.
        chosen_bn2w: beams and tokens that were chosen when the beams held so many.
        used_bn: how often beams went back to so many tokens.
        banned_bnu2w: what had been chosen there before each time.
    """

    beams: _Beams
    count_b: Any
    mode_b: Any
    tokens_bwc: Any
    logs_bwc: Any
    kept: _Beams
    columns_bnw: Any
    chosen_bn2w: Any
    used_bn: Any
    banned_bnu2w: Any


def _where(flags_b: Array, yes: Any, no: Any) -> Any:
    """Returns for each sample the leaves of one of two trees."""
    pick = lambda a, b: jnp.where(flags_b.reshape(-1, *[1] * (a.ndim - 1)), a, b)
    return jax.tree.map(pick, yes, no)


def _at(a_bn: Array, index_b: Int[Array, " B"]) -> Array:
    """Returns each sample's entry of an index; indices are clipped."""
    index_b = jnp.clip(index_b, 0, a_bn.shape[1] - 1)
    return a_bn[jnp.arange(len(a_bn)), index_b]


def _put(a_bn: Array, value_b: Array, index_b: Int[Array, " B"], flags_b: Array) -> Array:
    """Returns an array with the entries of some samples set."""
    index_b = jnp.where(flags_b, index_b, a_bn.shape[1])
    return a_bn.at[jnp.arange(len(a_bn)), index_b].set(value_b, mode="drop")


def _along(a_bwn: Array, index_bw: Int[Array, "B W"]) -> Array:
    """Returns the rows of an index."""
    return jnp.take_along_axis(a_bwn, index_bw[..., None], axis=1)


def _without(
    sums_bwv: Float[Array, "B W V"], banned_bu2w: Int[Array, "B U 2 W"], used_b: Int[Array, " B"]
) -> Float[Array, "B W V"]:
    """Returns sums without the beams and tokens that were chosen before."""
    batch, width, _ = sums_bwv.shape
    valid_bu1 = (jnp.arange(banned_bu2w.shape[1]) < used_b[:, None])[..., None]
    beam_bx = jnp.where(valid_bu1, banned_bu2w[:, :, 0], width).reshape(batch, -1)
    token_bx = banned_bu2w[:, :, 1].reshape(batch, -1)
    rows_b1 = jnp.arange(batch)[:, None]
    return sums_bwv.at[rows_b1, beam_bx, token_bx].set(2 * DEAD, mode="drop")


def _seen(
    places_bwn: Int[Array, "B W N"], count_b: Array, fewer_b: Array, now: Now, width: int
) -> Withdrawn:
    """Returns which places the beams see: those of so many of their tokens.

    Args:
        places_bwn: places of the beams' tokens.
        count_b: how many tokens they go on from.
        fewer_b: how many fewer these are than were read.
        now: whose weights tell the number of places.
        width: W.
    """
    batch, _, slots = places_bwn.shape
    places = now.watched.weights_bjs.shape[-1] - now.kinds_bp.shape[1]
    places_bwn = jnp.where(jnp.arange(slots) < count_b[:, None, None], places_bwn, places)
    rows_b11 = jnp.arange(batch)[:, None, None]
    rows_1w1 = jnp.arange(width)[None, :, None]
    sees_bwp = jnp.zeros((batch, width, places), bool)
    sees_bwp = sees_bwp.at[rows_b11, rows_1w1, places_bwn].set(True, mode="drop")
    return Withdrawn(sees_bwp, fewer_b.astype(jnp.int32))
