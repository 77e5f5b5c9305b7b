"""CHAIR from Python: captions against the objects in their images, and the words that are wrong."""

import dataclasses
import html
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from vlm_jax.errors import AnswersError
from vlm_jax.evals import chair as scoring
from vlm_jax.evals.answers import ERROR
from vlm_jax.evals.records import image_id, read_rows, row_image_id, row_text
from vlm_jax.evals.suites.chair import Chair
from vlm_jax.evals.truth import read_object_truth
from vlm_jax.evals.vocabulary import Vocabulary, coco_vocabulary
from vlm_jax.listing import html_table
from vlm_jax.terminal import folded, written

_SHOWN = ("C_S", "C_I", "recall", "F1")


@dataclasses.dataclass(frozen=True)
class CaptionVerdict:
    """What is right and wrong in a caption.

    Attributes:
        image: its id.
        caption: the text.
        hallucinated: words that name an object which is not in the image, in order.
        grounded: words that name one which is.
        missed: objects of the image that the caption does not name.
        mentions: every mention with its place in the text.
    """

    image: int | str
    caption: str
    hallucinated: tuple[str, ...]
    grounded: tuple[str, ...]
    missed: tuple[str, ...]
    mentions: tuple[scoring.ScoredMention, ...] = dataclasses.field(repr=False)

    def _repr_html_(self) -> str:
        """The caption, hallucinated words marked and grounded ones in bold."""
        pieces, end = [], 0
        for mention in self.mentions:
            tag = "mark" if mention.hallucinated else "b"
            word = html.escape(self.caption[mention.start : mention.end])
            pieces += [html.escape(self.caption[end : mention.start]), f"<{tag}>{word}</{tag}>"]
            end = mention.end
        return "".join([*pieces, html.escape(self.caption[end:])])


@dataclasses.dataclass(frozen=True)
class ChairScore:
    """CHAIR of some captions.

    Attributes:
        per_caption: a verdict a caption, in the order that they were given.
        metrics: C_S, C_I, recall, F1 and more, of all of them; fractions, `length` in words.
        counts: the integers behind the metrics.
        notes: what a reader must know, one sentence each.
    """

    per_caption: tuple[CaptionVerdict, ...]
    metrics: Mapping[str, float]
    counts: Mapping[str, int]
    notes: tuple[str, ...] = ()

    def table(self) -> str:
        """Returns the metrics, and a row a caption with its hallucinated and grounded words."""
        rows = [
            [str(one.image), ", ".join(one.hallucinated), ", ".join(one.grounded)]
            for one in self.per_caption
        ]
        table = written(["image", "hallucinated", "grounded"], rows)
        notes = [folded(f"note: {note}", "  ") for note in self.notes]
        return "\n".join([self._headline(), table, *notes])

    def to_pandas(self) -> Any:
        """Returns a pandas `DataFrame`, a row a caption.

        Raises:
            UserError: pandas is not installed.
        """
        from vlm_jax.side_by_side import data_frame

        names = ("image", "caption", "hallucinated", "grounded", "missed")
        return data_frame([{n: getattr(one, n) for n in names} for one in self.per_caption])

    def _headline(self) -> str:
        found = (f"{name} {100 * self.metrics[name]:.1f} %" for name in _SHOWN)
        count = len(self.per_caption)
        return f"{count} caption{'s' * (count != 1)}: {', '.join(found)}"

    def __repr__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        rows = [[str(one.image), one, ", ".join(one.hallucinated)] for one in self.per_caption]
        table = html_table(["image", "caption", "hallucinated"], rows, self._headline())
        return table + "".join(f"<p>Note: {html.escape(note)}</p>" for note in self.notes)


def chair(
    captions: Any,
    truth: Any,
    *,
    vocabulary: Vocabulary | None = None,
) -> ChairScore:
    """Returns CHAIR of captions, with the words that are hallucinated in each.

        found = chair({7: "A man with a cup and a fork."}, {7: ["cup", "person"]})
        found.per_caption[0].hallucinated     # ("fork",)

    Args:
        captions: image id -> caption; or rows {"image_id": ..., "caption": ...}; or a list of
            texts, the n-th of them about the n-th image of `truth`; or the path of a file of
            captions, of any form that `--job=score` reads.
        truth: image id -> objects in the image, by any name that the vocabulary knows; or paths of
            object tables or COCO annotations.
        vocabulary: finds objects in text; by default our own table of COCO's.

    Raises:
        AnswersError: an image has no truth, or something is no caption.
    """
    vocabulary = vocabulary or coco_vocabulary()
    objects, sources = _objects(truth, vocabulary)
    scorer = scoring.ChairScorer(objects, vocabulary)
    verdicts: list[CaptionVerdict] = []
    counts: dict[str, int] = {}
    for image, caption in _captions(captions, objects):
        if not isinstance(caption, str):
            raise AnswersError(
                f"the caption of image {image!r} must be text, not {type(caption).__name__}."
            )
        if image not in objects:
            raise AnswersError(f"image {image!r} has no truth; it is of {len(objects)} others.")
        found = scorer.score(image, caption)
        for name, count in found.tally.items():
            counts[name] = counts.get(name, 0) + count
        words = lambda wrong, found=found: tuple(
            mention.surface for mention in found.mentions if mention.hallucinated == wrong
        )
        named = {mention.node for mention in found.mentions}
        missed = tuple(sorted(set(objects[image]) - named))
        verdict = CaptionVerdict(image, caption, words(True), words(False), missed, found.mentions)
        verdicts.append(verdict)
    if not verdicts:
        raise AnswersError("there is no caption to judge.")
    notes = (scoring.CAPTIONS_ALONE,) if sources == {"captions"} else ()
    return ChairScore(tuple(verdicts), scoring.report(counts), counts, notes)


def _objects(
    truth: Any, vocabulary: Vocabulary
) -> tuple[dict[int | str, frozenset[str]], frozenset[str]]:
    """Image id -> node words, and what named them (`ObjectTruth.sources`)."""
    if isinstance(truth, str | os.PathLike) or not isinstance(truth, Mapping):
        paths = [truth] if isinstance(truth, str | os.PathLike) else truth
        if not isinstance(paths, list | tuple) or not all(
            isinstance(path, str | os.PathLike) for path in paths
        ):
            raise AnswersError(
                "truth must be a mapping of image ids to the objects in the image, such as "
                "{7: ['cup', 'person']}, or paths of files."
            )
        found = read_object_truth([os.fspath(path) for path in paths], vocabulary)
        return dict(found.objects), found.sources
    node = lambda word: vocabulary.node(word) or word
    objects = {}
    for image, words in truth.items():
        if isinstance(words, str) or not isinstance(words, Collection):
            raise AnswersError(
                f"truth of image {image!r} must list objects, not be {type(words).__name__}."
            )
        objects[_id(image)] = frozenset(map(node, words))
    return objects, frozenset({"instances"})


def _captions(captions: Any, objects: Mapping[int | str, Any]) -> Sequence[tuple[int | str, Any]]:
    """Pairs of image id and caption."""
    forms = "a mapping of image ids, rows with image_id and caption, a list of texts or a file"
    if isinstance(captions, str | os.PathLike):
        if not os.path.exists(captions):
            raise AnswersError(f"there is no file {captions!r}; captions must be {forms}.")
        rows = [row for row in read_rows(os.fspath(captions)) if ERROR not in row.fields]
        return [(row_image_id(row), row_text(row, Chair.answer_keys)) for row in rows]
    if isinstance(captions, Mapping):
        return [(_id(image), text) for image, text in captions.items()]
    if not isinstance(captions, Sequence):
        raise AnswersError(f"captions must be {forms}, not {type(captions).__name__}.")
    if all(isinstance(row, Mapping) for row in captions):
        lacking = next((row for row in captions if not {"image_id", "caption"} <= set(row)), None)
        if lacking is not None:
            raise AnswersError(
                f"a caption's row needs image_id and caption; {lacking!r} lacks one."
            )
        return [(_id(row["image_id"]), row["caption"]) for row in captions]
    if len(captions) != len(objects):
        raise AnswersError(
            f"{len(captions)} texts are no captions of the {len(objects)} images of truth; give a "
            "mapping of image ids to texts."
        )
    return list(zip(objects, captions))


def _id(image: Any) -> int | str:
    try:
        return image_id(image)
    except ValueError as error:
        raise AnswersError(f"{image!r} is no image id: {error}") from None
