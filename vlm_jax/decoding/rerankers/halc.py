"""Object hallucination reduction by focal contrast (HALC, arXiv 2403.00425).

An answer is decoded by DoLa. Each noun of it is looked for in the image; the model is asked for the
word again with the image cut to fields of view around what was found, and these are contrasted.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from vlm_jax.decoding.functions import function, numbers
from vlm_jax.decoding.rerankers.base import HostMethod, reranking
from vlm_jax.decoding.strategies import Strategy
from vlm_jax.decoding.strategies.dola import DoLa
from vlm_jax.errors import ConfigError
from vlm_jax.settings import listed, number, one_of, setting, switch, whole, word

UNFOUND = (0.2, 0.2, 0.8, 0.8)
MOST_BOXES = 3
FIELDS = 4

Box = tuple[float, float, float, float]
"""Left, top, right and lower edge, as shares of the image's width and height."""


@reranking
class HALC(HostMethod):
    """Looks at each noun again in four fields of view, and keeps, replaces or removes it.

    A word is kept where the best candidate is what was said and the detector found it, removed
    where it is and the detector did not, and replaced otherwise; decoding then goes on by DoLa.

    Attributes:
        detector: function of an image and a word; returns boxes (see `Box`), best by a threshold of
            0.4 of a GroundingDINO. More than three, or None, are no evidence: the word stays. Or
            the JSON of a detector of `vlm_jax.detecting`.
        tagger: function of a word; returns whether it is a noun.
        matcher: function of texts and an image; returns a number for each. Or the folder of a model
            of `vlm_jax.matching`. Candidates are ranked by it.
        contrast: weight of the other field of view, 0.05 as released.
        growth: by which a side of a field of view shrinks and grows, 0.6 as released.
        pairs: contrasts of fields of view; 6, one way each, the larger field first, as the papers
            that compare with it; fewer than 6 are the farthest pairs both ways, 4 as released.
        layers, relative_top: of DoLa.
        skip_rate: share of the nouns that are left alone, drawn by `seed`; 0.3 in the released
            code, 0 for its paper.
        exempt: words that are never looked for; the released code has some thirty of COCO.
        control: "random" puts each box, as large as it is, anywhere in the image.
        seed: of what is drawn.
        repo_bug: puts the unknown token in place of each token of a removed word, as the released
            code does, and lets the model read it.
    """

    detector: Any = setting(
        None,
        function,
        does="an image and a word that returns boxes of shares of its sides",
        detects=True,
    )
    tagger: Any = setting(None, function, does="a word that returns whether it is a noun")
    matcher: Any = setting(
        None,
        function,
        does="texts and an image that returns a number for each text",
        of_matcher=lambda matcher: matcher,
    )
    contrast: float = setting(0.05, number, low=0)
    growth: float = setting(0.6, number, low=0, high=0.99)
    pairs: int = setting(4, whole, low=1, high=6)
    layers: Any = "even"
    relative_top: float = setting(0.1, number, low=0, high=1)
    skip_rate: float = setting(0.0, number, low=0, high=1)
    exempt: tuple[str, ...] = setting((), listed, each=word)
    control: str = setting("", one_of, known=("", "random"))
    seed: int = setting(0, whole, low=0)
    repo_bug: bool = setting(False, switch)

    def __post_init__(self):
        for name in ("detector", "tagger", "matcher"):
            if getattr(self, name) is None:
                raise ConfigError(
                    f"method 'halc' needs a {name}: a function, or 'package.module:name' of one."
                )
        _ = self.strategy  # its settings are read

    @property
    def strategy(self) -> Strategy:
        """The strategy that decodes between words: DoLa."""
        return DoLa(layers=self.layers, relative_top=self.relative_top)

    def wants(self, word: str, random: np.random.Generator) -> bool:
        """Returns whether a word is looked for."""
        if not word or word.lower() in self.exempt or not self.tagger(word):
            return False
        return not self.skip_rate or random.random() >= self.skip_rate

    def box(self, image: Any, word: str, random: np.random.Generator) -> tuple[Box, bool] | None:
        """Returns a box to look at for a word, and whether the detector found it there.

        None means no evidence: the word stays.

        Raises:
            ConfigError: the detector returns no boxes inside the image.
        """
        found = self.detector(image, word)
        if found is None:
            return None
        found = np.asarray(found, np.float64)
        found = found.reshape(-1, 4) if not found.size else found
        if found.ndim != 2 or found.shape[1] != 4 or not _inside(found):
            raise ConfigError(
                "method 'halc': detector must return boxes (left, top, right, bottom) of shares "
                f"from 0 to 1, not {np.asarray(found).tolist()!r}."
            )
        if len(found) > MOST_BOXES:
            return None
        areas = (found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1])
        chosen = found[np.argmin(areas)] if len(found) else np.array(UNFOUND)
        if self.control:
            wide, high = chosen[2] - chosen[0], chosen[3] - chosen[1]
            left, top = random.random() * (1 - wide), random.random() * (1 - high)
            chosen = np.array([left, top, left + wide, top + high])
        left, top, right, bottom = map(float, chosen)
        return (left, top, right, bottom), bool(len(found))

    def best(self, texts: Sequence[str], image: Any) -> int:
        """Returns which text fits an image best.

        Raises:
            ConfigError: the matcher does not return a finite number for each text.
        """
        return int(
            np.argmax(numbers("method 'halc': matcher", self.matcher, texts, image, "texts"))
        )

    def contrasts(self, logits_fv: Float[np.ndarray, "F V"]) -> Float[np.ndarray, "J V"]:
        """Returns the contrasts of fields of view; see `contrasts`."""
        return contrasts(logits_fv, self.pairs, self.contrast)


def fields_of_view(box: Box, growth: float) -> list[Box]:
    """Returns a box shrunk, as it is, and grown once and twice around its middle, inside the image.

    (0.3, 0.4, 0.5, 0.8) by 0.6 gives (0.36, 0.52, 0.44, 0.68), itself, (0.24, 0.28, 0.56, 0.92),
    and so on.
    """
    found = [_scaled(box, 1 - growth), box]
    while len(found) < FIELDS:
        found.append(_scaled(found[-1], 1 + growth))
    return found


def contrasts(
    logits_fv: Float[np.ndarray, "F V"], count: int, weight: float
) -> Float[np.ndarray, "J V"]:
    """Returns l_a - weight l_b of the fields of view a, b that are farthest apart.

    Distances are Jensen-Shannon's. Of all six pairs the larger field comes first; of fewer, both
    orders of a pair count.

    Args:
        logits_fv: of the fields, the smallest first.
        count: of contrasts.
        weight: of what is taken away.
    """
    log_p = np.float64(logits_fv) - np.max(logits_fv, axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))

    def distance(pair: tuple[int, int]) -> float:
        one, other = log_p[list(pair)]
        mean = np.exp(np.logaddexp(one, other) - np.log(2))
        return float(np.sum(mean * (2 * np.log(mean) - one - other)) / 2)

    pairs = sorted(itertools.combinations(range(len(log_p)), 2), key=distance, reverse=True)
    ordered = [(b, a) for a, b in pairs]
    if count < len(pairs):
        ordered = [order for a, b in pairs for order in ((b, a), (a, b))]
    return np.stack([logits_fv[a] - weight * logits_fv[b] for a, b in ordered[:count]])


def _scaled(box: Box, by: float) -> Box:
    left, top, right, bottom = box
    wide, high = (right - left) * (by - 1) / 2, (bottom - top) * (by - 1) / 2
    low, high_end = (max(left - wide, 0.0), max(top - high, 0.0)), min(bottom + high, 1.0)
    return *low, min(right + wide, 1.0), high_end


def _inside(boxes: np.ndarray) -> bool:
    low, high = boxes[:, :2], boxes[:, 2:]
    return bool((boxes >= 0).all() and (boxes <= 1).all() and (low < high).all())
