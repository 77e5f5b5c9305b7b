"""CHAIR: objects that captions name and images lack (Rohrbach et al., 2018)."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from vlm_jax.errors import ConfigError
from vlm_jax.evals import chair
from vlm_jax.evals.base import Example, Judged, Metric, Suite, SuiteSettings, paths
from vlm_jax.evals.final_answer import answered
from vlm_jax.evals.pictures import ImageSource, find_images, need_all
from vlm_jax.evals.records import (
    IMAGE_KEYS,
    ImageId,
    Record,
    read_text,
    row_image_id,
    row_text,
    some,
    take_rows,
)
from vlm_jax.evals.tallies import Totals
from vlm_jax.evals.truth import DESCRIBED, ObjectTruth, read_object_truth
from vlm_jax.evals.vocabulary import (
    Vocabulary,
    coco_vocabulary,
    read_double_words,
    read_surface_forms,
    read_synonyms,
)
from vlm_jax.settings import setting, text

CAPTION_PROMPT = "Please describe this image in detail."


@dataclass(frozen=True, kw_only=True)
class ChairSettings(SuiteSettings):
    """A CHAIR section.

    Attributes:
        truth: object tables, COCO annotations, or rows of captions and instances.
        questions: optional: rows of `image` and, if not `prompt`, `text`.
        prompt: asked about every image.
        synonyms: a published `synonyms.txt`; "" is this project's own words.
        double_words: its two-word rules as JSON; "" is the published 55.
        surface_forms: words -> WordNet lemmas as JSON, for variant C (OPERA's line of papers)
            instead of A; "" is variant A (AIR, AD-HH, POPE).
    """

    truth: tuple[str, ...] = setting((), paths)
    questions: str = setting("", text)
    prompt: str = setting(CAPTION_PROMPT, text)
    synonyms: str = setting("", text)
    double_words: str = setting("", text)
    surface_forms: str = setting("", text)

    def vocabulary(self) -> Vocabulary:
        """The words that these settings name.

        Raises:
            ConfigError: a file cannot be read, or two-word rules stand alone.
        """
        if self.double_words and not self.synonyms:
            raise ConfigError(
                f"double_words={self.double_words!r} changes the rules of a synonyms file; set "
                "synonyms too."
            )
        try:
            words = coco_vocabulary()
            if self.synonyms:
                rules = read_double_words(self.double_words) if self.double_words else None
                words = read_synonyms(self.synonyms, double_words=rules)
            if self.surface_forms:
                forms = read_surface_forms(self.surface_forms)
                words = replace(words, variant="wordnet", forms=forms)
            return words
        except ValueError as error:
            raise ConfigError(str(error)) from None


class Chair(Suite):
    """CHAIR captions over a set of images.

    Args:
        images: a folder, or image id -> path or PIL image; None where captions are only scored.
        truth: object truth, or the files to read it from.
        ids: the images to caption, in this order; default: all of `images`, sorted.
        questions: rows of `image` (or `image_id`) and optionally `text`, giving images and prompts
            instead.
        prompt: asked about every image.
        vocabulary: finds objects in captions; default: our own table.
        groups: labels of objects by image, see `ChairScorer`.
        limit: number of images to take from the front; default: all.

    Attributes:
        malformed: rows of the question file that could not be read -> what is wrong with them.
            Rows of ground truth have no such place: an image with part of its objects would be
            scored wrong, so a malformed one is an error.

    Raises:
        AnswersError: an image is missing or has no truth.
    """

    name = "chair"
    Settings = ChairSettings
    answer_key = "caption"
    harness_names: ClassVar[Mapping[str, str]] = {
        "lmms_eval": "coco_cap_chair",
        "vlmevalkit": "COCO_VAL",
    }
    answer_keys = ("caption", "prediction", "response", "output", "answer", "text")

    def __init__(
        self,
        images: ImageSource | None,
        truth: ObjectTruth | str | Path | Sequence[str | Path],
        *,
        ids: Sequence[ImageId] | None = None,
        questions: str | Path | None = None,
        prompt: str = CAPTION_PROMPT,
        vocabulary: Vocabulary | None = None,
        groups: Mapping[ImageId, Mapping[str, str]] | None = None,
        limit: int | None = None,
    ) -> None:
        self.malformed: dict[str, str] = {}
        self.vocabulary = vocabulary or coco_vocabulary()
        if not isinstance(truth, ObjectTruth):
            truth = read_object_truth(truth, self.vocabulary)
        self.truth_objects = truth
        self.scorer = chair.ChairScorer(truth.objects, self.vocabulary, groups)
        if images is None:
            self._examples = tuple(
                Example(key, (), prompt, {"image_id": key}) for key in truth.objects
            )
            return
        found = find_images(images)
        if questions is not None:
            if ids is not None:
                raise ValueError("give the images either as ids or as a question file, not both")
            prompts = _caption_prompts(questions, prompt, self.malformed)
        else:
            wanted = (
                sorted(found, key=lambda key: (isinstance(key, str), key)) if ids is None else ids
            )
            prompts = dict.fromkeys(wanted, prompt)
        prompts = dict(itertools.islice(prompts.items(), limit))
        where = "images" if isinstance(images, Mapping) else f"image files ({images})"
        need_all(prompts, found, where)
        need_all(prompts, truth.objects, "ground truth")
        self._examples = tuple(
            Example(key, (found[key],), text, {"image_id": key}) for key, text in prompts.items()
        )

    @classmethod
    def of(cls, chosen: ChairSettings) -> "Chair":
        """The benchmark of some settings; see `Suite.of`."""
        return cls(
            chosen.images or None,
            chosen.truth,
            questions=chosen.questions or None,
            prompt=chosen.prompt,
            vocabulary=chosen.vocabulary(),
            limit=chosen.limit or None,
        )

    @classmethod
    def recognises(cls, row: Record) -> bool:
        """An image with reference captions, instances or objects."""
        return bool(row.fields.keys() & DESCRIBED)

    def missing_note(self, count: int) -> str:
        """Tables of truth cover more images than are captioned."""
        return f"{count} images of the truth have no caption and were left out"

    def notes(self) -> tuple[str, ...]:
        """Says what truth of one kind cannot measure, and which of its objects no caption names."""
        notes = [chair.CAPTIONS_ALONE] if self.truth_objects.sources == {"captions"} else []
        every = set().union(*self.truth_objects.objects.values())
        unknown = sorted(name for name in every if self.vocabulary.node(name) is None)
        if unknown:
            notes.append(
                "objects of the truth that are no words of the vocabulary, so that no caption "
                f"names them: {some(unknown)}"
            )
        return tuple(notes)

    def identify(self, row: Record) -> ImageId:
        """The image that a row captions."""
        return row_image_id(row, IMAGE_KEYS)

    def document(self, example: Example) -> dict[str, Any]:
        """An image with its objects."""
        objects = sorted(self.truth_objects.objects[example.id])
        return {"image_id": example.id, "question": example.prompt, "gt_object": objects}

    def lmms_metrics(self) -> Mapping[str, str]:
        """lmms-eval extracts words by WordNet forms, as variant C does."""
        names = {"C_S": "coco_cap_chair_s", "C_I": "coco_cap_chair_i", "recall": "coco_cap_recall"}
        return names if self.vocabulary.variant == "wordnet" else {}

    def item(self, example: Example) -> Any:
        """The image."""
        return example.id

    def judge(self, example: Example, answer: str) -> Judged:
        """The integers of a caption (`chair.COUNTS`), the objects it names, where, and misses.

        Of a model that thinks first, the caption is what it says then (`final_answer.answered`).
        """
        said = answered(answer)
        found = self.scorer.score(example.id, answer[said.start : said.end])
        place = lambda m: {"start": said.start + m.start, "end": said.start + m.end}
        words = lambda wrong: [
            {"word": m.surface, "object": m.node, **place(m)}
            for m in found.mentions
            if m.hallucinated is wrong
        ]
        named = {m.node for m in found.mentions}
        missed = sorted(self.truth_objects.objects[example.id] - named)
        details = {"hallucinated": words(True), "grounded": words(False), "missed": missed}
        return Judged(example, found.tally, details)

    def metrics(self, totals: Totals) -> Mapping[str, Metric]:
        """C_S, C_I, recall, both F1s and length, and the split by label where there are groups."""
        return chair.metrics(totals)

    def answer_row(self, example: Example, answer: str) -> dict[str, Any]:
        """An answers line: image_id and caption."""
        return {"image_id": example.id, "caption": answer}

    def rules(self) -> dict[str, Any]:
        """The vocabulary."""
        return {"variant": self.vocabulary.variant, "vocabulary": self.vocabulary.fingerprint()}

    def protocol(self) -> dict[str, Any]:
        """Prompts, images, truth and vocabulary."""
        objects = self.truth_objects.objects
        return {**super().protocol(), "truth": [sorted(objects[e.id]) for e in self._examples]}


def _caption_prompts(
    path: str | Path, prompt: str, malformed: dict[str, str]
) -> dict[ImageId, str]:
    prompts: dict[ImageId, str] = {}

    def take(row: Record) -> None:
        key = row_image_id(row)
        if key in prompts:
            raise row.error(f"second question about image {key}; keep one")
        prompts[key] = row_text(row, ("text",)) if "text" in row.fields else prompt

    take_rows(path, read_text(path), take, malformed)
    return prompts


SUITE = Chair
