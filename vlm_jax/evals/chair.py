"""CHAIR: how much of what a caption names is not in the image (Rohrbach et al., 2018).

Scoring yields integers for each caption; totals add up in any order and `report` forms the ratios
once.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from vlm_jax.evals.base import Metric
from vlm_jax.evals.records import ImageId
from vlm_jax.evals.tallies import Totals, f1, ratio
from vlm_jax.evals.vocabulary import Mention, Vocabulary, coco_vocabulary

CAPTIONS_ALONE = (
    "The truth has reference captions and no instances: an object that is in the image but in none "
    "of its captions counts as hallucinated, so C_S and C_I are too high and cannot be compared "
    "with published ones, and recall is of the objects that captions name. Add the instances file "
    "(instances_val2014.json) to the truth."
)
"""What truth of one kind cannot measure."""

COUNTS = (
    "captions",
    "hallucinated_captions",
    "object_mentions",
    "hallucinated_mentions",
    "gt_objects",
    "recalled_objects",
    "mentioned_types",
    "words",
    "unparsable",
    "truncated",
)


def _precision_mentions(totals: Totals):
    return ratio(
        totals["object_mentions"] - totals["hallucinated_mentions"], totals["object_mentions"]
    )


def _precision_types(totals: Totals):
    return ratio(totals["recalled_objects"], totals["mentioned_types"])


def _recall(totals: Totals):
    return ratio(totals["recalled_objects"], totals["gt_objects"])


METRICS: dict[str, Metric] = {
    "C_S": Metric(
        lambda totals: ratio(totals["hallucinated_captions"], totals["captions"]),
        "low",
        primary=True,
        outcome="hallucinated_captions",
    ),
    "C_I": Metric(
        lambda totals: ratio(totals["hallucinated_mentions"], totals["object_mentions"]), "low"
    ),
    "recall": Metric(_recall),
    "F1": Metric(lambda totals: f1(_precision_mentions(totals), _recall(totals))),
    "F1_types": Metric(lambda totals: f1(_precision_types(totals), _recall(totals)), shown=False),
    "precision_types": Metric(_precision_types, shown=False),
    "length": Metric(lambda totals: ratio(totals["words"], totals["captions"]), "", "words"),
    "unparsable_rate": Metric(lambda totals: ratio(totals["unparsable"], totals["captions"]), ""),
    "truncated_rate": Metric(lambda totals: ratio(totals["truncated"], totals["captions"]), ""),
}
"""Metrics as functions of totals. All are fractions but `length`, in words a caption.

C_S: captions with a hallucinated object; C_I: hallucinated mentions among object mentions, over the
corpus; recall: ground-truth objects named; F1: of 1 - C_I and recall; F1_types: of the precision
over distinct objects and recall (the form in the VISTA code); unparsable: captions that name no
object, which C_S counts as right; truncated: captions without an end of their last sentence, or
that ended at the limit of tokens.
"""


@dataclass(frozen=True)
class ScoredMention:
    """An object mention with its verdict; `group` is its label in the partner table, if any."""

    start: int
    end: int
    surface: str
    node: str
    hallucinated: bool
    group: str | None = None


@dataclass(frozen=True)
class CaptionScore:
    """One caption's mentions, in order, and its tally."""

    mentions: tuple[ScoredMention, ...]
    tally: dict[str, int]


@dataclass(frozen=True)
class ChairScorer:
    """Scores captions against the objects of their image.

    Attributes:
        truth: image id -> node words in the image.
        vocabulary: finds object mentions in text.
        groups: optional labels of objects by image (image id -> node word -> label), by which
            hallucinations are counted apart, for example {7: {"cup": "partner"}}.
    """

    truth: Mapping[ImageId, Collection[str]]
    vocabulary: Vocabulary = field(default_factory=coco_vocabulary)
    groups: Mapping[ImageId, Mapping[str, str]] | None = None

    def score(self, image: ImageId, caption: str) -> CaptionScore:
        """Scores one caption.

        With `groups`, the tally also has `hallucinated_mentions/<label>` and
        `hallucinated_captions/<label>` for every label, with "other" for unlabelled objects.

        Raises:
            ValueError: the truth lacks the image.
        """
        if image not in self.truth:
            raise ValueError(
                f"image {image!r} has no ground truth; name a truth file that covers it"
            )
        present = self.truth[image]
        reading = self.vocabulary.read(caption)
        labels = {} if self.groups is None else self.groups.get(image, {})
        mentions = tuple(_judge(mention, present, labels) for mention in reading.mentions)
        named = {mention.node for mention in mentions}
        wrong = sum(mention.hallucinated for mention in mentions)
        tally = {
            "captions": 1,
            "hallucinated_captions": int(wrong > 0),
            "object_mentions": len(mentions),
            "hallucinated_mentions": wrong,
            "gt_objects": len(set(present)),
            "recalled_objects": len(named.intersection(present)),
            "mentioned_types": len(named),
            "words": reading.length,
            "unparsable": int(not mentions),
            "truncated": int(not ends(caption)),
        }
        if self.groups is not None:
            tally |= self._group_tally(mentions)
        return CaptionScore(mentions, tally)

    def tally(self, image: ImageId, caption: str) -> dict[str, int]:
        """The integers of one caption; see `COUNTS`."""
        return self.score(image, caption).tally

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The labels hallucinations are counted apart by, "other" last; none without groups."""
        if self.groups is None:
            return ()
        named = {label for image in self.groups.values() for label in image.values()} - {"other"}
        return (*sorted(named), "other")

    def _group_tally(self, mentions: tuple[ScoredMention, ...]) -> dict[str, int]:
        wrong = [mention.group or "other" for mention in mentions if mention.hallucinated]
        tally = {}
        for label in self.labels:
            tally[f"hallucinated_mentions/{label}"] = wrong.count(label)
            tally[f"hallucinated_captions/{label}"] = int(label in wrong)
        return tally


def ends(caption: str) -> bool:
    """Whether a caption's last sentence has an end: its mark, within quotes or brackets or not."""
    return caption.rstrip(" \n\t\"')]\u201d\u2019*").endswith((".", "!", "?", "…"))


def _judge(mention: Mention, present: Collection[str], labels: Mapping[str, str]) -> ScoredMention:
    return ScoredMention(*mention, mention.node not in present, labels.get(mention.node))


def metrics(totals: Totals) -> dict[str, Metric]:
    """The metrics that some totals allow: `METRICS`, and C_S and C_I by label if counted."""
    available = dict(METRICS)
    for name in totals:
        kind, _, label = name.partition("/")
        if label and kind == "hallucinated_captions":
            of = lambda t, name=name: ratio(t[name], t["captions"])
            available[f"C_S/{label}"] = Metric(of, "low", outcome=name)
        elif label and kind == "hallucinated_mentions":
            of = lambda t, name=name: ratio(t[name], t["object_mentions"])
            available[f"C_I/{label}"] = Metric(of, "low", shown=False)
    return available


def report(totals: Totals) -> dict[str, float]:
    """The metrics of some totals; every ratio over nothing is 0."""
    return {name: metric.of(totals) for name, metric in metrics(totals).items()}
