"""CLIP-guided decoding (arXiv 2402.15300)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlm_jax.decoding.functions import function, numbers
from vlm_jax.decoding.rerankers.base import Continuation, Reranker, reranking
from vlm_jax.errors import ConfigError
from vlm_jax.settings import number, one_of, setting, whole

TERMINALS = ".?!"


@reranking
class CGD(Reranker):
    """Draws sentences and keeps those that fit the image: the largest mean score of sentences.

    A sentence ends with the first token that holds one of . ? !, so that "1." ends one, as in the
    released code. Candidates are ordered by beta times the mean score of their sentences plus alpha
    times the mean log probability of their tokens.

    Attributes:
        scorer: function of a list of sentences and an image; returns a number for each. Or the
            folder of a model of `vlm_jax.matching`, such as the paper's SigLIP
            (google/siglip-so400m-patch14-384), whose cosines it then is.
        alpha: weight of the mean log probability, 0.01 as released.
        beta: weight of the mean score, 1 as released.
        samples: sentences drawn of each candidate.
        candidates: how many beginnings are kept.
        temperature: of drawing.
        top_k: of drawing; 0 is all tokens.
        segment_tokens: tokens of a sentence at most.
        control: "shuffled" gives the scores of a step to its sentences in a random order.
        seed: of the random order.
    """

    scorer: Any = setting(
        None,
        function,
        does="sentences and an image that returns a number for each sentence",
        of_matcher=lambda matcher: matcher,
    )
    alpha: float = setting(0.01, number, low=0)
    beta: float = setting(1.0, number, low=0)
    samples: int = setting(3, whole, low=1)
    candidates: int = setting(3, whole, low=1)
    temperature: float = setting(0.2, number, low=1e-6)
    top_k: int = setting(5, whole, low=0)
    segment_tokens: int = setting(64, whole, low=1)
    control: str = setting("", one_of, known=("", "shuffled"))
    seed: int = setting(0, whole, low=0)

    def __post_init__(self):
        if self.scorer is None:
            raise ConfigError(
                "method 'cgd' needs a scorer: a function of sentences and an image, or the folder "
                "of a CLIP or SigLIP."
            )

    def ends(self, pieces: Sequence[str]) -> np.ndarray:
        """See `Reranker.ends`."""
        return np.array([any(mark in piece for mark in TERMINALS) for piece in pieces])

    def scores(self, image: Any, segments: Sequence[str], draw: int) -> list[float]:
        """See `Reranker.scores`; an empty sentence has no score, and counts 0.

        Raises:
            ConfigError: the scorer does not return a finite number for each sentence.
        """
        asked = [text.strip() for text in segments]
        found = numbers("method 'cgd': scorer", self.scorer, asked, image, "sentences")
        if self.control:
            found = np.random.default_rng((self.seed, draw)).permutation(found)
        return found.tolist()

    def rank(self, one: Continuation) -> float:
        """See `Reranker.rank`."""
        clip = np.mean(one.scores) if one.scores else 0.0
        return float(self.beta * clip + self.alpha * one.log_probability / max(len(one.tokens), 1))
