"""Dose and response: many settings of a method on one set of items, corrected for being many."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np

from vlm_jax.evals.comparison import ByBenchmark, Metrics, shared_fields
from vlm_jax.evals.frontier import pool_sets
from vlm_jax.evals.results import interval_fields
from vlm_jax.evals.statistics import (
    DRAWS,
    LEVEL,
    Interval,
    holm,
    items_needed,
    max_t,
    mcnemar,
    minimum_detectable_effect,
    percentile_interval,
    resampled_totals,
    standard_error,
)
from vlm_jax.evals.tallies import TallyTable


@dataclass(frozen=True)
class Dose:
    """One setting and its effect, pooled over benchmarks.

    Attributes:
        name: of the setting's arm.
        draws: how many draws the effect is a mean of.
        value: of the metric.
        change: paired difference from the unedited model.
        detectable: the least true change that this many items find with 80 % power.
        items: how many items would find the change that was seen with 80 % power, were it true;
            None where it is 0, of several draws, or the metric is no mean of outcomes.
        recall: paired difference of recall, None where the benchmarks have none.
        p: two-sided p-value of the change by itself, None for controls.
        p_holm, p_max_t: corrected for all tested settings, None for controls.
        simultaneous: interval that holds for all tested settings at once, None for controls.
    """

    name: str
    draws: int
    value: float
    change: Interval
    detectable: float
    recall: Interval | None
    items: int | None = None
    p: float | None = None
    p_holm: float | None = None
    p_max_t: float | None = None
    simultaneous: Interval | None = None

    def document(self) -> dict[str, Any]:
        """The dose as JSON."""
        intervals = {
            "change": self.change,
            "recall": self.recall,
            "simultaneous": self.simultaneous,
        }
        plain = ("draws", "value", "detectable", "items", "p", "p_holm", "p_max_t")
        return {name: getattr(self, name) for name in plain} | {
            name: None if entry is None else interval_fields(entry)
            for name, entry in intervals.items()
        }


def dose_response(
    tables: Mapping[str, ByBenchmark],
    metrics: Metrics,
    metric: str,
    benchmarks: Sequence[str],
    tested: Collection[str],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = LEVEL,
) -> list[Dose]:
    """Returns the effect of every setting on one metric.

    A metric that is the mean of an outcome of each item (C_S of captions, an accuracy) is tested by
    McNemar's exact test, others by their bootstrap error. The tested settings are corrected
    together, by Holm's method and by the joint bootstrap (max-T).

    Args:
        tables: arm -> benchmark -> a table a draw; the first arm is the baseline.
        metrics: of the pooled totals; "recall" is used if there.
        metric: what is judged.
        benchmarks: which are pooled.
        tested: the arms that are hypotheses; the others are controls.
        draws, seed, level: of the bootstrap.
    """
    pooled = {name: _pooled(own, benchmarks) for name, own in tables.items()}
    baseline, *names = pooled
    (base, strata), *_ = pooled[baseline]
    flat = [(name, table.take(base.ids)) for name in names for table, _ in pooled[name]]
    base_totals, *resampled = resampled_totals(
        [base, *(table for _, table in flat)],
        draws=draws,
        seed=seed,
        strata=np.unique(strata, return_inverse=True)[1].tolist(),
    )

    def change(name: str, of: str) -> tuple[Interval, np.ndarray, float]:
        statistic = metrics[of].of
        rows = [number for number, (owner, _) in enumerate(flat) if owner == name]
        value = float(np.mean([statistic(flat[row][1].totals()) for row in rows]))
        samples = np.mean([statistic(resampled[row]) for row in rows], 0) - statistic(base_totals)
        difference = value - float(statistic(base.totals()))
        return percentile_interval(difference, samples, level), samples, value

    doses, samples, p_values = {}, {}, {}
    for name in names:
        effect, samples[name], value = change(name, metric)
        error = standard_error(samples[name])
        recall = change(name, "recall")[0] if "recall" in metrics else None
        least = minimum_detectable_effect(error, level=level)
        own = [table for owner, table in flat if owner == name]
        items = _items(metrics[metric].outcome, own, base, effect.value)
        doses[name] = Dose(name, len(pooled[name]), value, effect, least, recall, items)
        p_values[name] = _p_value(metrics[metric].outcome, own, base, effect.value, error)
    hypotheses = [name for name in names if name in tested]
    if hypotheses:
        own = [doses[name] for name in hypotheses]
        samples_dt = np.stack([samples[name] for name in hypotheses], axis=1)
        p = [p_values[name] for name in hypotheses]
        doses |= zip(hypotheses, _corrected(own, samples_dt, p, level))
    return list(doses.values())


def choose(
    doses: Sequence[Dose],
    values: Mapping[str, float | None],
    better: str,
    max_recall_drop: float,
) -> str | None:
    """The setting with the best value among those that keep recall; None where none does.

    Args:
        doses: the settings to choose from.
        values: setting -> what is optimised, None where it is not known (out of range).
        better: "low" where less of it is better.
        max_recall_drop: settings that lose more recall than this fraction are not considered.
    """
    kept = [
        dose.name
        for dose in doses
        if values[dose.name] is not None
        and (dose.recall is None or dose.recall.value >= -max_recall_drop)
    ]
    sign = 1 if better == "low" else -1
    return min(kept, key=lambda name: sign * (values[name] or 0.0), default=None)


def _corrected(
    doses: Sequence[Dose], samples_dt: np.ndarray, p_values: Sequence[float], level: float
) -> list[Dose]:
    """Returns the tested doses with p-values and intervals that hold for all of them together.

    Args:
        doses: T settings.
        samples_dt: their effects in D resamples.
        p_values: of each by itself.
        level: of the intervals.
    """
    stepped = holm(p_values)
    joint = max_t([dose.change.value for dose in doses], samples_dt, level)
    return [
        replace(
            dose,
            p=p_values[place],
            p_holm=float(stepped[place]),
            p_max_t=float(joint.p[place]),
            simultaneous=joint.intervals[place],
        )
        for place, dose in enumerate(doses)
    ]


def _pooled(own: ByBenchmark, benchmarks: Sequence[str]) -> list[tuple[TallyTable, tuple]]:
    count = len(own[benchmarks[0]])
    return [
        pool_sets(shared_fields({name: own[name][draw] for name in benchmarks}))
        for draw in range(count)
    ]


def _items(outcome: str, own: Sequence[TallyTable], base: TallyTable, effect: float) -> int | None:
    pair = _outcomes(outcome, own, base)
    if pair is None or not effect:
        return None
    return items_needed(float(np.mean(pair[0] != pair[1])), effect)


def _outcomes(outcome: str, own: Sequence[TallyTable], base: TallyTable):
    """Each item's outcome, steered and not; None where items have other counts than 0 and 1."""
    if not outcome or len(own) != 1:
        return None
    first, second = (t.counts[:, t.fields.index(outcome)] for t in (own[0], base))
    if max(first.max(), second.max()) > 1:  # several questions an item
        return None
    return first > 0, second > 0


def _p_value(outcome, own: Sequence[TallyTable], base, effect: float, error: float) -> float:
    pair = _outcomes(outcome, own, base)
    if pair is not None:
        return mcnemar(*pair)
    if not error:
        return 1.0 if not effect else 0.0
    return 2 * (1 - NormalDist().cdf(abs(effect) / error))
