"""AMBER: captions and yes/no questions on existence, attributes and relations (Wang et al., 2023).

Questions are scored exactly as officially: the positive class is "no". Of captions, only exact
matches of words count ("AMBER-exact"): the official script also takes words that are near in the
vectors of a language model, which are not at hand, so its numbers are not these. Captions need
`relation.json` and `safe_words.txt` among the files of truth beside `annotations.json`; the
`query_*.json` files give the prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vlm_jax.errors import AnswersError
from vlm_jax.evals.base import Example, Judged, Metric, row_id
from vlm_jax.evals.chair import ends
from vlm_jax.evals.questions import QuestionSuite, need
from vlm_jax.evals.records import Record, read_rows, read_text
from vlm_jax.evals.tallies import Totals, ratio
from vlm_jax.evals.words import singularize, tokenize
from vlm_jax.evals.yes_no import verdict

_DIMENSIONS = {
    "discriminative-attribute-state": ("attribute", "state"),
    "discriminative-attribute-number": ("attribute", "number"),
    "discriminative-attribute-action": ("attribute", "action"),
    "discriminative-hallucination": ("existence",),
}
_CAPTION = "Describe this image."


class Amber(QuestionSuite):
    """1,004 captions and 14,216 questions; a file without relations leaves the captions out."""

    name = "amber"
    parsers = ("vlmevalkit", "exact", "reasoning")
    harness_names: ClassVar[Mapping[str, str]] = {"lmms_eval": "amber_g", "vlmevalkit": "AMBER"}

    @classmethod
    def recognises(cls, row: Record) -> bool:
        """An annotation of either kind."""
        kind = row.fields.get("type")
        return isinstance(kind, str) and kind.startswith(("generative", "discriminative"))

    def __init__(self, chosen: Any) -> None:
        self.relations: dict[str, list[str]] = {}
        self.safe: frozenset[str] = frozenset()
        self._asked: dict[Any, tuple[str, str]] = {}
        annotations = []
        for path in chosen.truth:
            if Path(path).suffix == ".txt":
                self.safe = frozenset(read_text(path).split())
            elif not self._take_other(path):
                annotations.append(path)
        self.words = {*self.relations, *(word for own in self.relations.values() for word in own)}
        if not annotations:
            raise AnswersError(f"{', '.join(chosen.truth)}: AMBER needs its annotations.json.")
        super().__init__(replace(chosen, truth=tuple(annotations)))

    def _take_other(self, path: str) -> bool:
        """Whether a file holds relations or queries, which are taken."""
        first = next(iter(read_rows(path)))
        if "query" in first.fields:
            for row in read_rows(path):
                asked = str(need(row, "image")), str(row.fields["query"])
                self._asked[row_id(row)] = asked
            return True
        if all(isinstance(own, list) for own in first.fields.values()):
            self.relations = {
                word: [str(one) for one in own]
                for row in read_rows(path)
                for word, own in row.fields.items()
            }
            return True
        return False

    def example(self, row: Record) -> Example | None:
        """A caption or a question."""
        key, kind, truth = row_id(row), str(need(row, "type")), need(row, "truth")
        image, query = self._asked.get(key, (f"AMBER_{key}.jpg", ""))
        if kind == "generative":
            if not self.relations:
                return None
            targets = row.fields.get("hallu") or []
            if not isinstance(truth, list) or not isinstance(targets, list):
                raise row.error("truth and hallu must be lists of words")
            meta = {"kind": kind, "image": image, "truth": truth, "hallu": targets}
            return Example(key, (), query or _CAPTION, meta)
        if truth not in ("yes", "no"):
            raise row.error(f"truth must be 'yes' or 'no', found {truth!r}")
        parts = _DIMENSIONS.get(kind, ("relation",))
        meta = {"kind": kind, "image": image, "label": truth, "parts": list(parts)}
        return Example(key, (), query, meta | {"question": query})

    def missing_note(self, count: int) -> str | None:
        """One of the two tasks is often asked alone."""
        return f"{count} queries have no answer and were left out"

    def document(self, example: Example) -> dict[str, Any]:
        """A query, with the words of a caption's image or the label of a question."""
        meta = example.meta
        truth = meta["truth"] if meta["kind"] == "generative" else meta["label"]
        found = {"id": example.id, "image_id": meta["image"], "question": example.prompt}
        return {**found, "type": meta["kind"], "answer": truth}

    def item(self, example: Example) -> Any:
        """The image, where queries name it."""
        return example.meta["image"]

    def judge(self, example: Example, answer: str) -> Judged:
        """The words of a caption, or the verdict on a question."""
        if example.meta["kind"] == "generative":
            return self._judge_caption(example, answer)
        said, details = verdict(answer, self.parser)
        label = example.meta["label"]
        counts = {}
        for part in ("all", *example.meta["parts"]):
            counts |= {
                f"questions/{part}": 1,
                f"correct/{part}": int(said == label),
                f"truth_no/{part}": int(label == "no"),
                f"said_no/{part}": int(said == "no"),
                f"true_no/{part}": int(said == label == "no"),
            }
        counts |= {"unparsable": int(details["unparsable"])}
        counts |= {"truncated": int(details["truncated"])}
        return Judged(example, counts, {**details, "label": label, "correct": said == label})

    def _judge_caption(self, example: Example, answer: str) -> Judged:
        truth, targets = example.meta["truth"], example.meta["hallu"]
        nouns = []
        for token in tokenize(answer):
            word = token.text if token.text in self.words else singularize(token.text)
            if word in self.words:
                nouns.append((word, token))
        covered, hit, wrong, right = set(), set(), [], []
        for word, token in nouns:
            place = {"word": answer[token.start : token.end], "object": word}
            place |= {"start": token.start, "end": token.end}
            known = self._place(word, truth)
            if word in self.safe:
                continue
            if known is not None:
                covered.add(known)
                right.append(place)
                continue
            target = self._place(word, targets)
            if target is not None:
                hit.add(target)
            wrong.append(place)
        counts = {
            "responses": 1,
            "hallucinating": int(bool(wrong)),
            "nouns": len(nouns),
            "hallucinated_nouns": len(wrong),
            "truth": len(truth),
            "covered": len(covered),
            "targets": len(targets),
            "hit_targets": len(hit),
            "unparsable": int(not nouns),
            "truncated": int(not ends(answer)),
        }
        return Judged(example, counts, {"hallucinated": wrong, "grounded": right})

    def _place(self, word: str, listed: Sequence[str]) -> int | None:
        """Which of some words a word stands for: one that goes with it, else itself."""
        for place, one in enumerate(listed):
            if word in self.relations.get(one, ()):
                return place
        return listed.index(word) if word in listed else None

    def metrics(self, totals: Totals) -> Mapping[str, Metric]:
        """CHAIR, Cover, Hal, Cog of captions; accuracy, precision, recall, F1 of questions."""
        share = lambda top, bottom: lambda t: ratio(t.get(top, 0), t.get(bottom, 0))
        found: dict[str, Metric] = {}
        captions, questions = "responses" in totals, "questions/all" in totals
        if captions and questions:
            found["AMBER_exact"] = Metric(
                lambda t: 0.5 * (1 - share("hallucinated_nouns", "nouns")(t) + _f1(t, "all")),
                primary=True,
            )
        if captions:
            found |= {
                "CHAIR_exact": Metric(share("hallucinated_nouns", "nouns"), "low", primary=True),
                "Cover_exact": Metric(share("covered", "truth")),
                "Hal_exact": Metric(share("hallucinating", "responses"), "low"),
                "Cog_exact": Metric(share("hit_targets", "targets"), "low"),
            }
        asked = lambda t: np.add(t.get("responses", 0), t.get("questions/all", 0))
        rates = {
            name: Metric(lambda t, name=name: ratio(t[name], asked(t)), "low")
            for name in ("unparsable", "truncated")
        }
        rates = {f"{name}_rate": metric for name, metric in rates.items()}
        if not questions:
            return found | rates
        parts = [name.partition("/")[2] for name in totals if name.startswith("questions/")]
        for part in parts:
            end = "" if part == "all" else f"/{part}"
            shown = part == "all"
            found |= {
                f"accuracy{end}": Metric(
                    share(f"correct/{part}", f"questions/{part}"), shown=shown
                ),
                f"precision{end}": Metric(share(f"true_no/{part}", f"said_no/{part}"), shown=shown),
                f"recall{end}": Metric(share(f"true_no/{part}", f"truth_no/{part}"), shown=shown),
                f"F1{end}": Metric(
                    lambda t, part=part: _f1(t, part), primary=shown and not captions
                ),
            }
        return found | rates

    def rules(self) -> dict[str, Any]:
        """The parser and whether captions are scored."""
        return {"parser": self.parser, "captions": "exact" if self.relations else "none"}


def _f1(totals: Totals, part: str) -> Any:
    """F1 as the official script forms it, of precision and recall rounded to 0.1 %."""
    hit = totals[f"true_no/{part}"]
    precision = np.round(ratio(hit, totals[f"said_no/{part}"]), 3)
    recall = np.round(ratio(hit, totals[f"truth_no/{part}"]), 3)
    added = 0.001 if part == "existence" else 0.0001
    found = 2 * precision * recall / (precision + recall + added)
    return found if np.ndim(found) else float(found)


SUITE = Amber
