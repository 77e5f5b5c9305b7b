"""Tallies: integer sufficient statistics by item, and the sums that every metric is a ratio of."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Totals = Mapping[str, Any]
"""Field -> total: an integer, or an array of totals over resamples."""

Statistic = Callable[[Totals], Any]
"""A metric as a function of totals; must work on arrays of totals element by element."""


@dataclass(frozen=True)
class TallyTable:
    """Tallies of many items.

    Attributes:
        ids: the items, distinct, in order.
        fields: names of the tallies.
        counts: int64 [items, fields].
    """

    ids: tuple[Any, ...]
    fields: tuple[str, ...]
    counts: np.ndarray

    def __post_init__(self) -> None:
        if self.counts.shape != (len(self.ids), len(self.fields)):
            raise ValueError(
                f"tally counts have shape {self.counts.shape}, need "
                f"{(len(self.ids), len(self.fields))}"
            )
        if len(set(self.ids)) < len(self.ids):
            raise ValueError("tally items must be distinct; an item occurs twice")

    def totals(self) -> dict[str, int]:
        """Sums over all items."""
        return dict(zip(self.fields, self.counts.sum(0).tolist()))

    def take(self, ids: Sequence[Any]) -> "TallyTable":
        """Returns the rows of some items, in the order asked for.

        Raises:
            ValueError: an item is not there.
        """
        place = {item: row for row, item in enumerate(self.ids)}
        missing = [item for item in ids if item not in place]
        if missing:
            raise ValueError(
                f"tallies lack {len(missing)} items asked for, the first is {missing[0]!r}"
            )
        return TallyTable(tuple(ids), self.fields, self.counts[[place[item] for item in ids]])


def tabulate(tallies: Iterable[tuple[Any, Mapping[str, int]]]) -> TallyTable:
    """Stacks (item, tally) pairs into a table; a field absent from a tally counts 0."""
    rows = list(tallies)
    fields = tuple(dict.fromkeys(name for _, tally in rows for name in tally))
    counts = np.array(
        [[tally.get(name, 0) for name in fields] for _, tally in rows], dtype=np.int64
    ).reshape(len(rows), len(fields))
    return TallyTable(tuple(item for item, _ in rows), fields, counts)


def tabulate_sums(tallies: Iterable[tuple[Any, Mapping[str, int]]]) -> TallyTable:
    """Stacks (item, tally) pairs into a table, adding up the tallies of an item that recurs."""
    sums: dict[Any, dict[str, int]] = {}
    for item, tally in tallies:
        total = sums.setdefault(item, {})
        for name, count in tally.items():
            total[name] = total.get(name, 0) + count
    return tabulate(sums.items())


def ratio(numerator: Any, denominator: Any) -> Any:
    """`numerator / denominator`, 0 where the denominator is 0, on numbers and arrays alike."""
    top, bottom = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    value = np.divide(top, bottom, out=np.zeros(np.broadcast(top, bottom).shape), where=bottom != 0)
    return value if value.ndim else float(value)


def f1(precision: Any, recall: Any) -> Any:
    """The harmonic mean of precision and recall, 0 where both are 0."""
    return ratio(2 * np.multiply(precision, recall), np.add(precision, recall))
