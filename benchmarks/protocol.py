"""How speed is measured here: ratios of interleaved runs in one process, with an interval.

Absolute times on a shared machine drift; two routes timed turn by turn drift together. So the
ratio of their medians is what is claimed, with a bootstrap interval over turns, and the verdict
stays open where the interval holds the goal.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

_RESAMPLES = 10_000


@dataclasses.dataclass(frozen=True)
class RatioReport:
    """Time of `a` over time of `b`.

    Attributes:
        min: ratio of the fastest runs.
        median: ratio of the medians.
        low, high: 95 % bootstrap interval of the ratio of medians.
        a_seconds, b_seconds: every run, in order.
        cpu_median: the same ratio of processor time over all threads, which a busy machine and a
            different number of threads leave alone; None where it was not taken.
        cpu_low, cpu_high: its 95 % bootstrap interval.
    """

    min: float
    median: float
    low: float
    high: float
    a_seconds: tuple[float, ...]
    b_seconds: tuple[float, ...]
    cpu_median: float | None = None
    cpu_low: float | None = None
    cpu_high: float | None = None

    def verdict(self, goal: float, *, at_most: bool = True) -> str:
        """`met` or `missed` where the interval lies on one side of the goal, else `unclear`."""
        if at_most:
            return "met" if self.high <= goal else "missed" if self.low > goal else "unclear"
        return "met" if self.low >= goal else "missed" if self.high < goal else "unclear"

    def scaled(self, factor: float) -> RatioReport:
        """The report of a quantity that is this ratio times a constant."""
        times = lambda value: None if value is None else factor * value
        names = ("min", "median", "low", "high", "cpu_median", "cpu_low", "cpu_high")
        return dataclasses.replace(self, **{name: times(getattr(self, name)) for name in names})

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


def _nothing() -> tuple[()]:
    return ()


@dataclasses.dataclass(frozen=True)
class Route:
    """One way to do the work.

    Attributes:
        run: does it, and blocks until it is done.
        prepare: makes its arguments anew before every run, untimed: copies of what it consumes.
    """

    run: Callable[..., Any]
    prepare: Callable[[], tuple] = _nothing


@dataclasses.dataclass(frozen=True)
class Series:
    """Every timed run of a route, in order: seconds, and processor seconds of all threads."""

    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]

    def over(self, other: Series) -> RatioReport:
        """Returns the ratio of this route's time to another's."""
        report = ratio_of(self.seconds, other.seconds)
        if min(*self.cpu_seconds, *other.cpu_seconds) <= 0:
            return report
        busy = ratio_of(self.cpu_seconds, other.cpu_seconds)
        return dataclasses.replace(
            report, cpu_median=busy.median, cpu_low=busy.low, cpu_high=busy.high
        )


def in_turns(
    routes: Mapping[str, Route],
    repeats: int = 7,
    *,
    warm_up: int = 1,
    check: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Series]:
    """Times routes turn by turn.

    The order alternates from turn to turn, so that none always runs on another's warm caches.

    Args:
        routes: what is timed.
        repeats: timed runs of each.
        warm_up: untimed runs of each before.
        check: sees what the routes returned in each turn, untimed, and raises where that is not the
            work that was to be timed.
    """
    if repeats < 2:
        raise ValueError(f"repeats={repeats} gives no interval; use at least 2, better 7.")
    wall: dict[str, list[float]] = {name: [] for name in routes}
    cpu: dict[str, list[float]] = {name: [] for name in routes}
    for turn in range(-warm_up, repeats):
        done: dict[str, Any] = {}
        for name in list(routes) if turn % 2 == 0 else reversed(routes):
            ready = routes[name].prepare()
            start = time.perf_counter(), time.process_time()
            done[name] = routes[name].run(*ready)
            taken = time.perf_counter() - start[0], time.process_time() - start[1]
            del ready
            if turn >= 0:
                wall[name].append(taken[0])
                cpu[name].append(taken[1])
        if check is not None:
            check(done)
    return {name: Series(tuple(wall[name]), tuple(cpu[name])) for name in routes}


def compare(
    a: Callable[..., Any],
    b: Callable[..., Any],
    repeats: int = 7,
    *,
    warm_up: int = 1,
    prepare: tuple[Callable[[], tuple], Callable[[], tuple]] = (_nothing, _nothing),
    check: Callable[[Any, Any], None] | None = None,
) -> RatioReport:
    """Times two routes turn by turn and returns the ratio a / b; see `in_turns`."""
    series = in_turns(
        {"a": Route(a, prepare[0]), "b": Route(b, prepare[1])},
        repeats,
        warm_up=warm_up,
        check=None if check is None else lambda done: check(done["a"], done["b"]),
    )
    return series["a"].over(series["b"])


def ratio_of(a_seconds: Sequence[float], b_seconds: Sequence[float]) -> RatioReport:
    """The report of two series of runs.

    Runs of equal number were taken in turns: the bootstrap draws whole turns, so that what slows
    both routes of a turn widens nothing.
    """
    first, second = np.asarray(a_seconds, float), np.asarray(b_seconds, float)
    rng = np.random.default_rng(0)
    draw = lambda series: rng.integers(0, series.size, (_RESAMPLES, series.size))
    turns = draw(first)
    others = turns if first.size == second.size else draw(second)
    ratios = np.median(first[turns], axis=1) / np.median(second[others], axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return RatioReport(
        min=float(first.min() / second.min()),
        median=float(np.median(first) / np.median(second)),
        low=float(low),
        high=float(high),
        a_seconds=tuple(first.tolist()),
        b_seconds=tuple(second.tolist()),
    )


def peaks(dtype: str = "float32", *, size: int = 1536, stream_mb: int = 256) -> dict[str, float]:
    """What the machine can do right now: the best of a few large products and stream reads.

    Call it before and after a measurement: a difference shows that the machine was busy.

    Returns:
        `gemm_gflops` and `stream_gbs`, with jax on its default device.
    """
    import jax
    import jax.numpy as jnp

    with jax.enable_x64(dtype == "float64"):
        square = jnp.ones((size, size), dtype)
        long = jnp.ones((stream_mb * 2**20 // jnp.dtype(dtype).itemsize,), dtype)
        gemm = _best(jax.jit(lambda x: x @ x), square)
        stream = _best(jax.jit(jnp.sum), long)
    return {
        "gemm_gflops": 2 * size**3 / gemm / 1e9,
        "stream_gbs": long.size * long.dtype.itemsize / stream / 1e9,
    }


def _best(function, operand, repeats: int = 5) -> float:
    function(operand).block_until_ready()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function(operand).block_until_ready()
        times.append(time.perf_counter() - start)
    return min(times)


def machine() -> dict[str, Any]:
    """Processor, load, versions and commit, for the record of a measurement."""
    import jax

    versions = {}
    for name in ("jax", "jaxlib", "flax", "numpy", "torch", "transformers"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "load_average": list(os.getloadavg()),
        "devices": [device.device_kind for device in jax.local_devices()],
        "python": platform.python_version(),
        "versions": versions,
        "threads": {
            name: os.environ[name]
            for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "NPROC", "XLA_FLAGS")
            if name in os.environ
        },
        "commit": commit(),
    }


def _cpu_model() -> str:
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def commit() -> str:
    """Returns the commit that this is run from, marked where files were changed since."""
    here = pathlib.Path(__file__).parent
    git = ["git", "-C", str(here)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        return "unknown"
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True, check=False)
    return head.stdout.strip() + ("+changes" if changed.returncode else "")
