"""POPE: yes/no questions on objects in images, one split or all of them (Li et al., 2023)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from vlm_jax.evals import pope
from vlm_jax.evals.base import Example, Judged, Metric, Suite, SuiteSettings, paths, row_id
from vlm_jax.evals.pictures import ImageSource, find_images, need_all
from vlm_jax.evals.pope_questions import SPLITS
from vlm_jax.evals.records import Record, image_id
from vlm_jax.evals.tallies import Totals
from vlm_jax.evals.truth import Question, read_questions
from vlm_jax.settings import one_of, setting, text

ONE_WORD = "\nAnswer the question using a single word or phrase."


@dataclass(frozen=True, kw_only=True)
class PopeSettings(SuiteSettings):
    """A POPE section.

    Attributes:
        questions: the files of labelled questions: one split, or several ("..._popular.json").
        suffix: added to every question; constrains answers to a word.
        parser: reads verdicts, a key of `pope.PARSERS`.
    """

    questions: tuple[str, ...] = setting((), paths)
    suffix: str = setting(ONE_WORD, text)
    parser: str = setting("rucaibox", one_of, known=tuple(pope.PARSERS))


class Pope(Suite):
    """POPE questions over a set of images.

    Args:
        images: a folder, or image id -> path or PIL image; None where answers are only scored.
        questions: questions, or the files to read them from.
        suffix: added to every question; constrains answers to a word, see `ONE_WORD`.
        parser: reads verdicts, a key of `pope.PARSERS`.
        limit: number of questions to take from the front; default: all.

    Attributes:
        malformed: rows of the question file that could not be read -> what is wrong with them.

    Raises:
        AnswersError: an image is missing.
    """

    name = "pope"
    Settings = PopeSettings
    truth = "questions"
    harness_names: ClassVar[Mapping[str, str]] = {"lmms_eval": "pope", "vlmevalkit": "POPE"}

    def __init__(
        self,
        images: ImageSource | None,
        questions: Sequence[Question] | str | Path | Sequence[str | Path],
        *,
        suffix: str = ONE_WORD,
        parser: str = "rucaibox",
        limit: int | None = None,
    ) -> None:
        self.malformed: dict[str, str] = {}
        pope.parse_answer("", "yes", parser)
        self.parser = parser
        self.questions = _read(questions, None if images is None else self.malformed)[:limit]
        self.splits = tuple(dict.fromkeys(question.split for question in self.questions))
        keys = {question.id: image_id(question.image) for question in self.questions}
        found: Mapping[Any, Any] = {}
        if images is not None:
            found = find_images(images)
            need_all(keys.values(), found, f"image files ({images})")
        self._examples = tuple(
            Example(
                question.id,
                (found[keys[question.id]],) if found else (),
                question.text + suffix,
                {"label": question.label, "image": question.image, "question": question.text}
                | ({"split": question.split} if len(self.splits) > 1 else {}),
            )
            for question in self.questions
        )

    @classmethod
    def of(cls, chosen: PopeSettings) -> "Pope":
        """The benchmark of some settings; see `Suite.of`."""
        return cls(
            chosen.images or None,
            chosen.questions,
            suffix=chosen.suffix,
            parser=chosen.parser,
            limit=chosen.limit or None,
        )

    @classmethod
    def recognises(cls, row: Record) -> bool:
        """A question about an image with the label yes or no."""
        label = row.fields.get("label")
        return "question_id" in row.fields and isinstance(label, str) and "text" in row.fields

    def identify(self, row: Record) -> Any:
        """The question that a row answers.

        Where there are several splits, whose questions have the same numbers, the row's "category"
        or "split" says which, or the name of its file.
        """
        if len(self.splits) < 2:
            return row_id(row)
        key = row_id(row)
        named = str(row.fields.get("split", row.fields.get("category", "")))
        listed = [name.strip() for name in named.split(",")]
        if named and set(listed) <= set(self.splits):
            return tuple(f"{split}/{key}" for split in listed)
        split = next((name for name in self.splits if name in row.path.name.lower()), None)
        if split is not None:
            return f"{split}/{key}"
        if isinstance(key, str) and "/" in key:
            return key
        raise row.error(
            f"does not say which split its question {key} is of ({', '.join(self.splits)}): give "
            "it a field 'split', or its file the split's name"
        )

    def judge(self, example: Example, answer: str) -> Judged:
        """The integers of an answer (see `pope.COUNTS`), by split where there are several."""
        label = example.meta["label"]
        counts = pope.tally(answer, label, self.parser)
        details = {
            "label": label,
            "verdict": pope.parse_answer(answer, label, self.parser),
            "correct": bool(counts["correct"]),
            "unparsable": bool(counts["unparsable"]),
            "truncated": bool(counts["truncated"]),
        }
        split = example.meta.get("split")
        if split is not None:
            counts = {
                f"{name}/{one}": count * (one == split)
                for one in self.splits
                for name, count in counts.items()
            }
        return Judged(example, counts, details)

    def metrics(self, totals: Totals) -> Mapping[str, Metric]:
        """Accuracy, precision, recall, F1, yes ratio and the rate of unparsable answers."""
        return pope.metrics(self.parser, self.splits)

    def answer_row(self, example: Example, answer: str) -> dict[str, Any]:
        """An answers line: question_id, prompt, text and image."""
        return {
            "question_id": example.id,
            "prompt": example.prompt,
            "text": answer,
            "image": example.meta["image"],
        }

    def document(self, example: Example) -> dict[str, Any]:
        """A row of POPE; the number alone is its id, the category its split."""
        key, meta = example.id, example.meta
        split = meta.get("split", "")
        number = str(key).removeprefix(f"{split}/") if split else key
        return {
            "question_id": int(number) if str(number).isdigit() else number,
            "question": meta["question"],
            "answer": meta["label"],
            "image_source": str(meta["image"]),
            **({"category": split} if split else {}),
        }

    def lmms_metrics(self) -> Mapping[str, str]:
        """lmms-eval's figures are those of its own parser; its yes ratio is of the labels."""
        if self.parser != "lmms" or len(self.splits) > 1:
            return {}
        names = {"accuracy": "accuracy", "precision": "precision", "recall": "recall"}
        return {ours: f"pope_{name}" for ours, name in {**names, "F1": "f1_score"}.items()}

    def rules(self) -> dict[str, Any]:
        """The parser."""
        return {"parser": self.parser}


def _read(source: Any, malformed: dict[str, str] | None) -> tuple[Question, ...]:
    """Questions of one file, or of several with ids that say the split."""
    if isinstance(source, str | Path):
        return read_questions(source, malformed)
    listed = tuple(source)
    if not listed or isinstance(listed[0], Question):
        return listed
    if len(listed) == 1:
        return read_questions(listed[0], malformed)
    found: list[Question] = []
    for path in listed:
        split = split_name(Path(path))
        found += [
            replace(question, id=f"{split}/{question.id}", split=split)
            for question in read_questions(path, malformed)
        ]
    return tuple(found)


def split_name(path: Path) -> str:
    """The split of a file of questions, by its name: "coco_pope_popular.json" is "popular"."""
    name = path.name.lower()
    return next((split for split in SPLITS if split in name), path.name.split(".")[0])


SUITE = Pope
