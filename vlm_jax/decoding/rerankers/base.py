"""Base class of rerankers: how many continuations are drawn, where they end, which are kept."""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar, dataclass_transform

import numpy as np

T = TypeVar("T", bound=type)


@dataclasses.dataclass(frozen=True)
class Continuation:
    """A candidate: an answer so far.

    Attributes:
        tokens: ids, a stop id left out.
        text: their text.
        log_probability: sum over the tokens, under the model's own distribution.
        scores: the reranker's score of each segment.
        ended: whether the model ended the answer.
    """

    tokens: tuple[int, ...] = ()
    text: str = ""
    log_probability: float = 0.0
    scores: tuple[float, ...] = ()
    ended: bool = False


@dataclass_transform(kw_only_default=True, frozen_default=True)
def reranking(cls: T) -> T:
    """Makes a subclass of `HostMethod` a frozen dataclass of settings."""
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostMethod:
    """A method that acts on the host, between calls of the model; its fields are settings."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reranker(HostMethod):
    """Builds answers segment by segment: draws continuations, scores them, keeps the best.

    Attributes:
        samples: continuations drawn from each candidate.
        candidates: how many are kept after each segment.
        temperature, top_k: of sampling.
        segment_tokens: tokens of a segment at most.
    """

    samples: int
    candidates: int
    temperature: float
    top_k: int
    segment_tokens: int

    @property
    def rows(self) -> int:
        """Number of continuations that are drawn at once."""
        return self.samples * self.candidates

    def ends(self, pieces: Sequence[str]) -> np.ndarray:
        """Returns bool [V], which tokens end a segment, given the text of each token."""
        raise NotImplementedError

    def scores(self, image: Any, segments: Sequence[str], draw: int) -> list[float]:
        """Returns a score for each new segment; `draw` is the number of earlier calls."""
        raise NotImplementedError

    def rank(self, one: Continuation) -> float:
        """Returns the value by which a candidate is ordered, the largest first."""
        raise NotImplementedError
