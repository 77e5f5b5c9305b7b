"""Intervals cover, tests are exact, corrections hold: checked on simulated data and by hand."""

import math
from fractions import Fraction
from math import comb
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_jax.evals import chair
from vlm_jax.evals.base import Example
from vlm_jax.evals.comparison import statistics_of
from vlm_jax.evals.power import foresight
from vlm_jax.evals.statistics import (
    Interval,
    bootstrap,
    bootstrap_all,
    detectable_change,
    holm,
    items_needed,
    max_t,
    mcnemar,
    minimum_detectable_effect,
    paired_bootstrap,
    paired_error,
    percentile_interval,
    rank_test,
    resampled_totals,
    standard_error,
)
from vlm_jax.evals.tallies import TallyTable, f1, ratio, tabulate


def share(totals):
    return ratio(totals["wrong"], totals["all"])


def simulate(rng, rate, items=200, latent=None):
    """Mentions an item, and how many of them are wrong, with items of different difficulty."""
    mentions = rng.poisson(5, items) + 1
    difficulty = rng.beta(2, 2, items) if latent is None else latent
    wrong = rng.binomial(mentions, np.clip(2 * rate * difficulty, 0, 1))
    return TallyTable(tuple(range(items)), ("wrong", "all"), np.stack([wrong, mentions], 1))


def test_bootstrap_intervals_cover():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        interval = bootstrap(share, simulate(rng, 0.2), draws=400, seed=trial)
        covered += interval.low <= 0.2 <= interval.high
    assert 0.90 <= covered / 200 <= 0.99


def test_pairing_covers_and_narrows():
    rng = np.random.default_rng(1)
    covered, paired_width, loose_width = 0, 0.0, 0.0
    for trial in range(100):
        latent = rng.beta(0.3, 0.3, 200)
        base, arm = simulate(rng, 0.4, latent=latent), simulate(rng, 0.3, latent=latent)
        difference = paired_bootstrap({"share": share}, arm, base, draws=400, seed=trial)["share"]
        covered += difference.low <= -0.1 <= difference.high
        paired_width += difference.high - difference.low
        alone = [bootstrap(share, table, draws=400, seed=trial) for table in (arm, base)]
        loose_width += math.hypot(*(end.high - end.low for end in alone))
    assert 0.88 <= covered / 100 <= 1.0
    assert paired_width < 0.8 * loose_width


def test_no_difference_is_exactly_none():
    table = simulate(np.random.default_rng(2), 0.3)
    difference = paired_bootstrap({"share": share}, table, table)["share"]
    assert (difference.value, difference.low, difference.high) == (0, 0, 0)
    assert not difference.excludes_zero


def test_resamples_depend_on_the_seed_and_not_on_the_arms():
    rng = np.random.default_rng(3)
    one, two = simulate(rng, 0.3), simulate(rng, 0.2)
    alone = resampled_totals([one], draws=50, seed=7)[0]
    first, _ = resampled_totals([one, two], draws=50, seed=7)
    assert np.array_equal(alone["wrong"], first["wrong"])
    assert not np.array_equal(alone["wrong"], resampled_totals([one], draws=50, seed=8)[0]["wrong"])


def test_resamples_are_of_the_right_size_in_every_block():
    table = TallyTable(tuple(range(3000)), ("n",), np.ones((3000, 1), np.int64))
    (totals,) = resampled_totals([table], draws=1500)
    assert (totals["n"] == 3000).all()


def test_strata_keep_their_sizes():
    table = tabulate((item, {"a": item < 30, "b": item >= 30}) for item in range(100))
    (totals,) = resampled_totals([table], draws=20, strata=[item < 30 for item in range(100)])
    assert (totals["a"] == 30).all()
    assert (totals["b"] == 70).all()


def test_all_metrics_of_chair_resample():
    rows = [(i, {name: i % 3 for name in map(str, chair.COUNTS)}) for i in range(40)]
    intervals = bootstrap_all(statistics_of(chair.METRICS), tabulate(rows), draws=100)
    assert set(intervals) == set(chair.METRICS)
    assert all(entry.low <= entry.value <= entry.high for entry in intervals.values())


def test_bad_resampling():
    table, empty = tabulate([(1, {"n": 1}), (2, {"n": 0})]), tabulate([])
    with pytest.raises(ValueError, match="at least one item"):
        resampled_totals([empty])
    with pytest.raises(ValueError, match="at least 1 draw, found 0"):
        resampled_totals([table], draws=0)
    with pytest.raises(ValueError, match="same items in the same order"):
        resampled_totals([table, table.take([2, 1])])
    with pytest.raises(ValueError, match="one label for each of 2 items"):
        resampled_totals([table], strata=[1])
    with pytest.raises(ValueError, match="between 0 and 1, found 95"):
        percentile_interval(0.0, np.zeros(3), 95)
    assert math.isnan(percentile_interval(1.0, np.zeros(0)).low)


@settings(deadline=None)  # the first one imports scipy
@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40))
def test_mcnemar_is_the_exact_binomial(pairs):
    first, second = (np.array([pair[i] for pair in pairs], int) for i in (0, 1))
    b = sum(x and not y for x, y in pairs)
    c = sum(y and not x for x, y in pairs)
    tail = sum(Fraction(comb(b + c, k), 2 ** (b + c)) for k in range(min(b, c) + 1))
    assert mcnemar(first, second) == pytest.approx(float(min(Fraction(1), 2 * tail)))


def test_mcnemar_of_many():
    first = np.zeros(5000, int)
    first[:1000] = 1
    second = np.zeros(5000, int)
    second[400:1000] = 1
    assert mcnemar(first, second) == pytest.approx(2.0**-399)


def test_bad_mcnemar():
    with pytest.raises(ValueError, match="two outcomes an item"):
        mcnemar(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="outcomes of 0 or 1"):
        mcnemar(np.array([2, 0]), np.array([0, 1]))


def test_rank_needs_19_controls():
    assert rank_test(-1.0, np.arange(19)).p == pytest.approx(0.05)
    assert rank_test(-1.0, np.arange(3)).smallest == pytest.approx(0.25)
    assert rank_test(0.0, [0.0, 1.0, 2.0]).p == pytest.approx(0.5)
    assert rank_test(5.0, [1.0, 2.0, 3.0], smaller_is_better=False).p == pytest.approx(0.25)
    assert rank_test(5.0, [1.0, 2.0, 3.0]).p == 1.0


@pytest.mark.parametrize("controls", [[], [math.nan], [[1.0]]])
def test_bad_rank(controls):
    with pytest.raises(ValueError, match="rank test needs"):
        rank_test(0.0, controls)


def test_detectable_effect_is_detected_four_times_in_five():
    error = paired_error(0.15, 0.0, 1500)
    effect = minimum_detectable_effect(error)
    assert effect == pytest.approx(2.8016 * error, rel=1e-4)
    rng = np.random.default_rng(4)
    estimates = rng.normal(effect, error, 20_000)
    assert np.mean(np.abs(estimates) > 1.96 * error) == pytest.approx(0.8, abs=0.01)


def test_items_needed_for_a_small_relative_effect():
    """1.4 points with 10 or 20 % of the captions discordant: about 4,000 and 8,000 images."""
    assert items_needed(0.10, 0.014) == pytest.approx(4000, rel=0.01)
    assert items_needed(0.20, 0.014) == pytest.approx(8000, rel=0.01)


@pytest.mark.parametrize(("discordant", "items"), [(0.05, 500), (0.1, 3000), (0.2, 9000)])
def test_the_detectable_change_of_a_size_needs_that_size(discordant, items):
    effect = detectable_change(discordant, items)
    assert items_needed(discordant, effect) == pytest.approx(items, abs=1)


@pytest.mark.parametrize(("discordant", "items"), [(0.05, 10), (0.05, 60), (0.1, 60), (0.2, 2)])
def test_of_few_items_no_change_is_found(discordant, items):
    """Three of 60 pairs that differ, all in one direction, have a p of .25."""
    assert math.isnan(detectable_change(discordant, items))


def test_what_a_benchmark_can_show_is_said_of_few_items_too():
    def said(count):
        questions = [Example(n, (), "?", {}) for n in range(count)]
        return foresight("b", SimpleNamespace(examples=lambda: questions, item=lambda one: one.id))

    assert "80 % power: none, none, 15.2 points if 5, 10, 20 %" in said(60)
    assert "80 % power: 2.8, 3.9, 5.6 points if 5, 10, 20 %" in said(500)
    assert said(2) == (
        "b: 2 answers, too few: no paired change is found with 80 % power if 5, 10, 20 % of the "
        "answers change."
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: items_needed(0.1, 0.0), "effect of 0"),
        (lambda: paired_error(0.1, 0.5, 100), "effect\\^2 within it"),
        (lambda: paired_error(1.1, 0.5, 100), "discordant share"),
        (lambda: paired_error(0.1, 0.1, 0), "items >= 1"),
        (lambda: minimum_detectable_effect(1.0, power=80), "power and level"),
    ],
)
def test_bad_power(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert len(holm([])) == 0
    with pytest.raises(ValueError, match="p-values between 0 and 1"):
        holm([0.1, 1.2])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_none_and_bonferroni(p):
    adjusted = holm(p)
    assert (adjusted >= np.array(p) - 1e-12).all()
    assert (adjusted <= np.minimum(1, len(p) * np.array(p)) + 1e-12).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()


def test_max_t_keeps_the_family_error():
    rng = np.random.default_rng(5)
    false_alarms, trials, settings_ = 0, 300, 8
    for _ in range(trials):
        shared = rng.normal(size=(2000, 1))
        noise = 0.7 * shared + 0.7 * rng.normal(size=(2000, settings_))
        values = 0.7 * rng.normal() + 0.7 * rng.normal(size=settings_)
        result = max_t(values, values + noise)
        false_alarms += any(entry.excludes_zero for entry in result.intervals)
        for p, entry in zip(result.p, result.intervals):
            assert entry.excludes_zero == (p < 0.05) or abs(p - 0.05) < 2e-3
    assert 0.01 <= false_alarms / trials <= 0.10


def test_max_t_corrects_copies_less_than_holm():
    rng = np.random.default_rng(6)
    draws = rng.normal(size=(4000, 1))
    copies = np.repeat(draws, 10, axis=1)
    result = max_t([2.3] * 10, 2.3 + copies)
    assert result.p.max() < 0.04
    assert holm([0.0215] * 10).min() > 0.2


def test_max_t_of_settings_that_never_vary():
    result = max_t([0.0, -1.0], np.tile([0.0, -1.0], (99, 1)))
    assert result.p == pytest.approx([1.0, 0.01])
    assert result.intervals[1] == Interval(-1.0, -1.0, -1.0)
    with pytest.raises(ValueError, match=r"settings = 2\], found shape"):
        max_t([0.0, 1.0], np.zeros((5, 3)))


def test_standard_error():
    assert standard_error(np.array([1.0, 3.0])) == pytest.approx(math.sqrt(2))
    assert standard_error(np.array([1.0])) == 0


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=9))
def test_ratios_agree_on_numbers_and_arrays(pairs):
    top, bottom = np.array(pairs).T
    wanted = [t / b if b else 0.0 for t, b in pairs]
    assert ratio(top, bottom) == pytest.approx(wanted)
    assert [ratio(t, b) for t, b in pairs] == pytest.approx(wanted)
    assert isinstance(ratio(1, 2), float)
    assert f1(0.0, 0.0) == 0


def test_tables_refuse_nonsense():
    with pytest.raises(ValueError, match="items must be distinct"):
        tabulate([(1, {"n": 1}), (1, {"n": 1})])
    with pytest.raises(ValueError, match=r"shape \(1, 2\), need"):
        TallyTable((1,), ("n",), np.zeros((1, 2), int))
    with pytest.raises(ValueError, match="lack 1 items asked for, the first is 3"):
        tabulate([(1, {"n": 1})]).take([1, 3])
    assert tabulate([(1, {"a": 1}), (2, {"b": 2})]).totals() == {"a": 1, "b": 2}
