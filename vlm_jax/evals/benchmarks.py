"""CHAIR and POPE as benchmarks: examples over a folder of images, tallies by the scorers."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_jax.errors import AnswersError
from vlm_jax.evals import chair, pope
from vlm_jax.evals.base import Example
from vlm_jax.evals.records import (
    ImageId,
    Row,
    image_id,
    read_text,
    row_image_id,
    row_text,
    some,
    take_rows,
)
from vlm_jax.evals.tallies import Statistic, Totals
from vlm_jax.evals.truth import ObjectTruth, Question, read_object_truth, read_questions
from vlm_jax.evals.vocabulary import Vocabulary, coco_vocabulary

CAPTION_PROMPT = "Please describe this image in detail."
ONE_WORD = "\nAnswer the question using a single word or phrase."

ImageSource = str | Path | Mapping[ImageId, Any]
"""A folder of image files, or image id -> path or PIL image."""


class Chair:
    """CHAIR captions over a set of images.

    Args:
        images: a folder, or image id -> path or PIL image.
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
    units: Mapping[str, str] = {"length": "words"}

    def __init__(
        self,
        images: ImageSource,
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
        self.truth = truth
        self.scorer = chair.ChairScorer(truth.objects, self.vocabulary, groups)
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
        _need_all(prompts, found, f"image files ({images})" if _is_folder(images) else "images")
        _need_all(prompts, truth.objects, "ground truth")
        self._examples = [
            Example(key, (found[key],), text, {"image_id": key}) for key, text in prompts.items()
        ]

    def examples(self) -> Iterator[Example]:
        """One example an image."""
        return iter(self._examples)

    def tally(self, example: Example, answer: str) -> dict[str, int]:
        """The integers of a caption; see `chair.COUNTS`."""
        return self.scorer.tally(example.id, answer)

    def metrics(self, totals: Totals) -> Mapping[str, Statistic]:
        """C_S, C_I, recall, both F1s and length, and the split by label where there are groups."""
        return chair.metrics(totals)

    def report(self, totals: Totals) -> dict[str, float]:
        """The metrics' values."""
        return chair.report(totals)

    def answer_row(self, example: Example, answer: str) -> dict[str, Any]:
        """An answers line: image_id and caption."""
        return {"image_id": example.id, "caption": answer}

    def protocol(self) -> dict[str, Any]:
        """Prompts, images, truth and vocabulary."""
        return {
            "benchmark": self.name,
            "vocabulary": self.vocabulary.fingerprint(),
            "items": [
                [example.id, example.prompt, sorted(self.truth.objects[example.id])]
                for example in self._examples
            ],
        }


class Pope:
    """POPE questions over a set of images.

    Args:
        images: a folder, or image id -> path or PIL image.
        questions: questions, or the file to read them from.
        suffix: added to every question; constrains answers to a word, see `ONE_WORD`.
        parser: reads verdicts, a key of `pope.PARSERS`.
        limit: number of questions to take from the front; default: all.

    Attributes:
        malformed: rows of the question file that could not be read -> what is wrong with them.

    Raises:
        AnswersError: an image is missing.
    """

    name = "pope"
    units: Mapping[str, str] = {}

    def __init__(
        self,
        images: ImageSource,
        questions: Sequence[Question] | str | Path,
        *,
        suffix: str = ONE_WORD,
        parser: str = "rucaibox",
        limit: int | None = None,
    ) -> None:
        self.malformed: dict[str, str] = {}
        if isinstance(questions, str | Path):
            questions = read_questions(questions, self.malformed)
        pope.parse_answer("", "yes", parser)
        self.parser = parser
        self.questions = tuple(questions)[:limit]
        found = find_images(images)
        keys = {question.id: image_id(question.image) for question in self.questions}
        _need_all(dict.fromkeys(keys.values()), found, f"image files ({images})")
        self._examples = [
            Example(
                q.id, (found[keys[q.id]],), q.text + suffix, {"label": q.label, "image": q.image}
            )
            for q in self.questions
        ]

    def examples(self) -> Iterator[Example]:
        """One example a question, in file order."""
        return iter(self._examples)

    def tally(self, example: Example, answer: str) -> dict[str, int]:
        """The integers of an answer; see `pope.COUNTS`."""
        return pope.tally(answer, example.meta["label"], self.parser)

    def metrics(self, totals: Totals) -> Mapping[str, Statistic]:
        """Accuracy, precision, recall, F1, yes ratio and the rate of unparsable answers."""
        return pope.metrics(self.parser)

    def report(self, totals: Totals) -> dict[str, float]:
        """The metrics' values."""
        return pope.report(totals, self.parser)

    def answer_row(self, example: Example, answer: str) -> dict[str, Any]:
        """An answers line: question_id, prompt, text and image."""
        return {
            "question_id": example.id,
            "prompt": example.prompt,
            "text": answer,
            "image": example.meta["image"],
        }

    def protocol(self) -> dict[str, Any]:
        """Prompts, labels, images and parser."""
        return {
            "benchmark": self.name,
            "parser": self.parser,
            "items": [
                [example.id, example.prompt, example.meta["image"], example.meta["label"]]
                for example in self._examples
            ],
        }


def find_images(source: ImageSource) -> dict[ImageId, Any]:
    """Image id -> path (of a folder's image files) or whatever a mapping holds.

    Raises:
        AnswersError: no such folder, no image in it, or two files of one image id.
    """
    if isinstance(source, Mapping):
        return {image_id(key): image for key, image in source.items()}
    folder = Path(source)
    if not folder.is_dir():
        raise AnswersError(f"image folder {folder} does not exist")
    found: dict[ImageId, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"):
            continue
        key = image_id(path.name)
        if key in found:
            raise AnswersError(f"{found[key]} and {path} are both image {key}; keep one")
        found[key] = path
    if not found:
        raise AnswersError(f"image folder {folder} holds no image file (.jpg, .png, .webp, ...)")
    return found


def _is_folder(source: ImageSource) -> bool:
    return not isinstance(source, Mapping)


def _need_all(wanted: Mapping[ImageId, Any], have: Mapping[ImageId, Any], what: str) -> None:
    missing = [key for key in wanted if key not in have]
    if missing:
        raise AnswersError(f"{len(missing)} of {len(wanted)} images lack {what}: {some(missing)}")


def _caption_prompts(
    path: str | Path, prompt: str, malformed: dict[str, str]
) -> dict[ImageId, str]:
    prompts: dict[ImageId, str] = {}

    def take(row: Row) -> None:
        key = row_image_id(row)
        if key in prompts:
            raise row.error(f"second question about image {key}; keep one")
        prompts[key] = row_text(row, ("text",)) if "text" in row.fields else prompt

    take_rows(path, read_text(path), take, malformed)
    return prompts
