"""MME: two yes/no questions an image, accuracy and accuracy+ by subset (Fu et al., 2023)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vlm_jax.evals.base import Example, Judged, Metric
from vlm_jax.evals.questions import QuestionSettings, QuestionSuite, need
from vlm_jax.evals.records import Record
from vlm_jax.evals.tallies import Totals, ratio
from vlm_jax.evals.yes_no import verdict
from vlm_jax.settings import listed, setting, word

HALLUCINATION = ("existence", "count", "position", "color")
PERCEPTION = (
    *HALLUCINATION,
    *("posters", "celebrity", "scene", "landmark", "artwork", "OCR"),
)
SUBSETS = (
    *PERCEPTION,
    *("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
)


@dataclass(frozen=True, kw_only=True)
class MmeSettings(QuestionSettings):
    """A section on MME.

    Attributes:
        subsets: those that are asked; "all" is every one of the file. By default the four on
            hallucination.
    """

    subsets: tuple[str, ...] = setting(HALLUCINATION, listed, each=word, alone=True)


class Mme(QuestionSuite):
    """Questions in pairs about an image, one with the answer yes and one with no."""

    name = "mme"
    Settings = MmeSettings
    parsers = ("lmms_mme", "vlmevalkit", "reasoning")
    whole_items = True
    harness_names: ClassVar[Mapping[str, str]] = {"lmms_eval": "mme", "vlmevalkit": "MME"}
    sheet_names: ClassVar[Mapping[str, str]] = {"question_id": "image_path"}

    @classmethod
    def recognises(cls, row: Record) -> bool:
        """A row of MME's own files, which have no header."""
        known = {"category", "image", "question", "answer"} <= row.fields.keys()
        return known and row.fields["category"] in SUBSETS

    def prepare(self) -> None:
        """Counts the questions of each image."""
        self._seen: Counter = Counter()

    def example(self, row: Record) -> Example | None:
        """A question."""
        category = str(need(row, "category"))
        wanted = self.chosen.subsets
        if wanted != ("all",) and category not in wanted:
            return None
        image = str(need(row, "question_id", "image_path", "image"))
        label = str(need(row, "answer", "label")).strip().lower()
        if label not in ("yes", "no"):
            raise row.error(f"answer must be 'Yes' or 'No', found {label!r}")
        self._seen[category, image] += 1
        question = str(row.fields.get("question", ""))
        meta = {"question": question, "label": label, "category": category, "image": image}
        number = self._seen[category, image]
        return Example(f"{category}/{image}#{number}", (), question, meta)

    def identify_all(self, rows: Sequence[Record]) -> list[Any]:
        """The example of every row: by its question, or by its place among the image's rows."""
        known = {
            (e.meta["category"], e.meta["image"], e.meta["question"].strip()): e.id
            for e in self._examples
            if e.meta["question"]
        }
        seen: Counter = Counter()
        found = []
        for row in rows:
            category = str(need(row, "category"))
            image = str(need(row, "question_id", "image_path", "image"))
            seen[category, image] += 1
            question = str(row.fields.get("question", "")).strip()
            place = f"{category}/{image}#{seen[category, image]}"
            found.append(known.get((category, image, question), place))
        if self.chosen.subsets != ("all",):
            asked = self.chosen.subsets
            found = [key if key.partition("/")[0] in asked else () for key in found]
        return found

    def item(self, example: Example) -> Any:
        """The image."""
        return f"{example.meta['category']}/{example.meta['image']}"

    def judge(self, example: Example, answer: str) -> Judged:
        """The verdict."""
        said, details = verdict(answer, self.parser)
        right = said == example.meta["label"]
        counts = {
            "questions": 1,
            "correct": int(right),
            "unparsable": int(details["unparsable"]),
            "truncated": int(details["truncated"]),
        }
        return Judged(
            example, counts, {**details, "label": example.meta["label"], "correct": right}
        )

    def tally(self, judged: Sequence[Judged]) -> dict[str, int]:
        """The integers of an image, and by subset: both questions right."""
        category = judged[0].example.meta["category"]
        own = super().tally(judged)
        own |= {"images": 1, "correct_images": int(own["correct"] == own["questions"])}
        return own | {f"{name}/{category}": count for name, count in own.items()}

    def metrics(self, totals: Totals) -> Mapping[str, Metric]:
        """Points: each subset's accuracy and accuracy+ in percent, added up; and both as shares."""
        names = tuple(n.partition("/")[2] for n in totals if n.startswith("images/"))
        points = lambda t, name: (
            100
            * (
                ratio(t[f"correct/{name}"], t[f"questions/{name}"])
                + ratio(t[f"correct_images/{name}"], t[f"images/{name}"])
            )
        )
        found = {
            "score": Metric(
                lambda t: sum(points(t, one) for one in names), unit="points", primary=True
            )
        }
        for name in names:
            found[name] = Metric(lambda t, name=name: points(t, name), unit="points")
        return found | {
            "accuracy": Metric(lambda t: ratio(t["correct"], t["questions"])),
            "accuracy+": Metric(lambda t: ratio(t["correct_images"], t["images"])),
            "unparsable_rate": Metric(lambda t: ratio(t["unparsable"], t["questions"]), "low"),
            "truncated_rate": Metric(lambda t: ratio(t["truncated"], t["questions"]), "low"),
        }

    def document(self, example: Example) -> dict[str, Any]:
        """A row of MME, whose id is its image."""
        meta = example.meta
        return {
            "question_id": meta["image"],
            "question": meta["question"],
            "answer": meta["label"].capitalize(),
            "category": meta["category"],
        }

    def lmms_metrics(self) -> Mapping[str, str]:
        """The score is lmms-eval's where all perception subsets are asked by its parser."""
        every = self.parser == "lmms_mme" and self.chosen.subsets == PERCEPTION
        return {"score": "mme_perception_score"} if every else {}

    def rules(self) -> dict[str, Any]:
        """The parser and the subsets."""
        return {"parser": self.parser, "subsets": list(self.chosen.subsets)}


SUITE = Mme
