"""The gap to saying less: right by hand, honest in its intervals, never clamped."""

import math

import numpy as np
import pytest

from vlm_jax.evals.frontier import OUT_OF_RANGE, frontier, read_curve
from vlm_jax.evals.tallies import TallyTable

FIELDS = (
    "captions",
    "hallucinated_captions",
    "gt_objects",
    "recalled_objects",
    "words",
)


def arm(hallucinated: int, recalled: int, words: int = 1000, items: int = 100) -> TallyTable:
    """`items` captions with one object each to recall; the first ones hallucinate and recall."""
    index = np.arange(items)
    counts = np.stack(
        [
            np.ones(items),
            index < hallucinated,
            np.ones(items),
            index[::-1] < recalled,
            np.full(items, words // items),
        ],
        axis=1,
    ).astype(np.int64)
    return TallyTable(tuple(range(items)), FIELDS, counts)


SWEEP = {0.0: arm(60, 90, 1200), 1.0: arm(50, 80, 1000), 2.0: arm(20, 60, 500)}


def test_points_rise_in_recall():
    points = frontier(SWEEP).points()
    assert [point.bias for point in points] == [2.0, 1.0, 0.0]
    assert [point.recall for point in points] == pytest.approx([0.6, 0.8, 0.9])
    assert [point.metric for point in points] == pytest.approx([0.2, 0.5, 0.6])
    assert [point.length for point in points] == pytest.approx([5, 10, 12])


def test_gap_interpolates_at_equal_recall():
    gap = frontier(SWEEP).gap(arm(40, 85, 1100), draws=200)
    assert gap.gap is not None
    assert gap.length is not None
    assert gap.gap.value == pytest.approx(0.40 - 0.55)
    assert gap.length.value == pytest.approx(0.0)
    assert gap.recall == pytest.approx(0.85)
    assert gap.gap.low < gap.gap.value < gap.gap.high
    assert str(gap).startswith("-15.0 [")


@pytest.mark.parametrize("bias", list(SWEEP))
def test_the_frontier_has_no_gap_to_itself(bias):
    gap = frontier(SWEEP).gap(SWEEP[bias], draws=300)
    assert gap.gap is not None
    assert gap.gap.value == pytest.approx(0)
    assert gap.gap.low <= 1e-12
    assert gap.gap.high >= -1e-12


@pytest.mark.parametrize("recalled", [59, 30, 91, 100])
def test_outside_the_range_is_said_and_never_clamped(recalled):
    gap = frontier(SWEEP).gap(arm(10, recalled), draws=200)
    assert gap.gap is None
    assert gap.length is None
    assert gap.outside > 0
    assert gap.span == pytest.approx((0.6, 0.9))
    assert str(gap) == OUT_OF_RANGE


def test_read_curve():
    assert read_curve([0.1, 0.3], [1.0, 3.0], 0.2) == pytest.approx(2.0)
    assert read_curve([0.1, 0.3], [1.0, 3.0], 0.3) == 3.0
    assert math.isnan(read_curve([0.1, 0.3], [1.0, 3.0], 0.31))
    assert math.isnan(read_curve([0.1, 0.3], [1.0, 3.0], 0.09))
    assert read_curve([0.1, 0.1, 0.3], [1.0, 9.0, 3.0], 0.1) == 1.0


def test_sets_are_pooled():
    sweep = {bias: {"broken": table, "normal": table} for bias, table in SWEEP.items()}
    both = {"broken": arm(50, 80, 1000), "normal": arm(30, 80, 1000)}
    gap = frontier(sweep).gap(both, draws=200)
    assert gap.gap is not None
    assert gap.gap.value == pytest.approx((50 + 30) / 200 - 0.5)


def simulated(latent, strength, bias):
    """Objects and hallucinations fall with the bias; a method cuts the latter alone."""
    items = len(latent)
    recalled = latent[:, 0] < 0.9 - 0.1 * bias
    wrong = latent[:, 1] < 0.6 - 0.15 * bias - strength
    ones = np.ones(items)
    words = np.full(items, 20 - 3 * bias)
    counts = np.stack([ones, wrong, ones, recalled, words], axis=1).astype(np.int64)
    return TallyTable(tuple(range(items)), FIELDS, counts)


def test_intervals_cover_the_true_gap():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(60):
        sweep = {bias: simulated(rng.random((400, 2)), 0.0, bias) for bias in (0.0, 1.0, 2.0)}
        method = simulated(rng.random((400, 2)), 0.05, 1.0)
        gap = frontier(sweep).gap(method, draws=200, seed=trial)
        assert gap.gap is not None
        covered += gap.gap.low <= -0.05 <= gap.gap.high
    assert covered >= 51


def test_bad_frontiers():
    with pytest.raises(ValueError, match="at least 2 biases, found 1"):
        frontier({0.0: SWEEP[0.0]})
    with pytest.raises(ValueError, match=r"bias 1\.0 covers other images"):
        frontier({0.0: arm(5, 5), 1.0: arm(5, 5, items=50)})
    with pytest.raises(ValueError, match="the arm covers 120 images, the frontier 100"):
        frontier(SWEEP).gap(arm(5, 5, items=120))
    with pytest.raises(ValueError, match="lack 50 items"):
        frontier(SWEEP).gap(arm(5, 5, items=50))
    with pytest.raises(ValueError, match="at least one set"):
        frontier({0.0: {}, 1.0: {}})
    odd = TallyTable((1,), ("captions",), np.ones((1, 1), np.int64))
    with pytest.raises(ValueError, match="'normal' was tallied with other fields"):
        frontier(SWEEP).gap({"broken": arm(5, 5), "normal": odd})
