"""State of a beam search that may go back to an earlier token (OPERA's retrospection)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vlm_jax.decoding.search.base import Now
from vlm_jax.decoding.search.beam import DEAD, BeamState
from vlm_jax.models import Withdrawn


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Beams:
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
    def bare(self) -> "Beams":
        """These beams without the counters of answers that have ended."""
        return self.with_carried(None)

    def with_carried(self, carried: Any) -> "Beams":
        """Returns these beams with counters of the answers that have ended."""
        finished = dataclasses.replace(self.search.finished, carried=carried)
        return dataclasses.replace(self, search=dataclasses.replace(self.search, finished=finished))

    def written(self, read_b: Int[Array, " B"], now: Now) -> "Beams":
        """Returns these beams with the cache place of the last of the `read_b` tokens read."""
        batch, width, slots = self.places_bwn.shape
        place_bw = jnp.broadcast_to((now.count - 1) * width + jnp.arange(width), (batch, width))
        is_last_bn = jnp.arange(slots) == read_b[:, None] - 1
        places_bwn = jnp.where(is_last_bn[:, None], place_bw[..., None], self.places_bwn)
        return dataclasses.replace(self, places_bwn=places_bwn)

    def seen(self, count_b: Int[Array, " B"], fewer_b: Int[Array, " B"], now: Now) -> Withdrawn:
        """Returns which places of the cache the beams see: those of their first `count_b` tokens.

        Args:
            count_b: how many tokens they go on from.
            fewer_b: how many fewer these are than were read.
            now: whose weights tell the number of places.
        """
        batch, width, slots = self.places_bwn.shape
        places = now.watched.weights_bjs.shape[-1] - now.kinds_bp.shape[1]
        seen_bwn = jnp.arange(slots) < count_b[:, None, None]
        places_bwn = jnp.where(seen_bwn, self.places_bwn, places)
        rows_b11 = jnp.arange(batch)[:, None, None]
        rows_1w1 = jnp.arange(width)[None, :, None]
        sees_bwp = jnp.zeros((batch, width, places), bool)
        sees_bwp = sees_bwp.at[rows_b11, rows_1w1, places_bwn].set(True, mode="drop")
        return Withdrawn(sees_bwp, fewer_b.astype(jnp.int32))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Taken:
    """Beams that were chosen.

    Attributes:
        beams: with their new tokens.
        token_bw: the new token of each.
        row_bw: the row, of the W C of a sample, that each goes on from.
    """

    beams: Beams
    token_bw: Any
    row_bw: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Retrospection:
    """State of the search; "so many" is a number of tokens of the answers.

    Attributes:
        beams: the beams of this step.
        count_b: tokens that they hold.
        mode_b: what was read last: `CHOOSE`, `REPLAY` or `SETTLE` of `opera`.
        tokens_bwc: tokens that are read next.
        logs_bwc: log-probabilities of candidates.
        kept: the beams that held so many tokens, in a ring [B, window, ...].
        columns_bnw: the greatest column of each beam when it held so many tokens.
        chosen_bn2w: beams and tokens that were chosen when the beams held so many.
        used_bn: how often beams went back to so many tokens.
        banned_bnu2w: what had been chosen there before each time.
    """

    beams: Beams
    count_b: Any
    mode_b: Any
    tokens_bwc: Any
    logs_bwc: Any
    kept: Beams
    columns_bnw: Any
    chosen_bn2w: Any
    used_bn: Any
    banned_bnu2w: Any

    def earlier(self, count_b: Int[Array, " B"]) -> Beams:
        """Returns the beams as they were with `count_b` tokens; answers that have ended stay."""
        ring = self.kept.places_bwn.shape[1]
        beams = jax.tree.map(lambda leaf: at(leaf, count_b % ring), self.kept)
        return beams.with_carried(self.beams.search.finished.carried)

    def keep(self, beams: Beams, count_b: Int[Array, " B"], flags_b: Array) -> Beams:
        """Returns `kept` with the beams of the flagged samples, which hold `count_b` tokens."""
        ring = self.kept.places_bwn.shape[1]
        keep = lambda kept, leaf: put(kept, leaf, count_b % ring, flags_b)
        return jax.tree.map(keep, self.kept, beams.bare)

    def banned(self, to_b: Int[Array, " B"], back_b: Array) -> tuple[Array, Array]:
        """Returns `used_bn` and `banned_bnu2w` after samples `back_b` go back to `to_b` tokens.

        What was chosen there is banned from now on.
        """
        used_b = at(self.used_bn, to_b)
        uses_bu2w = at(self.banned_bnu2w, to_b)
        uses_bu2w = put(uses_bu2w, at(self.chosen_bn2w, to_b), used_b, back_b)
        used_bn = put(self.used_bn, used_b + 1, to_b, back_b)
        return used_bn, put(self.banned_bnu2w, uses_bu2w, to_b, back_b)

    def allowed(self, sums_bwv: Float[Array, "B W V"]) -> Float[Array, "B W V"]:
        """Returns sums without the beams and tokens that are banned where the samples stand."""
        batch, width, _ = sums_bwv.shape
        banned_bu2w = at(self.banned_bnu2w, self.count_b)
        used_b1 = at(self.used_bn, self.count_b)[:, None]
        valid_bu1 = (jnp.arange(banned_bu2w.shape[1]) < used_b1)[..., None]
        beam_bx = jnp.where(valid_bu1, banned_bu2w[:, :, 0], width).reshape(batch, -1)
        token_bx = banned_bu2w[:, :, 1].reshape(batch, -1)
        rows_b1 = jnp.arange(batch)[:, None]
        return sums_bwv.at[rows_b1, beam_bx, token_bx].set(2 * DEAD, mode="drop")


def where(flags_b: Array, yes: Any, no: Any) -> Any:
    """Returns the leaves of `yes` for samples whose flag is True, those of `no` for the others."""
    pick = lambda a, b: jnp.where(flags_b.reshape(-1, *[1] * (a.ndim - 1)), a, b)
    return jax.tree.map(pick, yes, no)


def at(a_bn: Array, index_b: Int[Array, " B"]) -> Array:
    """Returns a_bn[b, index_b[b]] of each sample b; indices are clipped."""
    index_b = jnp.clip(index_b, 0, a_bn.shape[1] - 1)
    return a_bn[jnp.arange(len(a_bn)), index_b]


def put(a_bn: Array, value_b: Array, index_b: Int[Array, " B"], flags_b: Array) -> Array:
    """Returns a_bn with a_bn[b, index_b[b]] = value_b[b] for samples whose flag is True."""
    index_b = jnp.where(flags_b, index_b, a_bn.shape[1])
    return a_bn.at[jnp.arange(len(a_bn)), index_b].set(value_b, mode="drop")


def along(a_bwn: Array, index_bw: Int[Array, "B W"]) -> Array:
    """Returns a_bwn[b, index_bw[b, w]] for each beam w of each sample b."""
    return jnp.take_along_axis(a_bwn, index_bw[..., None], axis=1)
