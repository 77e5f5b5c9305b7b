"""What a reranker is: how continuations are drawn, where they end, and which are kept."""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar, dataclass_transform

import numpy as np

from vlm_jax.settings import setting

T = TypeVar("T", bound=type)


@dataclasses.dataclass(frozen=True)
class Continuation:
    """An answer so far.

    Attributes:
        tokens: ids, a stop id left out.
        text: what they say.
        log_probability: sum over the tokens, of the model's own distribution.
        scores: what the reranker gave each segment.
        ended: whether the model ended the answer.
    """

    tokens: tuple[int, ...] = ()
    text: str = ""
    log_probability: float = 0.0
    scores: tuple[float, ...] = ()
    ended: bool = False


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(setting,))
def reranking(cls: T) -> T:
    """Makes a subclass of `HostMethod` a frozen dataclass of settings."""
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostMethod:
    """A method that acts on the host, between calls of the model; its fields are settings."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reranker(HostMethod):
    """How answers are put together of segments.

    Attributes:
        samples: continuations drawn of each candidate.
        candidates: of them kept.
        temperature, top_k: of drawing.
        segment_tokens: a segment has at most so many.
    """

    samples: int
    candidates: int
    temperature: float
    top_k: int
    segment_tokens: int

    @property
    def rows(self) -> int:
        """Continuations that are drawn at once."""
        return self.samples * self.candidates

    def ends(self, pieces: Sequence[str]) -> np.ndarray:
        """Returns which tokens of a vocabulary end a segment, given what each says."""
        raise NotImplementedError

    def scores(self, image: Any, segments: Sequence[str], draw: int) -> list[float]:
        """Returns a number for each new segment; `draw` counts the calls of an answer."""
        raise NotImplementedError

    def rank(self, one: Continuation) -> float:
        """Returns what continuations are ordered by, the largest first."""
        raise NotImplementedError
