"""What a search is: which tokens come next, and which rows they go on from.

A search reads C rows of each sample at a time, keeps the tokens of W of them, its beams, and says
at each step which beam each of the next C rows goes on from. Greedy decoding has one of both.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
from jaxtyping import Array, Bool, Float, Int

from vlm_jax.decoding.traced import Traced
from vlm_jax.models import Watch, Watched, Withdrawn

if TYPE_CHECKING:
    from vlm_jax.decoding.call import LoopInputs


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Choice:
    """The next tokens of B samples.

    Attributes:
        tokens_bc: int32 [B, C], what each row reads next.
        parents_bc: int32 [B, C], which beam each goes on from; None: each from itself.
        kept_bw: int32 [B, W], which of the last rows are the beams; None: all are.
        withdrawn: earlier tokens that the beams take back; None: never any.
    """

    tokens_bc: Int[Array, "B C"]
    parents_bc: Int[Array, "B C"] | None = None
    kept_bw: Int[Array, "B W"] | None = None
    withdrawn: Withdrawn | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Now:
    """Where the rows of a search stand.

    Attributes:
        count: int32 scalar, steps that are done.
        carried: what is counted of each row, leaves [B C, ...]; see `Found`.
        watched: what the search watches of the rows, leaves [B C, ...].
        kinds_bp: int8 [B, P], what the tokens of the prompts are.
    """

    count: Any
    carried: Any
    watched: Watched
    kinds_bp: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Found:
    """The best answers that a search found.

    Attributes:
        tokens_bn: int32 [B, slots], the stop id included; pad id after it.
        lengths_b: int32 [B], tokens before the stop id.
        ended_b: bool [B], whether a stop id was reached.
        carried: what was counted of the row that gave each, leaves [B, ...].
        scores_b: float32 [B], by which they were the best; None for one row.
    """

    tokens_bn: Int[Array, "B slots"]
    lengths_b: Int[Array, " B"]
    ended_b: Bool[Array, " B"]
    carried: Any
    scores_b: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search(Traced):
    """How tokens are chosen from scores, one step of all samples at a time."""

    @property
    def rows(self) -> int:
        """Rows C of a sample that are read at once."""
        return 1

    @property
    def beams(self) -> int:
        """Rows W of a sample whose tokens are kept."""
        return self.rows

    @property
    def acting(self) -> "Search":
        """What takes its place: itself, or what its control leaves."""
        return self

    @property
    def withdraws(self) -> bool:
        """Whether it may take tokens back."""
        return False

    def room(self, slots: int) -> int:
        """Returns how many slots of the cache answers of so many tokens need at most."""
        return slots

    def watch(self, depth: int) -> Watch | None:
        """Returns what is kept of each call of a model of so many layers; None: nothing is."""
        return None

    def start(self, inputs: "LoopInputs", shape: tuple[int, int, int], carried: Any) -> Any:
        """Returns the state before the first token.

        Args:
            inputs: of the loop.
            shape: samples B, room for tokens, vocabulary V.
            carried: leaves as they will be in `Now`.
        """
        raise NotImplementedError

    def choose(
        self, scores_bcv: Float[Array, "B C V"], state: Any, inputs: "LoopInputs", now: Now
    ) -> tuple[Choice, Any]:
        """Chooses tokens by the scores of the rows; returns the choice and the next state."""
        raise NotImplementedError

    def predicts(self, state: Any, count: Array) -> Int[Array, "*rows"]:
        """Returns which token of its answer each of the B C rows predicts, or all of them."""
        return count

    def going(self, state: Any) -> Bool[Array, " rows"]:
        """Returns which of the B C rows go on: what attention does in others is not counted."""
        raise NotImplementedError

    def unfinished(self, state: Any, inputs: "LoopInputs", count: Array) -> Bool[Array, ""]:
        """Returns whether any sample goes on after so many steps."""
        raise NotImplementedError

    def answers(self, state: Any, inputs: "LoopInputs", carried: Any, count: Array) -> Found:
        """Returns what was found."""
        raise NotImplementedError
