"""Base class of searches: which tokens come next, and which beams they continue.

A search reads C rows of each sample in a step and keeps the tokens of W of them, its beams. For
each of the next C rows it returns a token and the beam that the token continues. Greedy decoding
has C = W = 1, beam search C = W, OPERA reads C = W * candidates:

    beams "a dog", "a cat"                W = 2
    next rows "sat" "ran" | "is" "lay"    C = 4; parents_bc 0 0 1 1
"""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.attention.steering import Steering
from vlm_jax.decoding.strategies import Strategy
from vlm_jax.decoding.traced import Traced
from vlm_jax.models import Watch, Watched, Withdrawn


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Choice:
    """The next tokens of B samples.

    Attributes:
        tokens_bc: int32 [B, C], the token that each row reads next.
        parents_bc: int32 [B, C], the beam that each row continues; None: each row its own.
        kept_bw: int32 [B, W], which of the last C rows the beams are; None: all of them.
        withdrawn: earlier tokens that the beams withdraw; None: this search withdraws none.
    """

    tokens_bc: Int[Array, "B C"]
    parents_bc: Int[Array, "B C"] | None = None
    kept_bw: Int[Array, "B W"] | None = None
    withdrawn: Withdrawn | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Now:
    """What a search is given in a step besides scores and its own state.

    Attributes:
        count: int32 scalar, number of steps done.
        carried: the loop's counters of each row, leaves [B C, ...]; see `Found`.
        watched: what `Search.watch` asks for, leaves [B C, ...].
        kinds_bp: int8 [B, P], the `Kind` of the prompts' tokens.
    """

    count: Any
    carried: Any
    watched: Watched
    kinds_bp: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Found:
    """The best answer to each of B samples.

    Attributes:
        tokens_bn: int32 [B, slots], the stop id included; pad id after it.
        lengths_b: int32 [B], tokens before the stop id.
        ended_b: bool [B], whether a stop id was reached.
        carried: the counters of the row that each is from, leaves [B, ...].
        scores_b: float32 [B], their scores among the beams; None where there is one row.
    """

    tokens_bn: Int[Array, "B slots"]
    lengths_b: Int[Array, " B"]
    ended_b: Bool[Array, " B"]
    carried: Any
    scores_b: Any = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LoopInputs:
    """The traced arguments of the decode loop; the batch dim leads where there is one."""

    limit: Any  # int32 scalar, tokens to generate
    stop_ids: Any  # int32 [stops]
    pad_id: Any  # int32 scalar
    settings: dict[str, Any]  # `DecodeSettings.traced`
    seeds_b: Any  # uint32 [B]
    bias_bv: Any  # float32 [B, V] added to logits, or None
    prompt_bp: Any  # int32 [B, P] prompts right-aligned, -1 before; None if nothing looks back
    steering: Steering | None
    strategy: Strategy | None
    search: "Search"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search(Traced):
    """Chooses tokens by their scores, one step of all samples at a time."""

    @property
    def rows(self) -> int:
        """Number C of rows of a sample that are read in a step."""
        return 1

    @property
    def beams(self) -> int:
        """Number W of rows of a sample whose tokens are kept."""
        return self.rows

    @property
    def acting(self) -> "Search":
        """The search that runs: this one, or the plain one that its control stands for."""
        return self

    @property
    def withdraws(self) -> bool:
        """Whether it may withdraw tokens."""
        return False

    def room(self, slots: int) -> int:
        """Returns the cache slots that answers of so many tokens need at most."""
        return slots

    def watch(self, depth: int) -> Watch | None:
        """Returns what it reads of each call of a model of `depth` layers; None: nothing."""
        return None

    def start(self, inputs: LoopInputs, shape: tuple[int, int, int], carried: Any) -> Any:
        """Returns the state before the first token.

        Args:
            inputs: of the loop.
            shape: samples B, slots for tokens, vocabulary V.
            carried: leaves with the shapes of `Now.carried`.
        """
        raise NotImplementedError

    def choose(
        self, scores_bcv: Float[Array, "B C V"], state: Any, inputs: LoopInputs, now: Now
    ) -> tuple[Choice, Any]:
        """Chooses tokens by the scores of the rows; returns the choice and the next state."""
        raise NotImplementedError

    def predicts(self, state: Any, count: Array) -> Int[Array, "*rows"]:
        """Returns the index of the token that the last rows predict: a scalar, or [B C]."""
        return count

    def going(self, state: Any) -> Bool[Array, " rows"]:
        """Returns which of the B C rows have not ended; readings of others are not counted."""
        raise NotImplementedError

    def unfinished(self, state: Any, inputs: LoopInputs, count: Array) -> Bool[Array, ""]:
        """Returns whether any sample has not ended after so many steps."""
        raise NotImplementedError

    def answers(self, state: Any, inputs: LoopInputs, carried: Any, count: Array) -> Found:
        """Returns the best answers, of finished samples or so far."""
        raise NotImplementedError
