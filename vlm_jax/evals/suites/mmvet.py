"""MM-Vet: open questions over six capabilities, graded by a judge's file (Yu et al., 2023).

A judge gives each answer 0.0 to 1.0; its file is the official grader's, or {id: score}. Without
one nothing is scored: results of different judges do not compare.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import msgspec
import numpy as np

from vlm_jax.errors import AnswersError
from vlm_jax.evals.base import Example, Judged, Metric
from vlm_jax.evals.final_answer import final
from vlm_jax.evals.questions import QuestionSettings, QuestionSuite, need
from vlm_jax.evals.records import Record, read_text
from vlm_jax.evals.tallies import Totals, ratio
from vlm_jax.foreign import convert, parse_json
from vlm_jax.settings import setting, text

_PARTS = 1000  # grades are tallied in thousandths
_Score = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Scores = _Score | Annotated[list[_Score], msgspec.Meta(min_length=1)]


class _Entry(msgspec.Struct):
    """What the official grader says of an answer."""

    score: _Scores


@dataclass(frozen=True, kw_only=True)
class MmVetSettings(QuestionSettings):
    """A section on MM-Vet.

    Attributes:
        grades: the judge's file: id -> score, or -> {"score": [of each run]}.
        judge: what the judge is called; part of the protocol.
    """

    grades: str = setting("", text)
    judge: str = setting("", text)


class MmVet(QuestionSuite):
    """218 questions; answers are in the form that the official grader takes."""

    name = "mmvet"
    Settings = MmVetSettings
    harness_names: ClassVar[Mapping[str, str]] = {"lmms_eval": "mmvet", "vlmevalkit": "MMVet"}

    @classmethod
    def recognises(cls, row: Record) -> bool:
        """A question with its capabilities."""
        return {"imagename", "question", "answer", "capability"} <= row.fields.keys()

    def prepare(self) -> None:
        """Reads the judge's grades."""
        self.grades = read_grades(self.chosen.grades) if self.chosen.grades else None

    def example(self, row: Record) -> Example | None:
        """A question."""
        question = str(need(row, "question"))
        abilities = need(row, "capability")
        if not isinstance(abilities, list):
            raise row.error("capability must be a list of names")
        meta = {
            "question": question,
            "answer": str(need(row, "answer")),
            "image": str(need(row, "imagename")),
        }
        return Example(self.identify(row), (), question, {**meta, "abilities": abilities})

    def document(self, example: Example) -> dict[str, Any]:
        """A question with what it wants and by which capabilities."""
        meta = example.meta
        named = {"question": meta["question"], "answer": meta["answer"]}
        return {"question_id": example.id, **named, "capability": meta["abilities"]}

    def identify(self, row: Record) -> Any:
        """The question's name, such as "v1_0"."""
        return str(need(row, "question_id", "id", "index"))

    def judge(self, example: Example, answer: str) -> Judged:
        """The judge's grade; without a judge's file an answer is ungraded."""
        rates = {"unparsable": int(not answer.strip()), "truncated": int(final(answer).truncated)}
        if self.grades is None:
            return Judged(example, {"questions": 1, "ungraded": 1, **rates}, {"grade": None})
        if example.id not in self.grades:
            raise AnswersError(f"{self.chosen.grades} has no grade of {example.id}.")
        grade = round(_PARTS * self.grades[example.id])
        counts = {"questions": 1, "ungraded": 0, "thousandths": grade, **rates}
        for one in example.meta["abilities"]:
            counts |= {f"questions/{one}": 1, f"thousandths/{one}": grade}
        return Judged(example, counts, {"grade": grade / _PARTS})

    def metrics(self, totals: Totals) -> Mapping[str, Metric]:
        """The mean grade, and by capability.

        Raises:
            AnswersError: nothing was graded.
        """
        if totals.get("ungraded"):
            raise AnswersError(
                "MM-Vet is graded by a judge: send the answers to the official grader and name its "
                "file by the setting grades (config.score.grades)."
            )
        mean = lambda end: lambda t: ratio(t[f"thousandths{end}"], _PARTS * t[f"questions{end}"])
        found = {"total": Metric(mean(""), primary=True)}
        for name in totals:
            kind, _, ability = name.partition("/")
            if kind == "questions" and ability:
                found[ability] = Metric(mean(f"/{ability}"))
        for name in ("unparsable", "truncated"):
            found[f"{name}_rate"] = Metric(lambda t, n=name: ratio(t[n], t["questions"]), "low")
        return found

    def rules(self) -> dict[str, Any]:
        """The judge."""
        return {"judge": self.chosen.judge}


def read_grades(path: str) -> dict[str, float]:
    """Returns the grade of each id, from 0 to 1, the mean over a judge's runs.

    {"v1_0": 0.5, "v1_1": [0, 1], "v1_2": {"score": [1.0]}} gives 0.5, 0.5 and 1.0.

    Raises:
        AnswersError: the file is something else.
    """
    document = parse_json(read_text(path), dict[str, Any], path, AnswersError)
    found = {}
    for key, entry in document.items():
        graded = convert(entry, _Scores | _Entry, f"{path}: score of {key!r}", AnswersError)
        scores = graded.score if isinstance(graded, _Entry) else graded
        found[key] = float(np.mean(scores))
    return found


SUITE = MmVet
