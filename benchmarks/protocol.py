"""How speed is measured here: ratios of interleaved runs in one process, with an interval.

Absolute times on a shared machine drift; two routes timed turn by turn drift together. So the
ratio of their medians is what is claimed, with a bootstrap interval, and the verdict stays open
where the interval holds the goal.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import time
from collections.abc import Callable
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

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


def _nothing() -> tuple[()]:
    return ()


def compare(
    a: Callable[..., Any],
    b: Callable[..., Any],
    repeats: int = 7,
    *,
    warm_up: int = 1,
    prepare: tuple[Callable[[], tuple], Callable[[], tuple]] = (_nothing, _nothing),
    check: Callable[[Any, Any], None] | None = None,
) -> RatioReport:
    """Times a and b turn by turn; both must block until their work is done.

    The order within a turn alternates, so that neither always runs on the other's warm caches.

    Args:
        a, b: the two routes.
        repeats: timed runs of each.
        warm_up: untimed runs of each before.
        prepare: for each route, what makes its arguments anew before every run, untimed: copies of
            what the route consumes.
        check: sees what a and b returned in each turn, untimed, and raises where that is not the
            work that was to be timed.
    """
    if repeats < 2:
        raise ValueError(f"repeats={repeats} gives no interval; use at least 2, better 7.")
    wall: tuple[list[float], list[float]] = ([], [])
    cpu: tuple[list[float], list[float]] = ([], [])
    for turn in range(-warm_up, repeats):
        done: list[Any] = [None, None]
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            ready = prepare[which]()
            start = time.perf_counter(), time.process_time()
            done[which] = (a, b)[which](*ready)
            taken = time.perf_counter() - start[0], time.process_time() - start[1]
            if turn >= 0:
                wall[which].append(taken[0])
                cpu[which].append(taken[1])
        if check is not None:
            check(*done)
    report = ratio_of(*wall)
    if min(cpu[0]) <= 0 or min(cpu[1]) <= 0:
        return report
    busy = ratio_of(*cpu)
    return dataclasses.replace(report, cpu_median=busy.median, cpu_low=busy.low, cpu_high=busy.high)


def ratio_of(a_seconds, b_seconds) -> RatioReport:
    """The report of two series of runs."""
    first, second = np.asarray(a_seconds, float), np.asarray(b_seconds, float)
    rng = np.random.default_rng(0)
    draws = [
        np.median(rng.choice(series, (_RESAMPLES, series.size)), axis=1)
        for series in (first, second)
    ]
    low, high = np.percentile(draws[0] / draws[1], [2.5, 97.5])
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
        "commit": _commit(),
    }


def _cpu_model() -> str:
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str:
    here = pathlib.Path(__file__).parent
    git = ["git", "-C", str(here)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        return "unknown"
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True, check=False)
    return head.stdout.strip() + ("+changes" if changed.returncode else "")
