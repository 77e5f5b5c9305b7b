"""The protocol's arithmetic, on series and clocks that are known."""

import numpy as np
import pytest

from benchmarks import protocol
from benchmarks.protocol import Route, compare, in_turns, machine, peaks, ratio_of


class Clock:
    """Time that passes only where a route says so."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def route(self, seconds, log, name):
        durations = iter(seconds)

        def run(*args):
            log.append((name, *args))
            self.now += next(durations)
            return name

        return run


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(protocol.time, "perf_counter", clock)
    monkeypatch.setattr(protocol.time, "process_time", lambda: 2 * clock.now)
    return clock


def test_the_interval_of_constant_runs_is_a_point():
    report = ratio_of([3.0] * 7, [2.0] * 7)
    assert (report.min, report.median, report.low, report.high) == (1.5, 1.5, 1.5, 1.5)


def test_the_interval_covers_the_true_ratio_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        report = ratio_of(rng.lognormal(np.log(2), 0.1, 9), rng.lognormal(0, 0.1, 9))
        covered += report.low <= 2 <= report.high
    assert 50 <= covered <= 60


def test_a_machine_that_slows_both_routes_of_a_turn_widens_nothing():
    slowed = np.random.default_rng(0).lognormal(0, 0.3, 9)
    report = ratio_of(2 * slowed, slowed)
    assert (report.low, report.median, report.high) == (2, 2, 2)
    apart = ratio_of(2 * slowed, slowed[:8])
    assert apart.low < 1.8 < 2.2 < apart.high


def test_noisier_runs_have_a_wider_interval():
    rng = np.random.default_rng(0)
    width = lambda noise: (lambda report: report.high - report.low)(
        ratio_of(*(rng.lognormal(0, noise, 9) for _ in range(2)))
    )
    assert width(0.3) > 3 * width(0.02)


@pytest.mark.parametrize(
    ("goal", "at_most", "verdict"),
    [
        (2.5, True, "met"),
        (1.0, True, "missed"),
        (1.9, True, "unclear"),
        (1.0, False, "met"),
        (2.5, False, "missed"),
        (1.9, False, "unclear"),
    ],
)
def test_a_verdict_stays_open_where_the_interval_holds_the_goal(goal, at_most, verdict):
    report = ratio_of([1.6, 1.8, 2.0, 2.2, 2.4], [1.0] * 5)
    assert report.low < 1.9 < report.high
    assert report.verdict(goal, at_most=at_most) == verdict


def test_compare_takes_turns_and_leaves_out_warm_up_preparation_and_checks(clock):
    log = []
    a = clock.route([100.0, 3.0, 3.0, 6.0], log, "a")
    b = clock.route([100.0, 1.0, 2.0, 2.0], log, "b")

    def prepare(name):
        def make():
            clock.now += 1000.0
            return (name,)

        return make

    seen = []

    def check(*done):
        clock.now += 1000.0
        seen.append(done)

    report = compare(a, b, 3, prepare=(prepare("for a"), prepare("for b")), check=check)
    assert report.a_seconds == (3.0, 3.0, 6.0)
    assert report.b_seconds == (1.0, 2.0, 2.0)
    assert (report.min, report.median, report.cpu_median) == (3.0, 1.5, 1.5)
    assert seen == [("a", "b")] * 4
    turns = [{log[i][0], log[i + 1][0]} for i in range(0, 8, 2)]
    assert turns == [{"a", "b"}] * 4
    assert {name: given for name, given in log} == {"a": "for a", "b": "for b"}
    assert [log[i][0] for i in range(0, 8, 2)] == ["b", "a", "b", "a"]


def test_many_routes_take_turns_against_one_baseline(clock):
    log = []
    seconds = {"base": [9.0, 2.0, 2.0], "slow": [9.0, 3.0, 3.0], "fast": [9.0, 1.0, 1.0]}
    routes = {name: Route(clock.route(each, log, name)) for name, each in seconds.items()}
    series = in_turns(routes, 2)
    assert [name for (name,) in log] == [*reversed(routes), *routes, *reversed(routes)]
    assert series["slow"].over(series["base"]).median == 1.5
    assert series["fast"].over(series["base"]).median == 0.5
    assert series["base"].cpu_seconds == (4.0, 4.0)


def test_a_scaled_report_is_scaled_throughout():
    report = ratio_of([1.6, 1.8, 2.0], [1.0] * 3)
    doubled = report.scaled(2)
    assert (doubled.low, doubled.median) == (2 * report.low, 2 * report.median)
    assert doubled.verdict(4.1) == report.verdict(2.05)
    assert doubled.a_seconds == report.a_seconds
    assert doubled.cpu_median is None


def test_a_failed_check_stops_the_measurement(clock):
    def check(a, b):
        raise RuntimeError("not the same work")

    route = lambda name: clock.route([1.0] * 9, [], name)
    with pytest.raises(RuntimeError, match="not the same work"):
        compare(route("a"), route("b"), 3, check=check)


def test_one_repeat_is_refused():
    with pytest.raises(ValueError, match="repeats=1 gives no interval"):
        compare(lambda: None, lambda: None, 1)


def test_peaks_and_machine_say_what_a_record_needs():
    found = peaks(size=64, stream_mb=1)
    assert set(found) == {"gemm_gflops", "stream_gbs"}
    assert all(np.isfinite(value) and value > 0 for value in found.values())
    record = machine()
    assert record["versions"]["jax"]
    assert len(record["load_average"]) == 3
    assert record["commit"] != ""
