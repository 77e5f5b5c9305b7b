"""An audit of captions by anyone: is a file better than a baseline's captions said shorter?

Cutting captions takes hallucinations away, and objects with them, without a model. The baseline's
own captions, cut in four ways, give curves of C_S and C_I over recall and over length; a file that
lies on or above any of them does no better than saying less.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_jax.evals import chair, pope
from vlm_jax.evals.base import Suite
from vlm_jax.evals.frontier import Frontier, Gap, frontier
from vlm_jax.evals.statistics import DRAWS
from vlm_jax.evals.suites.pope import Pope
from vlm_jax.evals.tallies import TallyTable, tabulate, tabulate_sums

_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+")
_SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_WORDS = (10, 15, 20, 25, 30, 40, 50, 60, 80, 100, 125, 150)
_MOST = 10  # sentences

Texts = Mapping[Any, str]
"""Image -> caption."""


def sentences(caption: str) -> list[str]:
    """The sentences of a caption: "A dog. It runs." -> ["A dog.", "It runs."]."""
    return [one for one in _SENTENCE_END.split(caption.strip()) if one]


def _first(said: Sequence[str], count: float) -> str:
    return " ".join(said[: int(count)])


def _without_last(said: Sequence[str], count: float) -> str:
    return " ".join(said[: max(1, len(said) - int(count))])


def _share(said: Sequence[str], share: float) -> str:
    return " ".join(said[: max(1, round(share * len(said)))])


def _words(said: Sequence[str], count: float) -> str:
    return " ".join(" ".join(said).split()[: int(count)])


WAYS: Mapping[str, tuple[Callable[[Sequence[str], float], str], Sequence[float]]] = {
    "first sentences": (_first, range(1, _MOST)),
    "without the last sentences": (_without_last, range(1, _MOST)),
    "a share of the sentences": (_share, _SHARES),
    "first words": (_words, _WORDS),
}
"""Ways of saying less: how a caption's sentences are cut, and by which amounts."""


@dataclass(frozen=True)
class Against:
    """A file beside one way of saying less.

    Attributes:
        way: which.
        at_recall, at_length: metric -> the file's value minus that of the cut captions at the same
            recall, and at the same length.
    """

    way: str
    at_recall: Mapping[str, Gap]
    at_length: Mapping[str, Gap]


@dataclass(frozen=True)
class Audit:
    """What an audit of captions found.

    Attributes:
        curves: way of saying less -> amount -> tallies; the whole captions are amount inf.
        whole: tallies of the captions that are cut: the baseline's, or the file's own.
        against: the file beside each way; none without a baseline.
    """

    curves: Mapping[str, Mapping[float, TallyTable]]
    whole: TallyTable
    against: tuple[Against, ...] = ()

    @property
    def better(self) -> bool | None:
        """Whether the file has less C_S at equal recall than every way of saying less.

        Each interval must exclude 0. None where a way has no point of the file's recall.
        """
        gaps = [one.at_recall["C_S"].gap for one in self.against]
        if any(gap is None for gap in gaps):
            return None
        return all(gap.high < 0 for gap in gaps if gap is not None)

    @property
    def closest(self) -> Against:
        """The way of saying less that comes nearest to the file, or lies furthest below it."""
        gap = lambda one: one.at_recall["C_S"].gap
        known = [one for one in self.against if gap(one) is not None]
        return max(known or self.against, key=lambda one: gap(one).value if known else 0.0)


def audit(
    suite: Suite,
    table: TallyTable,
    texts: Texts,
    baseline: Texts | None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Audit:
    """Cuts captions in every way, and holds a file against what is left of a baseline's.

    Args:
        suite: CHAIR, which tallies captions.
        table: tallies of the file.
        texts: its captions, which are cut where there is no baseline.
        baseline: captions of the same images by the model that the file is to be better than.
        draws, seed: of the bootstrap over images, which file and cut captions share.
    """
    cut = texts if baseline is None else baseline
    examples = {example.id: example for example in suite.examples() if example.id in cut}
    split = {key: sentences(text) for key, text in cut.items()}

    def tallies(of: Callable[[Any], str]) -> TallyTable:
        found = ((key, suite.judge(one, of(key)).counts) for key, one in examples.items())
        return tabulate(found).take(table.ids)

    whole = tallies(cut.__getitem__)
    longest = max(map(len, split.values()))
    wordy = max(len(text.split()) for text in cut.values())
    most = {_share: 1.0, _words: wordy}
    curves = {
        way: {
            float(amount): tallies(lambda key, a=amount, by=by: by(split[key], a))
            for amount in amounts
            if amount < most.get(by, longest)
        }
        | {float("inf"): whole}
        for way, (by, amounts) in WAYS.items()
    }
    curves = {way: curve for way, curve in curves.items() if len(curve) > 1}
    if baseline is None:
        return Audit(curves, whole)
    gaps = lambda curve, over: {
        metric: curve_of(curve, metric, over).gap(table, draws=draws, seed=seed)
        for metric in ("C_S", "C_I")
    }
    against = tuple(
        Against(way, gaps(curve, "recall"), gaps(curve, "length")) for way, curve in curves.items()
    )
    return Audit(curves, whole, against)


def by_parser(suite: Pope, texts: Texts) -> dict[str, TallyTable]:
    """Parser -> tallies by image of the same answers to POPE."""
    asked = [example for example in suite.examples() if example.id in texts]
    rules = {parser: rule for parser, rule in pope.PARSERS.items() if parser != "llava"}
    return {  # LLaVA's parser is RUCAIBox's
        parser: tabulate_sums(
            (suite.item(one), pope.tally(texts[one.id], one.meta["label"], parser)) for one in asked
        )
        for parser in rules
    }


def curve_of(curve: Mapping[float, TallyTable], metric: str, over: str = "recall") -> Frontier:
    """The curve of a metric over another as captions are cut."""
    metrics = chair.METRICS
    return frontier(curve, metric=metrics[metric].of, recall=metrics[over].of)
