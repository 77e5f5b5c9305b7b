r"""MathVision: problems of mathematics competitions with pictures (Wang et al., 2024).

The official rule without its `eval`: an answer is right if it is the letter or the option's value,
as text, as a tuple part by part, or as a number to two decimals. Numbers are read by a grammar
(`latex`), so that an expression outside it is compared as text alone.
"""

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from vlm_jax.evals.base import Example, Judged, Metric
from vlm_jax.evals.final_answer import final
from vlm_jax.evals.latex import value
from vlm_jax.evals.questions import QuestionSuite, need, need_list
from vlm_jax.evals.records import Record
from vlm_jax.evals.tallies import Totals, ratio

PROMPT = 'Please solve the problem step by step and put your answer in one "\\boxed{}".\n'
_CUES = (
    *("the final answer is", "the answer is", "the correct answer is", "the answer should be"),
)
_LETTERS = "abcde"


class MathVision(QuestionSuite):
    """3,040 problems, or the 304 of testmini."""

    name = "mathvision"
    parsers = ("official", "reasoning")
    sure_keys = ("response", "prediction")
    harness_names: ClassVar[Mapping[str, str]] = {
        "lmms_eval": "mathvision_test",
        "vlmevalkit": "MathVision",
    }

    @classmethod
    def recognises(cls, row: Record) -> bool:
        """A problem with options, a level and a subject."""
        return {"options", "answer", "level", "subject"} <= row.fields.keys()

    def example(self, row: Record) -> Example | None:
        """A problem."""
        question = str(need(row, "question"))
        options = need_list(row, "options")
        listed = "\n".join(f"({chr(65 + n)}) {option}" for n, option in enumerate(options))
        meta = {
            "question": question,
            "answer": str(need(row, "answer")),
            "options": [str(option) for option in options],
            "level": str(row.fields.get("level", "")),
            "subject": str(row.fields.get("subject", "")),
            "image": str(row.fields.get("image") or ""),
        }
        prompt = PROMPT + question + (f"\nChoices:\n{listed}" if listed else "")
        return Example(self.identify(row), (), prompt, meta)

    def document(self, example: Example) -> dict[str, Any]:
        """A problem in the fields of the official file."""
        named = ("question", "options", "answer", "level", "subject")
        return {"id": example.id, **{name: example.meta[name] for name in named}}

    def item(self, example: Example) -> Any:
        """The problem."""
        return example.id

    def judge(self, example: Example, answer: str) -> Judged:
        """The answer that the text ends in, and whether it is right."""
        meta, found = example.meta, final(answer)
        text = found.segment if self.parser == "reasoning" else answer
        said = extract(text)
        label = meta["answer"]
        place = ord(label) - ord("A") if len(label) == 1 else -1
        option = meta["options"][place] if 0 <= place < len(meta["options"]) else ""
        right = equal(label, said) or equal(option, said)
        counts = {
            "questions": 1,
            "correct": int(right),
            "unparsable": int(not said),
            "truncated": int(found.truncated),
            f"level/{meta['level']}": 1,
            f"level_correct/{meta['level']}": int(right),
        }
        details = {
            "verdict": said,
            "label": label,
            "correct": right,
            "rule": found.rule if self.parser == "reasoning" else "official",
            "unparsable": not said,
            "truncated": found.truncated,
        }
        return Judged(example, counts, details)

    def metrics(self, totals: Totals) -> Mapping[str, Metric]:
        """Accuracy, and by level."""
        share = lambda top, bottom: lambda t: ratio(t.get(top, 0), t.get(bottom, 0))
        found = {"accuracy": Metric(share("correct", "questions"), primary=True, outcome="correct")}
        for name in sorted(name for name in totals if name.startswith("level/")):
            level = name.partition("/")[2]
            of = share(f"level_correct/{level}", name)
            found[f"accuracy/level {level}"] = Metric(of, shown=False)
        found["unparsable_rate"] = Metric(share("unparsable", "questions"), "low")
        found["truncated_rate"] = Metric(share("truncated", "questions"), "low")
        return found


def extract(response: str) -> str:
    """The answer in a response, in the official script's normal form."""
    text = response.strip()
    for one in "ABCDE":
        ends, starts = (f" {one}.", f" ({one})."), (f"{one}\n", f"({one})\n", f"({one}) {one}\n")
        if text.endswith(ends) or text.startswith(starts):
            text = one
    last = text.split("is ")[-1].rstrip(".")
    text = last if _is_number(last) else text
    if "oxed{" not in text:
        for cue in _CUES:
            for spelt in (cue, cue.replace("the", "The")):
                if spelt in text:
                    text = text.split(spelt)[-1].strip().split("\n")[0].split(". ")[0]
                else:
                    text = text.strip()
    elif text.count("oxed{") > 1:
        text = "\\boxed{" + text.split("oxed{")[-1]
    text = _plain(text)
    for one in _LETTERS:
        text = text.replace(f"({one})", one).replace(f"{{{one}}}", one)
    return text.rstrip(".").lstrip(":").strip()


def equal(answer: str, said: str) -> bool:
    """Whether two answers are the same: as text, part by part, or as numbers to two decimals."""
    one, other = answer.lower().strip(), said.lower().strip()
    if not one.replace(" ", "") or not other.replace(" ", ""):
        return False
    if one == other:
        return True
    one, other = _parts(one), _parts(other)
    if one == other:
        return True
    left, right = value(one), value(other)
    return left is not None and right is not None and round(left, 2) == round(right, 2)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parts(text: str) -> str:
    """A tuple or list with its parts as numbers to two decimals; other text as it is."""
    if len(text) < 2 or (text[0], text[-1]) not in (("(", ")"), ("[", "]")) or "," not in text:
        return text
    found = []
    for part in text[1:-1].split(","):
        number = value(part)
        if number is None:
            if "infty" not in part and part not in ("a", "-a"):
                return text
            found.append(part)
        else:
            found.append(str(round(number, 2)))
    return f"{text[0]}{','.join(found)}{text[-1]}"


_REMOVED = (
    *(" ", "\\,", "\n", "\\text", "\\mbox", "\\left", "\\right", "^{\\circ}", "^\\circ"),
    *("{m}^3", "m^3", "{units}", "units", "{km}", "km", "\\!", "\\$", "$", "\\%"),
)


def _plain(text: str) -> str:
    """LaTeX of a response without its dressing: the last box, what follows "=", no units."""
    text = text.lower().replace("{}", "")
    boxes = re.findall(r"oxed{(.*)}", text, re.DOTALL)
    found = boxes[-1] if boxes else text
    closing, opening = found.find("}"), found.find("{")
    if closing != -1 and (opening == -1 or closing < opening):
        found = found.split("}")[0]
    found = found.split("=")[-1].split("\\approx")[-1]
    found = found.replace("∞", "\\infty").replace("+\\infty", "\\infty").replace("\\\\", "\\")
    for one in _REMOVED:
        found = found.replace(one, "")
    found = found.replace("tfrac", "frac").replace("dfrac", "frac").replace("{.", "{0.")
    found = "0" + found if found.startswith(".") else found
    if "sqrt" in found:
        found = re.sub(r"\\sqrt([^{\[])", r"\\sqrt{\1}", found)
        found = re.sub(r"\\frac([^{])([^{])", r"\\frac{\1}{\2}", found)
    if found == "0.5":
        found = "\\frac{1}{2}"
    fraction = re.fullmatch(r"(-?\d+)/(-?\d+)", found)
    return f"\\frac{{{fraction[1]}}}{{{fraction[2]}}}" if fraction else found


SUITE = MathVision
