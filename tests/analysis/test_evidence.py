"""The area under the curve against all pairs, and its interval."""

import numpy as np
import pytest

from vlm_jax.analysis.evidence import area, area_interval


def test_the_area_is_the_share_of_pairs_that_are_won():
    rng = np.random.default_rng(0)
    values, grounded = rng.integers(0, 6, 60) / 5, rng.random(60) < 0.6
    won = values[grounded][:, None] - values[~grounded]
    assert area(values, grounded) == pytest.approx(np.mean((won > 0) + 0.5 * (won == 0)))
    assert area(np.array([0.9, 0.4, 0.4]), np.array([True, True, False])) == 0.75
    assert np.isnan(area(values, np.ones(60, bool)))


def test_the_interval_holds_the_area_and_narrows():
    rng = np.random.default_rng(1)
    widths = []
    for count in (30, 300):
        answers = np.repeat(np.arange(count), 3)
        grounded = rng.random(3 * count) < 0.5
        values = rng.normal(size=3 * count) + 0.8 * grounded
        found = area_interval(values, grounded, answers, draws=200)
        assert found.low < found.value < found.high
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 2
    one = area_interval(values[:3], np.array([True, False, True]), np.zeros(3, int))
    assert np.isnan(one.low)
