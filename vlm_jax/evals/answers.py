"""Files of answers: which row answers which example, and in which field the answer is.

Files of others name fields in many ways. What a file holds is decided once for the whole file, so
that a row without a "prediction" is an empty prediction and never the truth that stands beside it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm_jax.errors import AnswersError
from vlm_jax.evals.base import ID_KEYS, Example, Suite
from vlm_jax.evals.records import IMAGE_KEYS, Record, clean, read_rows, row_text, shorten

ERROR = "error"
"""The field of a line that says why there is no answer."""


@dataclass(frozen=True)
class Answers:
    """What a model said, by the id of the example, in file order.

    Attributes:
        path: the file.
        texts: id -> text.
        places: id -> where it stands in the file, such as "answers.jsonl line 3".
        rows: id -> its row.
        failed: ids, as text, of lines that say why there is no answer.
        key: the field that holds the answers.
    """

    path: Path
    texts: Mapping[Any, str]
    places: Mapping[Any, str]
    rows: Mapping[Any, Record]
    failed: tuple[str, ...] = ()
    key: str = ""


@dataclass(frozen=True)
class Keys:
    """Names of fields, where a file's own are none of the usual.

    Attributes:
        image: of the image or question that a row is about; "" looks at the usual names.
        text: of the answer; "" looks at the usual names.
    """

    image: str = ""
    text: str = ""


@dataclass
class _Found:
    texts: dict[Any, str] = field(default_factory=dict)
    rows: dict[Any, Record] = field(default_factory=dict)


USUAL = Keys()


def read_answers(suite: Suite, path: str | Path, keys: Keys = USUAL) -> Answers:
    """Reads what a file answers to a benchmark.

    Args:
        suite: the benchmark; says which example a row answers.
        path: rows of any kind that `records` reads.
        keys: fields with names of their own.

    Raises:
        AnswersError: a malformed row, two answers to one example, or a field that holds the
            questions; names file and place.
    """
    path = Path(path)
    failed, rows = [], []
    for row in read_rows(path):
        if ERROR in row.fields and "id" in row.fields and not _has_answer(row, suite):
            failed.append(str(row.fields["id"]))
        else:
            rows.append(row)
    sure = next((key for key in suite.sure_keys if any(key in row.fields for row in rows)), None)
    wanted = (keys.text,) if keys.text else suite.answer_keys if sure is None else (sure,)
    examples = {example.id: example for example in suite.examples()}
    named = _named(suite, rows, keys) if _have_ids(rows, keys) else _by_order(rows, examples, path)
    found = _Found()
    for key, row in named:
        for one in key if isinstance(key, tuple) else (key,):
            if one in found.texts:
                first = found.rows[one]
                raise row.error(
                    f"second answer to {shorten(one)} (the first is on {first.unit} {first.line}); "
                    "keep one"
                )
            sure_of_it = sure is not None and not keys.text
            found.texts[one] = _text(row, wanted, sure_of_it, suite.numbers_are_text)
            found.rows[one] = row
    _refuse_questions(path, found, examples)
    places = {key: row.place for key, row in found.rows.items()}
    used = wanted[0] if len(wanted) == 1 else ""
    return Answers(path, found.texts, places, found.rows, tuple(failed), used)


def _has_answer(row: Record, suite: Suite) -> bool:
    return any(isinstance(row.fields.get(key), str) for key in suite.answer_keys)


def _have_ids(rows: list[Record], keys: Keys) -> bool:
    known = {*ID_KEYS, *IMAGE_KEYS, "set_id"}
    return not rows or bool(keys.image) or any(known & row.fields.keys() for row in rows)


def _named(suite: Suite, rows: list[Record], keys: Keys) -> list[tuple[Any, Record]]:
    named = []
    for row in rows:
        if keys.image:
            if keys.image not in row.fields:
                have = ", ".join(map(repr, row.fields)) or "nothing"
                raise row.error(f"needs config.score.image_key's field {keys.image!r}, has {have}")
            value = row.fields[keys.image]
            row = row._replace(fields={**row.fields, "image_id": value, "question_id": value})
        named.append(row)
    return list(zip(suite.identify_all(named), rows))


def _by_order(
    rows: list[Record], examples: Mapping[Any, Example], path: Path
) -> list[tuple[Any, Record]]:
    """Rows of a question and an answer without ids, in the order of the truth (RUCAIBox's form).

    lmms-eval's samples say by "doc_id" which row of the truth theirs is, and what was asked by
    "input".
    """
    if all("doc_id" in row.fields for row in rows):
        return _by_place(rows, list(examples.values()))
    asked = [one for one in examples.values() if "question" in one.meta]
    if not asked or not all("question" in row.fields for row in rows):
        raise rows[0].error(
            "names no image or question; needs one of the fields "
            f"{', '.join(map(repr, (*ID_KEYS, *IMAGE_KEYS[:2])))} (config.score.image_key names "
            "another)"
        )
    if len(rows) != len(asked):
        raise AnswersError(
            f"{path} has {len(rows)} answers without ids, the truth {len(asked)} questions; rows "
            "without ids are matched by their order and must be as many."
        )
    for row, example in zip(rows, asked):
        question = str(row.fields["question"]).strip()
        _same_question(row, example, question.startswith(example.meta["question"].strip()))
    return [(example.id, row) for row, example in zip(rows, asked)]


def _by_place(rows: list[Record], examples: list[Example]) -> list[tuple[Any, Record]]:
    """Rows by the place in the truth that their "doc_id" names, from 0 on."""
    found = []
    for row in rows:
        place = row.fields["doc_id"]
        if not isinstance(place, int) or not 0 <= place < len(examples):
            raise row.error(
                f"doc_id {shorten(place)} is no row of the truth, which has {len(examples)}; name "
                "the truth that was asked"
            )
        example, said = examples[place], row.fields.get("input")
        if isinstance(said, str) and "question" in example.meta:
            row = row._replace(fields={**row.fields, "question": said})
            _same_question(row, example, str(example.meta["question"]).strip() in said)
        found.append((example.id, row))
    return found


def _same_question(row: Record, example: Example, same: bool) -> None:
    """Refuses a row whose question is not the truth's at its place."""
    if not same:
        raise row.error(
            f"question {shorten(row.fields['question'])} is not the truth's "
            f"{shorten(example.meta['question'])}; rows without ids must be in its order"
        )


def _text(row: Record, wanted: tuple[str, ...], sure: bool, numbers: bool) -> str:
    """The answer in a row; an absent cell of a table, where others have one, is empty."""
    if sure and (row.unit == "row" or numbers) and row.fields.get(wanted[0]) is None:
        return ""
    if row.unit == "row" or numbers:  # spreadsheets turn "5" into a number
        key = next((key for key in wanted if key in row.fields), None)
        if key is not None and isinstance(row.fields[key], int | float):
            return str(row.fields[key])
    return clean(row_text(row, wanted))


def _refuse_questions(path: Path, found: _Found, examples: Mapping[Any, Example]) -> None:
    """Refuses a field that holds the questions, not the answers."""
    echoes = [
        key
        for key, text in found.texts.items()
        if key in examples
        and text.strip()
        and text.strip() == str(examples[key].meta.get("question", examples[key].prompt)).strip()
    ]
    if echoes and 2 * len(echoes) > len(found.texts):
        raise AnswersError(
            f"{found.rows[echoes[0]].place}: the answer is the question itself, as in {len(echoes)}"
            f" of {len(found.texts)} rows; name the answers' field by config.score.text_key."
        )
