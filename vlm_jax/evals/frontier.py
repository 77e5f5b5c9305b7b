"""The say-less frontier: what a method gains beyond making captions shorter.

A plain bias on the logits that end or stretch a caption trades hallucination against recall for
free. The sweep over that bias is a curve of (recall, C_S, length); a method is judged by its gap
to the curve at equal recall. Negative gaps are better than saying less.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlm_jax.evals import chair
from vlm_jax.evals.statistics import (
    DRAWS,
    LEVEL,
    Interval,
    percentile_interval,
    resampled_totals,
)
from vlm_jax.evals.tallies import Statistic, TallyTable

OUT_OF_RANGE = "out of range"


@dataclass(frozen=True)
class Gap:
    """An arm's distance from the frontier at its own recall.

    Attributes:
        gap: metric of the arm minus that of the frontier; None where the arm's recall is outside
            the curve.
        length: the same for caption length, None likewise.
        recall: the arm's recall.
        span: least and greatest recall of the curve.
        outside: share of resamples in which the arm fell outside the resampled curve. They are
            left out of the intervals, so intervals are wide of the mark where this is not small.
    """

    gap: Interval | None
    length: Interval | None
    recall: float
    span: tuple[float, float]
    outside: float

    def __str__(self) -> str:
        if self.gap is None:
            return OUT_OF_RANGE
        return (
            f"{100 * self.gap.value:+.1f} [{100 * self.gap.low:+.1f}, {100 * self.gap.high:+.1f}]"
        )


@dataclass(frozen=True)
class FrontierPoint:
    """One bias of the sweep and what it gives, pooled over sets."""

    bias: float
    recall: float
    metric: float
    length: float


@dataclass(frozen=True)
class Frontier:
    """A frontier over one or several sets of images.

    Attributes:
        biases: of the sweep, in the order of the tables.
        tables: per bias, the sets' tallies one after another.
        sets: the name of the set of every item; resampling stays within sets.
        metric: what is to be low.
        recall: what the curve is read at.
        length: reported beside the gap.
    """

    biases: tuple[float, ...]
    tables: tuple[TallyTable, ...]
    sets: tuple[str, ...]
    metric: Statistic = chair.METRICS["C_S"].of
    recall: Statistic = chair.METRICS["recall"].of
    length: Statistic = chair.METRICS["length"].of

    def points(self) -> tuple[FrontierPoint, ...]:
        """The curve, by rising recall."""
        points = [
            FrontierPoint(bias, self.recall(t), self.metric(t), self.length(t))
            for bias, t in zip(self.biases, (table.totals() for table in self.tables))
        ]
        return tuple(sorted(points, key=lambda point: (point.recall, point.metric)))

    def gap(
        self,
        arm: TallyTable | Mapping[str, TallyTable],
        *,
        draws: int = DRAWS,
        seed: int = 0,
        level: float = LEVEL,
    ) -> Gap:
        """An arm's gap, with intervals over resamples of the images of arm and frontier together.

        Args:
            arm: tallies over the frontier's images; by set where the frontier has several.
            draws: number of resamples.
            seed: of the resampling.
            level: of the intervals.

        Raises:
            ValueError: the arm's sets or images are not the frontier's.
        """
        pooled, _ = pool_sets(arm)
        table = pooled.take(self.tables[0].ids)
        if len(pooled.ids) != len(table.ids):
            raise ValueError(
                f"the arm covers {len(pooled.ids)} images, the frontier {len(table.ids)}; both "
                "must cover the same ones"
            )
        points = self.points()
        totals = table.totals()
        at = float(self.recall(totals))
        curve = np.array([(p.recall, p.metric, p.length) for p in points]).T
        span = (points[0].recall, points[-1].recall)
        strata = np.unique(self.sets, return_inverse=True)[1]
        ours, *sweep = resampled_totals(
            [table, *self.tables], draws=draws, seed=seed, strata=strata.tolist()
        )
        metric_gaps, length_gaps = self._sampled_gaps(ours, sweep)
        inside = ~np.isnan(metric_gaps)
        outside = float(1 - inside.mean())
        if not span[0] <= at <= span[1]:
            return Gap(None, None, at, span, outside)
        gap = float(self.metric(totals)) - read_curve(curve[0], curve[1], at)
        shorter = float(self.length(totals)) - read_curve(curve[0], curve[2], at)
        return Gap(
            percentile_interval(gap, metric_gaps[inside], level),
            percentile_interval(shorter, length_gaps[inside], level),
            at,
            span,
            outside,
        )

    def _sampled_gaps(self, ours, sweep) -> tuple[np.ndarray, np.ndarray]:
        """Gaps of metric and length by resample, NaN where the arm is outside the curve."""
        recalls = np.stack([self.recall(totals) for totals in sweep], axis=1)
        metrics = np.stack([self.metric(totals) for totals in sweep], axis=1)
        lengths = np.stack([self.length(totals) for totals in sweep], axis=1)
        order = np.lexsort((metrics, recalls), axis=1)
        recalls, metrics, lengths = (
            np.take_along_axis(values, order, axis=1) for values in (recalls, metrics, lengths)
        )
        at, metric, length = self.recall(ours), self.metric(ours), self.length(ours)
        free = [
            (read_curve(r, m, x), read_curve(r, n, x))
            for r, m, n, x in zip(recalls, metrics, lengths, at)
        ]
        free_metric, free_length = np.array(free).T
        return metric - free_metric, length - free_length


def frontier(
    sweep: Mapping[float, TallyTable | Mapping[str, TallyTable]],
    *,
    metric: Statistic = chair.METRICS["C_S"].of,
    recall: Statistic = chair.METRICS["recall"].of,
    length: Statistic = chair.METRICS["length"].of,
) -> Frontier:
    """Builds the frontier of a sweep: bias -> tallies, or bias -> set name -> tallies.

    Raises:
        ValueError: fewer than two biases, or biases that cover different images.
    """
    if len(sweep) < 2:
        raise ValueError(f"a frontier needs at least 2 biases, found {len(sweep)}")
    pooled = {bias: pool_sets(tables) for bias, tables in sweep.items()}
    first, sets = next(iter(pooled.values()))
    tables = []
    for bias, (table, _) in pooled.items():
        if set(table.ids) != set(first.ids):
            raise ValueError(
                f"bias {bias} covers other images than the first bias; run it on the same ones"
            )
        tables.append(table.take(first.ids))
    return Frontier(tuple(sweep), tuple(tables), sets, metric, recall, length)


def read_curve(recalls: Sequence[float] | np.ndarray, values, at: float) -> float:
    """Reads a piecewise linear curve at a recall; NaN outside it, never clamped.

    Args:
        recalls: rising [points]; of points with one recall, the first is what the curve gives.
        values: [points].
        at: where to read.
    """
    recalls = np.asarray(recalls, np.float64)
    if not recalls[0] <= at <= recalls[-1]:
        return float("nan")
    place = int(np.searchsorted(recalls, at, side="left"))
    if recalls[place] == at:
        return float(values[place])
    share = (at - recalls[place - 1]) / (recalls[place] - recalls[place - 1])
    return float(values[place - 1] + share * (values[place] - values[place - 1]))


def pool_sets(tables: TallyTable | Mapping[str, TallyTable]) -> tuple[TallyTable, tuple[str, ...]]:
    """Returns one table over all sets, and the set of each of its rows.

    {"a": items 1 and 2, "b": item 1} becomes the rows ("a", 1), ("a", 2), ("b", 1), and
    ("a", "a", "b"). A lone table is the set "".

    Raises:
        ValueError: there is no set, or two count different fields.
    """
    by_set = {"": tables} if isinstance(tables, TallyTable) else dict(tables)
    if not by_set:
        raise ValueError("an arm needs the tallies of at least one set")
    fields = next(iter(by_set.values())).fields
    for name, table in by_set.items():
        if set(table.fields) != set(fields):
            raise ValueError(f"set {name!r} was tallied with other fields than the first set")
    ids = tuple((name, item) for name, table in by_set.items() for item in table.ids)
    counts = np.concatenate(
        [table.counts[:, [table.fields.index(f) for f in fields]] for table in by_set.values()]
    )
    return TallyTable(ids, fields, counts), tuple(name for name, _ in ids)
