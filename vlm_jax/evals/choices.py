"""Multiple-choice benchmarks: options of a row, letters of answers, accuracy and weighted F1."""

import re
import string
from collections.abc import Mapping
from typing import Any, ClassVar

from vlm_jax.evals.base import Example, Judged, Metric
from vlm_jax.evals.final_answer import final, infer_letter, letter
from vlm_jax.evals.questions import QuestionSuite, need
from vlm_jax.evals.records import Record
from vlm_jax.evals.tallies import Totals, f1, ratio

_OPTIONS = re.compile(r"(?s)Options?:\s*(.*)")
_OPTION = re.compile(r"(?s)\b([A-Z])[:.]\s*(.*?)(?=,?\s*\b[A-Z][:.]\s|\Z)")


class ChoiceSuite(QuestionSuite):
    """Questions with lettered options."""

    parsers = ("vlmevalkit", "reasoning", "first")
    sheet_names: ClassVar[Mapping[str, str]] = {"l2_category": "l2-category"}
    layout = (
        "{question}\n{options}\nAnswer with the option's letter from the given choices directly."
    )

    def example(self, row: Record) -> Example | None:
        """A question."""
        question = str(need(row, "question"))
        options = read_options(row, question)
        label = str(need(row, "answer")).strip().upper()
        if label not in options:
            raise row.error(f"answer must be one of {', '.join(options)}, found {label!r}")
        listed = "\n".join(f"{key}. {option}" for key, option in options.items())
        inside = _OPTIONS.search(question)
        prompt = self.layout.format(question=question, options="" if inside else listed)
        meta = {
            "question": question,
            "label": label,
            "options": options,
            "category": str(row.fields.get("category", row.fields.get("question_type_id", ""))),
            "axis": str(row.fields.get("l2_category", row.fields.get("l2-category", ""))),
            "image": str(row.fields.get("data_id", row.fields.get("image_path", "")) or ""),
        }
        return Example(self.identify(row), (), prompt.replace("\n\n", "\n"), meta)

    def document(self, example: Example) -> dict[str, Any]:
        """A question with an option a column."""
        meta = example.meta
        named = {"category": meta["category"], "l2_category": meta["axis"]}
        return {
            "index": example.id,
            "question": meta["question"],
            **meta["options"],
            "answer": meta["label"],
            **{name: value for name, value in named.items() if value},
        }

    def item(self, example: Example) -> Any:
        """The image where rows name one, else the question."""
        return example.meta["image"] or example.id

    def judge(self, example: Example, answer: str) -> Judged:
        """The letter that an answer names, "Z" for none."""
        options = example.meta["options"]
        found = final(answer)
        if self.parser == "reasoning":
            said = letter(found.segment, options)
        elif self.parser == "first":
            first = answer.strip()[:1].upper()
            said = first if first in options else "Z"
        else:
            said = infer_letter(answer, options)
        label = example.meta["label"]
        counts = {
            "questions": 1,
            "correct": int(said == label),
            "unparsable": int(said == "Z"),
            "truncated": int(found.truncated),
            f"labelled/{label}": 1,
            f"said/{said}": 1,
            f"true/{label}": int(said == label),
        }
        for kind in ("category", "axis"):
            if example.meta[kind]:
                counts[f"{kind}/{example.meta[kind]}"] = 1
                counts[f"{kind}_correct/{example.meta[kind]}"] = int(said == label)
        details = {
            "verdict": said,
            "label": label,
            "correct": said == label,
            "rule": found.rule if self.parser == "reasoning" else self.parser,
            "unparsable": said == "Z",
            "truncated": found.truncated,
        }
        return Judged(example, counts, details)

    def metrics(self, totals: Totals) -> Mapping[str, Metric]:
        """Accuracy, its mean over axes, weighted F1, accuracy by category."""
        share = lambda top, bottom: lambda t: ratio(t.get(top, 0), t.get(bottom, 0))
        axes = [name.partition("/")[2] for name in totals if name.startswith("axis/")]
        found = {"accuracy": Metric(share("correct", "questions"), primary=True, outcome="correct")}
        if axes:
            found["macro_accuracy"] = Metric(
                lambda t: (
                    sum(ratio(t[f"axis_correct/{a}"], t[f"axis/{a}"]) for a in axes) / len(axes)
                )
            )
        found["weighted_F1"] = Metric(weighted_f1)
        for name in totals:
            kind, _, category = name.partition("/")
            if kind == "category":
                of = share(f"category_correct/{category}", name)
                found[f"accuracy/{category}"] = Metric(of, shown=False)
        found["unparsable_rate"] = Metric(share("unparsable", "questions"), "low")
        found["truncated_rate"] = Metric(share("truncated", "questions"), "low")
        return found


def weighted_f1(totals: Totals) -> Any:
    """F1 of each label, weighted by how often it is right; no answer is a label of its own."""
    labels = [name.partition("/")[2] for name in totals if name.startswith("labelled/")]
    total: Any = 0.0
    for label in labels:
        hit, count = totals.get(f"true/{label}", 0), totals[f"labelled/{label}"]
        total = total + count * f1(ratio(hit, totals.get(f"said/{label}", 0)), ratio(hit, count))
    return ratio(total, totals["questions"])


def read_options(row: Record, question: str) -> dict[str, str]:
    """Letter -> option of a row, in columns, a list, or the question's own text.

    Raises:
        AnswersError: there are none.
    """
    letters = string.ascii_uppercase
    columns = {key: str(row.fields[key]) for key in letters if row.fields.get(key) is not None}
    columns = columns or {
        key: str(row.fields[f"choice_{key.lower()}"])
        for key in letters
        if row.fields.get(f"choice_{key.lower()}") is not None
    }
    if columns:
        return columns
    listed = row.fields.get("options", row.fields.get("choices"))
    if isinstance(listed, list) and listed:
        return dict(zip(letters, map(str, listed)))
    inside = _OPTIONS.search(question)
    found = {key: text.strip(" ,\n") for key, text in _OPTION.findall(inside[1] if inside else "")}
    if found:
        return found
    raise row.error("has no options: needs columns A, B, ..., choice_a, ..., or a list 'options'")
