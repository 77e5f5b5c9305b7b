"""HallusionBench: yes/no on figures and edits of them, by question and figure (Guan et al., 2024).

Scored without a judge: an answer is yes, no or unknown. Of figure-dependent questions without a
figure, unknown counts as correct, as officially; `subset="image"` is the 951 questions that have
one, which harnesses ask.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vlm_jax.evals.base import Example, Judged, Metric
from vlm_jax.evals.questions import QuestionSettings, QuestionSuite, need
from vlm_jax.evals.records import Record
from vlm_jax.evals.tallies import Totals, f1, ratio
from vlm_jax.evals.yes_no import verdict
from vlm_jax.settings import one_of, setting

_KEYS = ("category", "subcategory", "set_id", "figure_id", "question_id")


@dataclass(frozen=True, kw_only=True)
class HallusionSettings(QuestionSettings):
    """A section on HallusionBench.

    Attributes:
        subset: "all" 1,129 questions, or those with an "image".
    """

    subset: str = setting("all", one_of, known=("all", "image"))


class HallusionBench(QuestionSuite):
    """Questions in sets: several figures, and the same questions about each."""

    name = "hallusionbench"
    Settings = HallusionSettings
    parsers = ("vlmevalkit", "reasoning", "contains_yes")
    whole_items = True
    harness_names: ClassVar[Mapping[str, str]] = {
        "lmms_eval": "hallusion_bench_image",
        "vlmevalkit": "HallusionBench",
    }

    @classmethod
    def recognises(cls, row: Record) -> bool:
        """A question of a figure of a set."""
        return {"set_id", "figure_id", "visual_input", "gt_answer"} <= row.fields.keys()

    def example(self, row: Record) -> Example | None:
        """A question."""
        parts = [str(need(row, key)) for key in _KEYS]
        shown = str(need(row, "visual_input"))
        if self.chosen.subset == "image" and shown == "0":
            return None
        label = str(need(row, "gt_answer"))
        if label not in ("0", "1"):
            raise row.error(f"gt_answer must be '0' or '1', found {label!r}")
        question = str(row.fields.get("question", ""))
        category, subcategory, group, figure, number = parts
        meta = {
            "question": question,
            "label": "yes" if label == "1" else "no",
            "category": category,
            "set": f"{category}_{subcategory}_{group}",
            "figure": figure,
            "number": number,
            "visual_input": shown,
            "image": f"{category}/{subcategory}/{group}_{figure}.png" if shown != "0" else "",
        }
        return Example("_".join(parts), (), question, meta)

    def identify(self, row: Record) -> str:
        """Category, subcategory, set, figure and question, apart or joined in "index".

        VLMEvalKit's has one more, behind the subcategory: "VD_chart_1_0_2_1" is "VD_chart_0_2_1".
        """
        if row.fields.keys() >= set(_KEYS):
            return "_".join(str(row.fields[key]) for key in _KEYS)
        parts = str(need(row, "index", "id", "question_id")).split("_")
        return "_".join(parts[:2] + parts[3:] if len(parts) == 6 else parts)

    def item(self, example: Example) -> Any:
        """The set."""
        return example.meta["set"]

    def judge(self, example: Example, answer: str) -> Judged:
        """The verdict; whether it is right as the official script counts."""
        said, details = verdict(answer, self.parser)
        meta = example.meta
        right = said == meta["label"]
        free = meta["category"] == "VS" and meta["figure"] == "0"
        right |= free and said == "unknown"
        told = meta["label"] == ("yes" if right else "no")  # as the official bias has it
        counts = {
            "questions": 1,
            "correct": int(right),
            "labelled_yes": int(meta["label"] == "yes"),
            "told_yes": int(told),
            "wrong": int(not right),
            "wrong_no": int(not right and meta["label"] == "no"),
            "unparsable": int(details["unparsable"]),
            "truncated": int(details["truncated"]),
        }
        for label in ("yes", "no"):
            counts[f"true/{label}"] = int(said == label == meta["label"])
            counts[f"said/{label}"] = int(said == label)
            counts[f"labelled/{label}"] = int(meta["label"] == label)
        return Judged(example, counts, {**details, "label": meta["label"], "correct": right})

    def tally(self, judged: Sequence[Judged]) -> dict[str, int]:
        """The integers of a set, and by category: its question pairs and figures, all right."""
        category = judged[0].example.meta["category"]
        own = super().tally(judged)
        pairs: dict[tuple[str, str], list[bool]] = {}
        figures: dict[tuple[str, str], list[bool]] = {}
        for one in judged:
            meta, right = one.example.meta, bool(one.counts["correct"])
            hard = "hard" if meta["visual_input"] == "2" else "easy"
            pairs.setdefault(("pairs", meta["number"]), []).append(right)
            pairs.setdefault((f"{hard}_pairs", meta["number"]), []).append(right)
            if not (meta["category"] == "VS" and meta["figure"] == "0"):
                figures.setdefault(("figures", meta["figure"]), []).append(right)
        for groups in (pairs, figures):
            for (name, _), rights in groups.items():
                own[name] = own.get(name, 0) + 1
                own[f"correct_{name}"] = own.get(f"correct_{name}", 0) + all(rights)
        return own | {f"{name}@{category}": count for name, count in own.items()}

    def metrics(self, totals: Totals) -> Mapping[str, Metric]:
        """Accuracies by question, pair and figure; bias; F1 (unknown is a class of its own)."""
        share = lambda top, bottom: lambda t: ratio(t.get(top, 0), t.get(bottom, 0))
        found = {
            "aAcc": Metric(share("correct", "questions"), primary=True),
            "qAcc": Metric(share("correct_pairs", "pairs")),
            "fAcc": Metric(share("correct_figures", "figures")),
            "easy_qAcc": Metric(share("correct_easy_pairs", "easy_pairs"), shown=False),
            "hard_qAcc": Metric(share("correct_hard_pairs", "hard_pairs"), shown=False),
            "yes_bias": Metric(
                lambda t: ratio(t["told_yes"] - t["labelled_yes"], t["questions"]), ""
            ),
            "FP_ratio": Metric(share("wrong_no", "wrong"), "", shown=False),
            "F1": Metric(lambda t: _f1(t, "yes")),
            "weighted_F1": Metric(
                lambda t: ratio(
                    sum(t[f"labelled/{one}"] * _f1(t, one) for one in ("yes", "no")),
                    t["questions"],
                )
            ),
            "unparsable_rate": Metric(share("unparsable", "questions"), "low"),
            "truncated_rate": Metric(share("truncated", "questions"), "low"),
        }
        for category in ("VD", "VS"):
            for name, pair in (("aAcc", "questions"), ("qAcc", "pairs"), ("fAcc", "figures")):
                top = "correct" if pair == "questions" else f"correct_{pair}"
                of = share(f"{top}@{category}", f"{pair}@{category}")
                found[f"{name}/{category}"] = Metric(of, shown=False)
        return found

    def document(self, example: Example) -> dict[str, Any]:
        """A question in the fields of the official file."""
        meta, parts = example.meta, str(example.id).split("_")
        return {
            "index": "_".join((*parts[:2], meta["visual_input"], *parts[2:])),
            **dict(zip(_KEYS, parts)),
            "l2-category": "_".join(parts[:2]),
            "visual_input": meta["visual_input"],
            "question": meta["question"],
            "gt_answer": str(int(meta["label"] == "yes")),
            "answer": meta["label"].capitalize(),
            "filename": meta["image"],
        }

    def rules(self) -> dict[str, Any]:
        """The parser and the subset."""
        return {"parser": self.parser, "subset": self.chosen.subset}


def _f1(totals: Totals, label: str) -> Any:
    hit = totals[f"true/{label}"]
    return f1(ratio(hit, totals[f"said/{label}"]), ratio(hit, totals[f"labelled/{label}"]))


SUITE = HallusionBench
