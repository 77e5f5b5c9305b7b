"""Arms beside one another on the same items: changes, random draws, matched controls, the frontier.

An arm is one setting of a model. A random control is one arm of several draws: its metrics are
means over draws, its spread is their range, and the edit it stands for is ranked among them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vlm_jax.evals.base import Metric, primary_metric
from vlm_jax.evals.frontier import OUT_OF_RANGE, Frontier, FrontierPoint, Gap, frontier, pool_sets
from vlm_jax.evals.results import interval_fields
from vlm_jax.evals.statistics import (
    DRAWS,
    LEVEL,
    Interval,
    RankTest,
    percentile_interval,
    rank_test,
    resampled_totals,
)
from vlm_jax.evals.tallies import Statistic, TallyTable

ByBenchmark = Mapping[str, Sequence[TallyTable]]
"""Benchmark -> a table a draw (one where nothing is random)."""

Metrics = Mapping[str, Metric]

_ROUNDING = 1e-12


@dataclass(frozen=True)
class ArmResult:
    """What one arm did.

    Attributes:
        name: of the arm.
        draws: how many draws its values are means of.
        levels: benchmark -> metric -> mean over draws, with its interval.
        changes: benchmark -> metric -> paired difference from the baseline; none for itself.
        spread: benchmark -> metric -> least and greatest of the draws, where there are several.
        gaps: distance from the say-less frontier, one a draw; empty without a frontier.
        pooled: metric -> one value a draw, over the benchmarks that the frontier pools.
    """

    name: str
    draws: int
    levels: Mapping[str, Mapping[str, Interval]]
    changes: Mapping[str, Mapping[str, Interval]]
    spread: Mapping[str, Mapping[str, tuple[float, float]]]
    gaps: tuple[Gap, ...] = ()
    pooled: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def mean_gap(self) -> float | None:
        """Mean gap over draws; None where a draw is out of the frontier's range."""
        values = [gap.gap.value for gap in self.gaps if gap.gap is not None]
        return float(np.mean(values)) if values and len(values) == len(self.gaps) else None


@dataclass(frozen=True)
class Contrast:
    """An edit beside one of its controls.

    Attributes:
        edit, control: names of the arms.
        draws: of the control.
        differences: benchmark -> metric -> paired difference, edit minus mean of the draws.
        ranks: benchmark -> rank of the edit's primary metric among the draws; random controls only.
        gap_rank: the same of the gap to the frontier, None where a gap is out of range.
    """

    edit: str
    control: str
    draws: int
    differences: Mapping[str, Mapping[str, Interval]]
    ranks: Mapping[str, RankTest] = field(default_factory=dict)
    gap_rank: RankTest | None = None


@dataclass(frozen=True)
class Comparison:
    """All arms of one evaluation.

    Attributes:
        items: benchmark -> number of items.
        metrics: benchmark -> metric -> what it is.
        arms: the baseline first.
        contrasts: edits beside their controls.
        points: the say-less frontier by rising recall, empty without one.
        pooled: the benchmarks that the frontier pools.
        level: of all intervals.
    """

    items: Mapping[str, int]
    metrics: Mapping[str, Metrics]
    arms: tuple[ArmResult, ...]
    contrasts: tuple[Contrast, ...] = ()
    points: tuple[FrontierPoint, ...] = ()
    pooled: tuple[str, ...] = ()
    level: float = LEVEL

    @property
    def baseline(self) -> ArmResult:
        """The arm that changes are differences from."""
        return self.arms[0]

    def primary(self, benchmark: str) -> str:
        """The metric that a benchmark is judged by."""
        return primary_metric(self.metrics[benchmark])

    def plain(self, benchmark: str, metric: str) -> bool:
        """Whether a metric's values are shown as they are, not in percent."""
        return self.metrics[benchmark][metric].plain

    def unit(self, benchmark: str, metric: str) -> str:
        """What changes of a metric are counted in."""
        found = self.metrics[benchmark][metric]
        return found.unit if found.plain else "points"

    def named(self, benchmark: str, metric: str) -> str:
        """A metric with its unit, if that is not percent."""
        return (
            f"{metric} ({self.unit(benchmark, metric)})"
            if self.plain(benchmark, metric)
            else metric
        )

    def document(self) -> dict[str, Any]:
        """What `results.json` holds beside the arms' own metrics."""
        kept = ("better", "unit", "primary", "shown")
        return {
            "items": dict(self.items),
            "level": self.level,
            "metrics": {
                benchmark: {
                    name: {key: getattr(metric, key) for key in kept}
                    for name, metric in metrics.items()
                }
                for benchmark, metrics in self.metrics.items()
            },
            "frontier": {
                "benchmarks": list(self.pooled),
                "points": [vars(point) for point in self.points],
            }
            if self.points
            else None,
            "arms": {arm.name: _arm_document(arm) for arm in self.arms},
            "controls": [_contrast_document(contrast) for contrast in self.contrasts],
        }


def mean_bootstrap(
    statistics: Mapping[str, Statistic],
    ours: Sequence[TallyTable],
    theirs: Sequence[TallyTable] = (),
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = LEVEL,
    strata: Sequence[int] | None = None,
) -> dict[str, Interval]:
    """Metrics meant over tables, minus those of other tables if any, over common resamples.

    Args:
        statistics: metric -> statistic.
        ours: tables over the same items, such as the draws of a random control.
        theirs: tables to take the difference from.
        draws, seed, level, strata: see `resampled_totals` and `percentile_interval`.
    """
    tables = [*ours, *theirs]
    resampled = resampled_totals(tables, draws=draws, seed=seed, strata=strata)
    weights = np.repeat([1 / len(ours), -1 / max(len(theirs), 1)], [len(ours), len(theirs)])
    totals = [table.totals() for table in tables]
    intervals = {}
    for name, statistic in statistics.items():
        value = _snapped(weights @ [statistic(total) for total in totals])
        samples = _snapped(weights @ np.stack([statistic(drawn) for drawn in resampled]))
        intervals[name] = percentile_interval(float(value), samples, level)
    return intervals


def _snapped(values: Any) -> np.ndarray:
    """Values with the rounding errors of means of equal numbers set to 0."""
    return np.where(np.abs(values) < _ROUNDING, 0.0, values)


def compare(
    tables: Mapping[str, ByBenchmark],
    metrics: Mapping[str, Metrics],
    *,
    sweep: Mapping[float, Mapping[str, TallyTable]] | None = None,
    controls: Sequence[tuple[str, str, bool]] = (),
    draws: int = DRAWS,
    seed: int = 0,
    level: float = LEVEL,
) -> Comparison:
    """Compares arms on their benchmarks.

    Args:
        tables: arm -> benchmark -> tables; the first arm is the baseline.
        metrics: benchmark -> metric -> what it is.
        sweep: bias -> benchmark -> tallies of the unedited model under that bias, bias 0 among
            them; makes the say-less frontier.
        controls: (edit, control, whether the control is random), by arm name.
        draws, seed, level: of the bootstrap.
    """
    options: dict[str, Any] = {"draws": draws, "seed": seed, "level": level}
    base = next(iter(tables.values()))
    curve = None if not sweep else make_frontier(sweep)
    pooled = () if not sweep else tuple(next(iter(sweep.values())))
    results = {}
    for name, by_benchmark in tables.items():
        aligned = {b: [t.take(base[b][0].ids) for t in own] for b, own in by_benchmark.items()}
        against = None if by_benchmark is base else base
        result = _arm_result(name, aligned, against, metrics, options)
        if curve is not None:
            result = replace(
                result,
                gaps=frontier_gaps(curve, aligned, pooled, **options),
                pooled=pooled_values(curve, aligned, pooled),
            )
        results[name] = result
    contrasts = [
        _contrast(edit, control, is_random, tables, metrics, results, options)
        for edit, control, is_random in controls
    ]
    return Comparison(
        items={name: len(own[0].ids) for name, own in base.items()},
        metrics=metrics,
        arms=tuple(results.values()),
        contrasts=tuple(contrasts),
        points=curve.points() if curve is not None else (),
        pooled=pooled,
        level=level,
    )


def make_frontier(sweep: Mapping[float, Mapping[str, TallyTable]]) -> Frontier:
    """The frontier of a sweep over biases, its benchmarks pooled on the tallies they share."""
    return frontier({bias: shared_fields(tables) for bias, tables in sweep.items()})


def shared_fields(tables: Mapping[str, TallyTable]) -> dict[str, TallyTable]:
    """Returns the tables with only the fields that all of them count, in the first one's order.

    CHAIR counts captions, mentions and words, CHAIR by label mentions of each label too: pooled
    they have captions, mentions and words.
    """
    first = next(iter(tables.values()))
    fields = [name for name in first.fields if all(name in t.fields for t in tables.values())]
    return {
        name: TallyTable(
            table.ids,
            tuple(fields),
            table.counts[:, [table.fields.index(field) for field in fields]],
        )
        for name, table in tables.items()
    }


def frontier_gaps(
    curve: Frontier,
    by_benchmark: ByBenchmark,
    pooled: Sequence[str],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = LEVEL,
) -> tuple[Gap, ...]:
    """The gap of each draw of an arm; with intervals where there is one draw.

    The range over draws says how sure a random control's gap is, so draws are not resampled.
    """
    count = len(by_benchmark[pooled[0]])
    return tuple(
        curve.gap(
            shared_fields({name: by_benchmark[name][draw] for name in pooled}),
            draws=draws if count == 1 else 1,
            seed=seed,
            level=level,
        )
        for draw in range(count)
    )


def pooled_values(
    curve: Frontier, by_benchmark: ByBenchmark, pooled: Sequence[str]
) -> dict[str, tuple[float, ...]]:
    """What the frontier is made of, for each draw of an arm: C_S, recall and length, pooled."""
    statistics = {"C_S": curve.metric, "recall": curve.recall, "length": curve.length}
    totals = [
        pool_sets(shared_fields({name: by_benchmark[name][draw] for name in pooled}))[0].totals()
        for draw in range(len(by_benchmark[pooled[0]]))
    ]
    return {name: tuple(float(f(t)) for t in totals) for name, f in statistics.items()}


def statistics_of(metrics: Metrics) -> dict[str, Statistic]:
    """Metric -> its function of totals."""
    return {name: metric.of for name, metric in metrics.items()}


def _arm_result(name, aligned, base: ByBenchmark | None, known, options) -> ArmResult:
    levels, changes, spread = {}, {}, {}
    for benchmark, own in aligned.items():
        metrics = statistics_of(known[benchmark])
        levels[benchmark] = mean_bootstrap(metrics, own, **options)
        if base is not None:
            changes[benchmark] = mean_bootstrap(metrics, own, base[benchmark], **options)
        if len(own) > 1:
            values = {m: [float(f(t.totals())) for t in own] for m, f in metrics.items()}
            spread[benchmark] = {m: (min(found), max(found)) for m, found in values.items()}
    draws = max(len(own) for own in aligned.values())
    return ArmResult(name, draws, levels, changes, spread)


def _contrast(edit, control, is_random, tables, known, results, options) -> Contrast:
    differences, ranks = {}, {}
    for benchmark, drawn in tables[control].items():
        metrics, own = statistics_of(known[benchmark]), tables[edit][benchmark]
        drawn = [table.take(own[0].ids) for table in drawn]
        differences[benchmark] = mean_bootstrap(metrics, own, drawn, **options)
        if is_random:
            name = primary_metric(known[benchmark])
            ranks[benchmark] = rank_test(
                float(metrics[name](own[0].totals())),
                [float(metrics[name](table.totals())) for table in drawn],
                smaller_is_better=known[benchmark][name].better == "low",
            )
    gap_rank = None
    ours, theirs = results[edit], results[control]
    if is_random and ours.mean_gap is not None and theirs.mean_gap is not None:
        gap_rank = rank_test(ours.mean_gap, [g.gap.value for g in theirs.gaps if g.gap is not None])
    return Contrast(edit, control, theirs.draws, differences, ranks, gap_rank)


def _arm_document(arm: ArmResult) -> dict[str, Any]:
    document: dict[str, Any] = {"draws": arm.draws}
    if arm.gaps:
        single = arm.gaps[0] if len(arm.gaps) == 1 else None
        if arm.mean_gap is None:
            document["frontier_gap"] = OUT_OF_RANGE
        elif single is not None and single.gap is not None and single.length is not None:
            document["frontier_gap"] = interval_fields(single.gap)
            document["frontier_length_gap"] = interval_fields(single.length)
        else:
            document["frontier_gap"] = {"value": arm.mean_gap, "low": None, "high": None}
        document["frontier_gaps_by_draw"] = [
            OUT_OF_RANGE if gap.gap is None else gap.gap.value for gap in arm.gaps
        ]
        document["pooled"] = {name: list(values) for name, values in arm.pooled.items()}
        document["resamples_out_of_range"] = max(gap.outside for gap in arm.gaps)
    if arm.spread:
        document["range_over_draws"] = {
            benchmark: {metric: list(ends) for metric, ends in metrics.items()}
            for benchmark, metrics in arm.spread.items()
        }
    return document


def _contrast_document(contrast: Contrast) -> dict[str, Any]:
    return {
        "edit": contrast.edit,
        "control": contrast.control,
        "draws": contrast.draws,
        "differences": {
            benchmark: {name: interval_fields(entry) for name, entry in metrics.items()}
            for benchmark, metrics in contrast.differences.items()
        },
        "rank_p": {name: test.p for name, test in contrast.ranks.items()},
        "frontier_gap_rank_p": None if contrast.gap_rank is None else contrast.gap_rank.p,
        "smallest_rank_p": 1 / (1 + contrast.draws) if contrast.ranks else None,
    }
