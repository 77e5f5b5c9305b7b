"""POPE: yes/no questions about objects, scored under every parser in common use (Li et al., 2023).

The parser changes accuracy more than most methods do, so it is part of the protocol and is named
in every result; the rate of answers that say neither yes nor no is reported whichever parser is
chosen.
"""

import re
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from vlm_jax.evals.base import Metric
from vlm_jax.evals.final_answer import final, yes_no
from vlm_jax.evals.tallies import Statistic, Totals, f1, ratio

Verdict = Literal["yes", "no", "unknown"]

COUNTS = (
    "questions",
    "correct",
    "labelled_yes",
    "true_positives",
    "false_positives",
    "true_negatives",
    "false_negatives",
    "unparsable",
    "truncated",
)


def _rucaibox(text: str, label: str) -> Verdict:
    """RUCAIBox and LLaVA: "No", "not" or "no" among the first sentence's words, else yes."""
    words = text.split(".", 1)[0].replace(",", "").split(" ")
    return "no" if not {"No", "not", "no"}.isdisjoint(words) else "yes"


def _vcd(text: str, label: str) -> Verdict:
    """VCD and AGLA: right if the label occurs anywhere in the answer, else the opposite."""
    if label in text.lower().strip():
        return "yes" if label == "yes" else "no"
    return "no" if label == "yes" else "yes"


def _lmms(text: str, label: str) -> Verdict:
    """lmms-eval's POPE task: the whole answer must be yes or no."""
    answer = text.lower().strip()
    return "yes" if answer == "yes" else "no" if answer == "no" else "unknown"


def _lmms_mme(text: str, label: str) -> Verdict:
    """lmms-eval's MME rule: yes or no within the first four characters, or a lone y or n."""
    answer = text.lower().strip().replace(".", "")
    if answer in ("y", "n"):
        return "yes" if answer == "y" else "no"
    start = answer[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "unknown"


_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_LONE_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS_REMOVED = 32


def _vlmevalkit(text: str, label: str) -> Verdict:
    """VLMEvalKit: exactly one of yes and no among the words, after its punctuation clean-up.

    A mark touching a blank anywhere is deleted everywhere, otherwise it becomes a blank; only 32
    full stops go, because the reference passes a flag where a count belongs.
    """
    lowered = text.lower()
    cleaned = lowered
    delete_all = _DIGIT_COMMA.search(lowered) is not None
    for mark in _PUNCTUATION:
        delete = delete_all or f"{mark} " in lowered or f" {mark}" in lowered
        cleaned = cleaned.replace(mark, "" if delete else " ")
    words = _LONE_PERIOD.sub("", cleaned, count=_PERIODS_REMOVED).split()
    if ("yes" in words) == ("no" in words):
        return "unknown"
    return "yes" if "yes" in words else "no"


def _reasoning(text: str, label: str) -> Verdict:
    """What is said after thinking; nothing is, where a thought has no end."""
    found = final(text)
    said = yes_no(found.segment)
    if found.truncated or said not in ("yes", "no"):
        return "unknown"
    return "yes" if said == "yes" else "no"


PARSERS: dict[str, Callable[[str, str], Verdict]] = {
    "rucaibox": _rucaibox,
    "llava": _rucaibox,
    "vcd": _vcd,
    "lmms": _lmms,
    "lmms_mme": _lmms_mme,
    "vlmevalkit": _vlmevalkit,
    "reasoning": _reasoning,
}


def parse_answer(text: str, label: str, parser: str = "rucaibox") -> Verdict:
    """Reads a verdict out of an answer under a named parser; `label` matters to "vcd" alone.

    Raises:
        ValueError: the parser is not one of `PARSERS`, or the label is neither "yes" nor "no".
    """
    if parser not in PARSERS:
        raise ValueError(f"POPE parser {parser!r} is unknown; choose one of {', '.join(PARSERS)}")
    if label not in ("yes", "no"):
        raise ValueError(f"POPE label must be 'yes' or 'no', found {label!r}")
    return PARSERS[parser](text, label)


def tally(text: str, label: str, parser: str = "rucaibox") -> dict[str, int]:
    """The integers of one answer; see `COUNTS`.

    A verdict "unknown" is none of the four outcomes. `unparsable` counts answers with neither or
    both of yes and no as words (VLMEvalKit's rule), under every parser; `truncated` those that
    ended at the limit of tokens, or within a thought.
    """
    verdict = parse_answer(text, label, parser)
    return {
        "questions": 1,
        "correct": int(verdict == label),
        "labelled_yes": int(label == "yes"),
        "true_positives": int(verdict == "yes" and label == "yes"),
        "false_positives": int(verdict == "yes" and label == "no"),
        "true_negatives": int(verdict == "no" and label == "no"),
        "false_negatives": int(verdict == "no" and label == "yes"),
        "unparsable": int(_vlmevalkit(text, label) == "unknown"),
        "truncated": int(final(text).truncated),
    }


def metrics(parser: str = "rucaibox", splits: Sequence[str] = ()) -> dict[str, Metric]:
    """The metrics of a parser, all fractions; positive means yes.

    Unknown verdicts are wrong in accuracy everywhere. They cost recall except under "lmms", which
    counts only "no" as a miss and whose yes ratio is that of the labels; `predicted_yes` is always
    the model's.

    Args:
        parser: a key of `PARSERS`.
        splits: where there are several, a metric is the mean over them, and each has its own
            ("F1/random"), of the fields that end in its name.
    """
    found = {
        "accuracy": Metric(lambda t: ratio(t["correct"], t["questions"]), outcome="correct"),
        "precision": Metric(_precision),
        "recall": Metric(lambda t: _recall(t, parser)),
        "F1": Metric(lambda t: f1(_precision(t), _recall(t, parser)), primary=True),
        "yes_ratio": Metric(lambda t: _yes_ratio(t, parser), ""),
        "predicted_yes": Metric(lambda t: _yes_ratio(t, ""), "", shown=False),
        "unparsable_rate": Metric(lambda t: ratio(t["unparsable"], t["questions"]), "low"),
        "truncated_rate": Metric(lambda t: ratio(t["truncated"], t["questions"]), "low"),
    }
    if len(splits) < 2:
        return found
    means, each = {}, {}
    for name, metric in found.items():
        of = {split: _of_split(metric.of, split) for split in splits}
        mean = lambda t, of=of: np.mean([one(t) for one in of.values()], 0)
        means[name] = Metric(
            lambda t, mean=mean: value if (value := mean(t)).ndim else float(value),
            metric.better,
            primary=metric.primary,
            shown=metric.shown,
        )
        shown = name == "F1"
        each |= {
            f"{name}/{split}": Metric(of[split], metric.better, shown=shown) for split in splits
        }
    return means | each


def _precision(totals: Totals):
    return ratio(totals["true_positives"], totals["true_positives"] + totals["false_positives"])


def _recall(totals: Totals, parser: str):
    wanted = totals["labelled_yes"]
    if parser == "lmms":
        wanted = totals["true_positives"] + totals["false_negatives"]
    return ratio(totals["true_positives"], wanted)


def _yes_ratio(totals: Totals, parser: str):
    if parser == "lmms":
        return ratio(totals["labelled_yes"], totals["questions"])
    return ratio(totals["true_positives"] + totals["false_positives"], totals["questions"])


def _of_split(of: Statistic, split: str) -> Statistic:
    """A statistic of the fields that end in "/<split>"."""
    return lambda totals: of({name: totals[f"{name}/{split}"] for name in COUNTS})


def report(totals: Totals, parser: str = "rucaibox") -> dict[str, float]:
    """The metrics of some totals; every ratio over nothing is 0."""
    return {name: metric.of(totals) for name, metric in metrics(parser).items()}
