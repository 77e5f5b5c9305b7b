"""Readers of answer files: captions by image, and answers by question."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vlm_jax.evals.records import ImageId, Row, read_rows, row_image_id, row_text

QuestionId = int | str

ERROR = "error"
"""The field of a line that says why there is no answer."""


@dataclass(frozen=True)
class Answers:
    """What a model said, by image id (captions) or question id, in file order.

    Attributes:
        path: the file.
        texts: id -> text.
        lines: id -> line number in the file.
        failed: ids, as text, of lines that say why there is no answer.
    """

    path: Path
    texts: Mapping[ImageId, str]
    lines: Mapping[ImageId, int]
    failed: tuple[str, ...] = ()


def read_captions(path: str | Path) -> Answers:
    """Reads captions: rows of `image_id` (or `image`) and `caption` (or `text`).

    Raises:
        AnswersError: a malformed row, or two captions of one image; names file and line.
    """

    def parse(row: Row) -> tuple[ImageId, str]:
        return row_image_id(row), row_text(row, ("caption", "text"))

    return _collect(path, parse, "caption of image")


def read_question_answers(path: str | Path) -> Answers:
    """Reads answers to questions: rows of `question_id` and `text` (or `answer`).

    Raises:
        AnswersError: a malformed row, or two answers to one question; names file and line.
    """

    def parse(row: Row) -> tuple[QuestionId, str]:
        return question_id(row), row_text(row, ("text", "answer"))

    return _collect(path, parse, "answer to question")


def question_id(row: Row) -> QuestionId:
    """A row's `question_id`; digits given as text count as the number."""
    value = row.fields.get("question_id")
    if isinstance(value, str) and value.strip():
        return int(value) if value.isascii() and value.isdigit() else value
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise row.error(f"needs a field 'question_id' with a number or a name, found {value!r}")


def _collect(path: str | Path, parse, what: str) -> Answers:
    texts: dict[ImageId, str] = {}
    lines: dict[ImageId, int] = {}
    failed = []
    for row in read_rows(path):
        if ERROR in row.fields and "id" in row.fields:
            failed.append(str(row.fields["id"]))
            continue
        key, text = parse(row)
        if key in texts:
            raise row.error(f"second {what} {key} (the first is on line {lines[key]}); keep one")
        texts[key], lines[key] = text, row.line
    return Answers(Path(path), texts, lines, tuple(failed))
