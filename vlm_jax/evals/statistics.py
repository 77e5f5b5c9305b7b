"""Statistics of comparisons between arms: bootstrap, exact tests, rank tests, power, multiplicity.

Items are images (or questions); arms are compared on the same items, so resampling is paired:
every arm sees the same weights. Metrics are functions of totals (`tallies.Statistic`) and are
evaluated on all resamples at once.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from vlm_jax.evals.tallies import Statistic, TallyTable

DRAWS = 2000
LEVEL = 0.95
_BLOCK = 1 << 21


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its interval, NaN where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies wholly above or wholly below 0."""
        return self.low > 0 or self.high < 0


def resampled_totals(
    tables: Sequence[TallyTable],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    strata: Sequence[int] | None = None,
) -> list[dict[str, np.ndarray]]:
    """Totals of several arms over bootstrap resamples of their common items.

    Args:
        tables: arms; all have the same items in the same order.
        draws: number of resamples.
        seed: of the resampling; equal seeds and items give equal resamples, whatever the arms.
        strata: label of every item; items are resampled within their label. Default: one stratum.

    Returns:
        Per arm: field -> float64 [draws].

    Raises:
        ValueError: no items, arms over different items, or draws below 1.
    """
    _check_arms(tables, draws)
    count = len(tables[0].ids)
    stacked = np.concatenate([table.counts for table in tables], axis=1).astype(np.float64)
    labels = np.zeros(count, np.int64) if strata is None else np.asarray(strata)
    if labels.shape != (count,):
        raise ValueError(
            f"strata need one label for each of {count} items, found shape {labels.shape}"
        )
    sums = np.zeros((draws, stacked.shape[1]))
    rng = np.random.default_rng(seed)
    for label in np.unique(labels):
        sums += _resample_sums(stacked[labels == label], draws, rng)
    widths = np.cumsum([0, *(len(table.fields) for table in tables)])
    return [
        {name: sums[:, start + place] for place, name in enumerate(table.fields)}
        for table, start in zip(tables, widths)
    ]


def _check_arms(tables: Sequence[TallyTable], draws: int) -> None:
    if not tables or not tables[0].ids:
        raise ValueError("a bootstrap needs at least one item; the tallies are empty")
    if draws < 1:
        raise ValueError(f"a bootstrap needs at least 1 draw, found {draws}")
    for table in tables[1:]:
        if table.ids != tables[0].ids:
            raise ValueError(
                f"paired arms must cover the same items in the same order; one has "
                f"{len(table.ids)} items, the other {len(tables[0].ids)}, or their order differs "
                "(use TallyTable.take)"
            )


def _resample_sums(counts: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Sums over resamples of the rows of `counts`: float64 [draws, fields]."""
    items = len(counts)
    sums = np.empty((draws, counts.shape[1]))
    block = max(1, _BLOCK // items)
    for start in range(0, draws, block):
        rows = min(block, draws - start)
        picked = rng.integers(0, items, size=(rows, items)) + items * np.arange(rows)[:, None]
        weights = np.bincount(picked.ravel(), minlength=rows * items).reshape(rows, items)
        sums[start : start + rows] = weights @ counts
    return sums


def percentile_interval(value: float, samples: np.ndarray, level: float = LEVEL) -> Interval:
    """Returns the interval between the tails of resampled values; without values, no interval.

    One value is one that no resample changes, such as a share of what no item has.

    Raises:
        ValueError: the level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"an interval's level must lie between 0 and 1, found {level}")
    if not np.size(samples):
        return Interval(float(value))
    tail = (1 - level) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return Interval(float(value), float(low), float(high))


def bootstrap(
    statistic: Statistic,
    table: TallyTable,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = LEVEL,
    strata: Sequence[int] | None = None,
) -> Interval:
    """One arm's metric with its percentile bootstrap interval over items."""
    (resampled,) = resampled_totals([table], draws=draws, seed=seed, strata=strata)
    return percentile_interval(statistic(table.totals()), statistic(resampled), level)


def bootstrap_all(
    statistics: Mapping[str, Statistic],
    table: TallyTable,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = LEVEL,
    strata: Sequence[int] | None = None,
) -> dict[str, Interval]:
    """Several metrics of one arm, all over the same resamples."""
    (resampled,) = resampled_totals([table], draws=draws, seed=seed, strata=strata)
    totals = table.totals()
    return {
        name: percentile_interval(statistic(totals), statistic(resampled), level)
        for name, statistic in statistics.items()
    }


def paired_bootstrap(
    statistics: Mapping[str, Statistic],
    arm: TallyTable,
    baseline: TallyTable,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = LEVEL,
    strata: Sequence[int] | None = None,
) -> dict[str, Interval]:
    """Differences arm - baseline of several metrics, both resampled by the same items."""
    ours, theirs = resampled_totals([arm, baseline], draws=draws, seed=seed, strata=strata)
    here, there = arm.totals(), baseline.totals()
    return {
        name: percentile_interval(
            statistic(here) - statistic(there), statistic(ours) - statistic(theirs), level
        )
        for name, statistic in statistics.items()
    }


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Exact two-sided McNemar p-value of two arms' yes/no outcomes on the same items.

    Raises:
        ValueError: outcomes of different length, or values other than 0 and 1.
    """
    one, other = np.asarray(first), np.asarray(second)
    if one.shape != other.shape or one.ndim != 1:
        raise ValueError(
            f"McNemar needs two outcomes an item, found shapes {one.shape}, {other.shape}"
        )
    if not np.isin(one, (0, 1)).all() or not np.isin(other, (0, 1)).all():
        raise ValueError("McNemar needs outcomes of 0 or 1; count captions, not mentions")
    from scipy.stats import binomtest  # half a second, for those who test

    one, other = one.astype(bool), other.astype(bool)
    only_one, only_other = int((one & ~other).sum()), int((~one & other).sum())
    discordant = only_one + only_other
    return float(binomtest(only_one, discordant).pvalue) if discordant else 1.0


@dataclass(frozen=True)
class RankTest:
    """Where a statistic falls among control draws: p = (1 + as extreme) / (1 + controls).

    Attributes:
        p: one-sided, in the direction tested.
        controls: number of control draws; `smallest` = 1 / (1 + controls) is the least p they
            allow.
    """

    p: float
    controls: int

    @property
    def smallest(self) -> float:
        """The least p-value this many controls can give: 19 draws are needed for .05."""
        return 1 / (1 + self.controls)


def rank_test(
    value: float, controls: Sequence[float] | np.ndarray, *, smaller_is_better: bool = True
) -> RankTest:
    """Ranks a method's statistic among those of its random controls; ties count against it.

    Raises:
        ValueError: no control, or a value that is not a number.
    """
    draws = np.asarray(controls, np.float64)
    if draws.ndim != 1 or not len(draws):
        raise ValueError("a rank test needs at least one control draw (19 for a p of .05)")
    if not np.isfinite(draws).all() or not math.isfinite(value):
        raise ValueError(
            "a rank test needs finite values; a control or the method is NaN or infinite"
        )
    extreme = int((draws <= value).sum() if smaller_is_better else (draws >= value).sum())
    return RankTest((1 + extreme) / (1 + len(draws)), len(draws))


def standard_error(samples: np.ndarray) -> float:
    """Standard error of an estimate from its resampled values; 0 for fewer than two."""
    return float(np.std(samples, ddof=1)) if len(samples) > 1 else 0.0


def minimum_detectable_effect(error: float, *, power: float = 0.8, level: float = LEVEL) -> float:
    """The true effect that a two-sided test at `1 - level` finds with this power.

    Args:
        error: standard error of the (paired) difference, in the metric's unit.
        power: chance of finding the effect, in (0, 1).
        level: of the interval, in (0, 1).
    """
    return _both_quantiles(power, level) * error


def paired_error(discordant: float, effect: float, items: int) -> float:
    """Returns the standard error of a paired difference of proportions.

    Args:
        discordant: share of items whose outcome differs between the arms, from 0 to 1.
        effect: difference of the proportions; its square is at most `discordant`.
        items: number of items, at least 1.

    Raises:
        ValueError: a value is out of range.
    """
    if items < 1 or not 0 <= discordant <= 1 or effect**2 > discordant:
        raise ValueError(
            f"a paired proportion needs items >= 1, discordant share in 0..1 and effect^2 within "
            f"it; found {items}, {discordant}, {effect}"
        )
    return math.sqrt((discordant - effect**2) / items)


def detectable_change(
    discordant: float, items: int, *, power: float = 0.8, level: float = LEVEL
) -> float:
    """The least difference of paired proportions that is found, where a share of pairs differs.

    It solves effect = z sqrt((discordant - effect^2) / items): where 10 % of 500 pairs differ, a
    change of 3.9 points is found. NaN where none is, if all of these pairs differ in one direction:
    of 60 pairs 5 % are three.

    Args:
        discordant: share of items whose outcome differs between the arms, from 0 to 1.
        items: number of items, at least 1.
        power: chance to find it, above 0 and below 1.
        level: of the interval that it is found by, such as 0.95.

    Raises:
        ValueError: a value is out of range.
    """
    paired_error(discordant, 0, items)
    z = _both_quantiles(power, level)
    effect = z * math.sqrt(discordant / (items + z**2))
    return effect if effect <= discordant else math.nan


def items_needed(
    discordant: float, effect: float, *, power: float = 0.8, level: float = LEVEL
) -> int:
    """Returns how many items a paired comparison of proportions needs to find an effect.

    Raises:
        ValueError: the effect is 0.
    """
    if effect == 0:
        raise ValueError("no number of items finds an effect of 0; give the effect to be found")
    error = paired_error(discordant, effect, 1)
    return math.ceil((_both_quantiles(power, level) * error / effect) ** 2)


def _both_quantiles(power: float, level: float) -> float:
    if not (0 < power < 1 and 0 < level < 1):
        raise ValueError(f"power and level must lie between 0 and 1, found {power} and {level}")
    normal = NormalDist()
    return normal.inv_cdf((1 + level) / 2) + normal.inv_cdf(power)


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Returns p-values valid for all hypotheses together, by Holm's step-down; order kept.

    Raises:
        ValueError: one is not between 0 and 1.
    """
    p = np.asarray(p_values, np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"Holm's correction needs p-values between 0 and 1, found {p_values!r}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


@dataclass(frozen=True)
class MaxT:
    """Many settings judged together.

    Attributes:
        intervals: simultaneous intervals: all hold at once with the level's probability.
        p: adjusted p-values [settings].
    """

    intervals: tuple[Interval, ...]
    p: np.ndarray


def max_t(values: Sequence[float] | np.ndarray, samples: np.ndarray, level: float = LEVEL) -> MaxT:
    """Returns many settings' effects, corrected together by single-step max-T on a joint bootstrap.

    Correlated settings (a sweep over strengths) are corrected less than Holm would.

    Args:
        values: effects [settings].
        samples: their bootstrap values over common resamples [draws, settings].
        level: of the simultaneous intervals.

    Raises:
        ValueError: the samples are not [draws, settings], of two draws at least.
    """
    effects, drawn = np.asarray(values, np.float64), np.asarray(samples, np.float64)
    if drawn.ndim != 2 or drawn.shape[1:] != effects.shape or len(drawn) < 2:
        raise ValueError(
            f"max-T needs samples [draws >= 2, settings = {len(effects)}], found shape "
            f"{drawn.shape}"
        )
    errors = drawn.std(0, ddof=1)
    certain = np.where(effects != 0, np.inf, 0.0)
    observed = np.divide(np.abs(effects), errors, out=certain, where=errors > 0)
    deviations = np.abs(drawn - effects) / np.where(errors > 0, errors, 1.0)
    largest = deviations.max(1, initial=0.0)
    p = (1 + (largest[:, None] >= observed).sum(0)) / (1 + len(drawn))
    reach = np.quantile(largest, level) * errors
    intervals = tuple(
        Interval(float(v), float(v - r), float(v + r)) for v, r in zip(effects, reach)
    )
    return MaxT(intervals, p)
