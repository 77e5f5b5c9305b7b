"""Tests, corrections and intervals beside those of scipy and statsmodels, on tables."""

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from vlm_jax.evals.statistics import (
    bootstrap,
    detectable_change,
    holm,
    items_needed,
    mcnemar,
    minimum_detectable_effect,
    resampled_totals,
    standard_error,
)
from vlm_jax.evals.tallies import TallyTable, ratio

TABLES = ((101, 121, 59, 33), (794, 86, 150, 570), (5, 0, 0, 7), (3, 1, 9, 2), (0, 8, 8, 0))
"""Both right, only the first, only the second, none."""
P_VALUES = ([0.01, 0.02, 0.03, 0.04], [0.3], [0.001, 0.6, 0.04, 0.001, 1.0, 0.02], [0.05] * 4)


def outcomes(both, first, second, none):
    """Outcomes of two arms, 0 or 1, with such a table."""
    counts = (both, first, second, none)
    return np.repeat([1, 1, 0, 0], counts), np.repeat([1, 0, 1, 0], counts)


def accuracy(totals):
    return ratio(totals["right"], totals["asked"])


@pytest.fixture(scope="module")
def clustered():
    """500 images with one to six questions each, alike within an image."""
    rng = np.random.default_rng(3)
    asked = rng.integers(1, 7, 500)
    right = rng.binomial(asked, rng.beta(1, 1, 500))
    return TallyTable(tuple(range(500)), ("right", "asked"), np.stack([right, asked], 1))


@pytest.mark.parametrize("table", TABLES)
def test_mcnemar(table):
    first, second = outcomes(*table)
    _, only, other, _ = table
    tail = scipy.stats.binom.cdf(min(only, other), only + other, 0.5)
    assert mcnemar(first, second) == pytest.approx(min(1, 2 * tail), rel=1e-9)


def test_the_effect_that_is_found():
    """The root of effect = z se(effect), by a solver; and items that find it, back again."""
    z = scipy.stats.norm.ppf(0.975) + scipy.stats.norm.ppf(0.8)
    assert minimum_detectable_effect(0.01) == pytest.approx(z * 0.01)
    for discordant, items in ((0.05, 500), (0.1, 3000), (0.2, 9000), (0.3, 40)):
        gap = lambda e, d=discordant, n=items: e - z * np.sqrt(max(d - e**2, 0) / n)
        root = scipy.optimize.brentq(gap, 0, np.sqrt(discordant))
        assert detectable_change(discordant, items) == pytest.approx(min(root, discordant))
        if root < discordant:
            assert abs(items_needed(discordant, root) - items) <= 1


def test_intervals_over_items_are_scipy_s(clustered):
    columns = tuple(clustered.counts.T.astype(float))
    share = lambda right, asked, axis=-1: right.sum(axis) / asked.sum(axis)
    theirs = scipy.stats.bootstrap(
        columns, share, paired=True, n_resamples=4000, method="percentile", rng=1
    )
    ours = bootstrap(accuracy, clustered, draws=4000)
    low, high = theirs.confidence_interval
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.008)
    (drawn,) = resampled_totals([clustered], draws=4000, seed=0)
    error = standard_error(accuracy(drawn))
    assert error == pytest.approx(theirs.standard_error, rel=0.05)


@pytest.mark.parametrize("p_values", P_VALUES)
def test_holm_of_statsmodels(p_values):
    many = pytest.importorskip("statsmodels.stats.multitest")
    assert holm(p_values) == pytest.approx(many.multipletests(p_values, method="holm")[1])


@pytest.mark.parametrize("table", TABLES)
def test_mcnemar_of_statsmodels(table):
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    found = tables.mcnemar(np.reshape(table, (2, 2)), exact=True)
    assert mcnemar(*outcomes(*table)) == pytest.approx(found.pvalue)


def test_errors_over_items_are_statsmodels_robust_ones(clustered):
    """Of an accuracy whose questions are clustered: wider than if all were independent."""
    linear = pytest.importorskip("statsmodels.regression.linear_model")
    right, asked = clustered.counts.T
    each = np.concatenate([[1] * r + [0] * (n - r) for r, n in zip(right, asked)])
    groups = np.repeat(np.arange(len(asked)), asked)
    fit = linear.OLS(each, np.ones(len(each)))
    robust = fit.fit(cov_type="cluster", cov_kwds={"groups": groups}).bse[0]
    (drawn,) = resampled_totals([clustered], draws=4000, seed=0)
    assert standard_error(accuracy(drawn)) == pytest.approx(robust, rel=0.05)
    assert robust > 1.2 * fit.fit().bse[0]
