"""What a benchmark is: examples to answer, a tally of each answer, a report of the totals."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from vlm_jax.evals.tallies import Statistic, Totals


@dataclass(frozen=True)
class Example:
    """One thing to ask a model.

    Attributes:
        id: distinct within the benchmark; the key of its answer.
        images: paths or PIL images, in the order the prompt refers to them.
        prompt: the user's turn, before any chat template.
        meta: what scoring or writing the answer needs besides, for example the label of a question.
    """

    id: int | str
    images: tuple[Any, ...]
    prompt: str
    meta: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Benchmark(Protocol):
    """Examples in a pinned order, integer tallies that add up, metrics of the totals."""

    name: str
    units: Mapping[str, str]

    def examples(self) -> Iterator[Example]:
        """The examples, in the same order every time."""
        ...

    def tally(self, example: Example, answer: str) -> dict[str, int]:
        """Sufficient statistics of one answer: integers, summed over examples in any order."""
        ...

    def metrics(self, totals: Totals) -> Mapping[str, Statistic]:
        """The metrics that these totals allow, as functions of totals (resampled totals too)."""
        ...

    def report(self, totals: Totals) -> dict[str, float]:
        """The metrics' values."""
        ...

    def answer_row(self, example: Example, answer: str) -> dict[str, Any]:
        """The line of `answers.jsonl` for an answer, in the form that `score` reads back."""
        ...

    def protocol(self) -> dict[str, Any]:
        """What must be equal for two results to be comparable; JSON values."""
        ...
