"""Items of a benchmark: tables of their tallies, and `items.jsonl`, what each answer says."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from vlm_jax.evals.base import Judged, Suite
from vlm_jax.evals.tallies import TallyTable, tabulate
from vlm_jax.files import replace_file


def tabulate_items(
    suite: Suite, judged: Iterable[Judged], asked: Mapping[Any, int] | None = None
) -> TallyTable:
    """A row of tallies an item: what is asked about one image is resampled together.

    Args:
        suite: says which answers make an item, and tallies it.
        judged: answers.
        asked: item -> how many answers it wants; items of a suite with `whole_items` that have
            fewer are left out.
    """
    groups: dict[Any, list[Judged]] = {}
    for one in judged:
        groups.setdefault(suite.item(one.example), []).append(one)
    if suite.whole_items and asked is not None:
        groups = {item: own for item, own in groups.items() if len(own) == asked[item]}
    return tabulate((item, suite.tally(own)) for item, own in groups.items())


def asked_of(suite: Suite) -> Counter:
    """Item -> how many examples it has."""
    return Counter(suite.item(example) for example in suite.examples())


def item_row(suite: Suite, judged: Judged, answer: str) -> dict[str, Any]:
    """The line of `items.jsonl` of an answer."""
    example = judged.example
    return {
        "id": example.id,
        "item": suite.item(example),
        "answer": answer,
        **judged.details,
        "counts": dict(judged.counts),
    }


def write_items(
    path: str | Path,
    suite: Suite,
    judged: Mapping[Any, Judged],
    answers: Mapping[Any, str],
    without: Collection[Any] = (),
) -> Path:
    """Writes `items.jsonl`, a line an answer: id, item, text, verdicts or words, counts.

    Args:
        path: of the file.
        suite: the benchmark.
        judged: id -> what the answer says.
        answers: id -> its text.
        without: ids that are left out.
    """
    rows = (item_row(suite, one, answers[key]) for key, one in judged.items() if key not in without)
    replace_file(path, "".join(json.dumps(row) + "\n" for row in rows))
    return Path(path)
