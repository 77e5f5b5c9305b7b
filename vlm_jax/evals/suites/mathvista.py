"""MathVista: free-form and multiple-choice mathematics on pictures (Lu et al., 2024).

Answers are normalised by the official rules: a choice by its letter, else the nearest choice by
edit distance (so that garbage earns chance level); numbers by type and precision. What is
normalised is an extraction made by others ("extraction", the official files' field), or what our
own rules find in the whole answer ("rules").
"""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from vlm_jax.evals.base import Example, Judged, Metric
from vlm_jax.evals.final_answer import final, last_number, letter
from vlm_jax.evals.questions import QuestionSuite, need, need_list
from vlm_jax.evals.records import Record, shorten
from vlm_jax.evals.tallies import Totals, ratio

_GROUPS = ("question_type", "answer_type", "task", "language")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class MathVista(QuestionSuite):
    """1,000 problems of testmini."""

    name = "mathvista"
    parsers = ("auto", "extraction", "rules")
    sure_keys = ("extraction", "response", "model_response", "prediction")
    numbers_are_text = True
    harness_names: ClassVar[Mapping[str, str]] = {
        "lmms_eval": "mathvista_testmini",
        "vlmevalkit": "MathVista_MINI",
    }

    @classmethod
    def recognises(cls, row: Record) -> bool:
        """A problem with a question type, an answer type and a precision."""
        return {"question_type", "answer_type", "precision"} <= row.fields.keys()

    def example(self, row: Record) -> Example | None:
        """A problem."""
        question = str(row.fields.get("query", row.fields.get("question", "")))
        about = row.fields.get("metadata")
        about = about if isinstance(about, dict) else {}
        choices = need_list(row, "choices")
        precision = row.fields.get("precision")
        if precision is not None and precision not in range(16):
            raise row.error(f"precision must be decimals from 0 to 15, found {shorten(precision)}")
        meta = {
            "question": question,
            "choices": [str(choice) for choice in choices],
            "answer": str(need(row, "answer")),
            "precision": None if precision is None else int(precision),
            "image": str(row.fields.get("image") or ""),
        }
        for name in _GROUPS:
            meta[name] = str(row.fields.get(name, about.get(name, "")))
        return Example(self.identify(row), (), question, meta)

    def identify(self, row: Record) -> Any:
        """The problem's number."""
        return str(need(row, "pid", "question_id", "id", "index"))

    def document(self, example: Example) -> dict[str, Any]:
        """A problem in the fields of the official file."""
        meta = example.meta
        kept = ("choices", "answer", "precision", *_GROUPS)
        found = {name: meta[name] for name in kept if meta[name] not in (None, "")}
        return {"pid": example.id, "question": meta["question"], **found}

    def item(self, example: Example) -> Any:
        """The picture, which problems may share."""
        return example.meta["image"] or example.id

    def judge(self, example: Example, answer: str) -> Judged:
        """The normalised answer, and whether it is the official one."""
        meta = example.meta
        found = final(answer)
        taken, rule = answer, "extraction"
        if self.parser == "rules" or (self.parser == "auto" and _is_long(answer, meta)):
            taken, rule = extract(found.segment, meta), found.rule
        said = normalise(taken, meta)
        lost = said is None or (meta["question_type"] == "multi_choice" and not _named(taken, meta))
        right = said == meta["answer"]
        counts = {
            "questions": 1,
            "correct": int(right),
            "unparsable": int(lost),
            "truncated": int(found.truncated),
        }
        for name in _GROUPS[:2]:
            counts[f"{name}/{meta[name]}"] = 1
            counts[f"{name}_correct/{meta[name]}"] = int(right)
        details = {
            "verdict": said,
            "label": meta["answer"],
            "correct": right,
            "rule": rule,
            "unparsable": bool(lost),
            "truncated": found.truncated,
        }
        return Judged(example, counts, details)

    def metrics(self, totals: Totals) -> Mapping[str, Metric]:
        """Accuracy, and by question type."""
        share = lambda top, bottom: lambda t: ratio(t.get(top, 0), t.get(bottom, 0))
        found = {"accuracy": Metric(share("correct", "questions"), primary=True, outcome="correct")}
        for name in totals:
            group, _, value = name.partition("/")
            if group in _GROUPS:
                of = share(f"{group}_correct/{value}", name)
                found[f"accuracy/{value}"] = Metric(of, shown=group == "question_type")
        found["unparsable_rate"] = Metric(share("unparsable", "questions"), "low")
        found["truncated_rate"] = Metric(share("truncated", "questions"), "low")
        return found


def _is_long(answer: str, meta: Mapping[str, Any]) -> bool:
    """Whether an answer is a model's own text and no extraction from it."""
    if _named(answer, meta):
        return False
    return any(mark in answer for mark in ("</think>", "<think>", "\\boxed", "nswer", "\n"))


def _named(taken: str, meta: Mapping[str, Any]) -> bool:
    """Whether a choice is named, by letter or by its text."""
    letters = _LETTERS[: len(meta["choices"])]
    stripped = taken.strip()
    return (bool(stripped) and stripped in [*letters, *meta["choices"]]) or re.search(
        r"\([a-zA-Z]\)", stripped
    ) is not None


def extract(segment: str, meta: Mapping[str, Any]) -> str:
    """The answer that a segment of text gives: a letter, a number, or the segment itself."""
    if meta["question_type"] == "multi_choice":
        options = dict(zip(_LETTERS, meta["choices"]))
        said = letter(segment, options)
        return segment if said == "Z" else said
    if meta["answer_type"] in ("integer", "float"):
        return last_number(segment) or segment
    return segment


def normalise(extraction: str, meta: Mapping[str, Any]) -> str | None:
    """The official normal form of an extraction; None where it has none.

    Args:
        extraction: the text.
        meta: question_type, answer_type, choices, precision of the problem.
    """
    if meta["question_type"] == "multi_choice":
        choices = meta["choices"]
        if not choices:
            return None
        text = extraction.strip()
        named = re.findall(r"\(([a-zA-Z])\)", text)
        text = named[0].upper() if named else text
        if len(text) == 1 and text in _LETTERS[: len(choices)]:
            return choices[_LETTERS.index(text)]
        return min(choices, key=lambda choice: edit_distance(text, choice))
    try:
        if meta["answer_type"] == "integer":
            return str(int(float(extraction)))
        if meta["answer_type"] == "float":
            return str(round(float(extraction), meta["precision"]))
    except (ValueError, OverflowError, TypeError):
        return None
    return extraction


def edit_distance(one: str, other: str) -> int:
    """Levenshtein's distance: insertions, deletions and substitutions of characters."""
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        last, row[0] = row[0], i
        for j, right in enumerate(other, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (left != right))
    return row[-1]


SUITE = MathVista
