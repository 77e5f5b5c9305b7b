"""The `results.json` document and the plain-text tables that jobs print."""

import functools
import hashlib
import importlib.metadata
import json
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from vlm_jax.errors import UserError
from vlm_jax.evals.statistics import Interval
from vlm_jax.files import replace_file
from vlm_jax.foreign import read_json
from vlm_jax.terminal import folded, shown


@dataclass(frozen=True)
class Results:
    """One arm's results on one benchmark.

    Attributes:
        benchmark: its name.
        metrics: name -> value with interval; fractions unless `units` says otherwise.
        counts: name -> total.
        n: items scored.
        differences: metric -> paired difference from the baseline arm, where there is one.
        units: unit of the metrics that are not fractions.
        hidden: metrics that tables leave out.
        tests: metric -> exact two-sided McNemar p against the baseline, where items have outcomes.
        config: the settings that made the result.
        versions: package -> version.
        seeds: purpose -> seed.
        device: what the model ran on.
        protocol: hash of everything that must be equal for two results to be comparable.
        protocol_parts: what it is the hash of, see `vlm_jax.evals.protocol`.
        notes: anything a reader must know, one sentence each.
        prompt: the first item's whole prompt, as the chat template writes it; "" without a model.
        made: when, by which command and of which commit; of a job's top result alone.
    """

    benchmark: str
    metrics: Mapping[str, Interval]
    counts: Mapping[str, int]
    n: int
    differences: Mapping[str, Interval] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()
    tests: Mapping[str, float] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=lambda: package_versions())
    seeds: Mapping[str, int] = field(default_factory=dict)
    device: str = "none (scored without a model)"
    protocol: str = ""
    protocol_parts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    prompt: str = ""
    made: Mapping[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The JSON document; NaN becomes null."""
        return {
            "benchmark": self.benchmark,
            "metrics": {name: interval_fields(entry) for name, entry in self.metrics.items()},
            "differences": {
                name: interval_fields(entry) for name, entry in self.differences.items()
            },
            "counts": dict(self.counts),
            "n": self.n,
            "units": dict(self.units),
            "hidden": list(self.hidden),
            "tests": dict(self.tests),
            "config": dict(self.config),
            "versions": dict(self.versions),
            "seeds": dict(self.seeds),
            "device": self.device,
            "protocol": self.protocol,
            "protocol_parts": dict(self.protocol_parts),
            "notes": list(self.notes),
            **({"prompt": self.prompt} if self.prompt else {}),
            **({"made": dict(self.made)} if self.made else {}),
        }

    def write(self, path: str | Path) -> Path:
        """Writes the document, whole or not at all."""
        return write_json(path, self.document())

    def table(self) -> str:
        """A readable table of the metrics, then the counts and the notes."""
        lines = [metric_table([(self.benchmark, self)])]
        counts = (f"{n} {count}" for n, count in self.counts.items() if "/" not in n)
        lines.append(folded("  ".join(counts)))
        lines.extend(f"{name}: exact McNemar p {p:.2g}" for name, p in self.tests.items())
        lines.extend(folded(f"note: {note}", "  ") for note in self.notes)
        return "\n".join(lines)


class StoredInterval(msgspec.Struct):
    """An interval as JSON; null is no number."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def interval(self) -> Interval:
        """Returns what was written."""
        ends = (self.value, self.low, self.high)
        return Interval(*(math.nan if end is None else end for end in ends))


class _Stored(msgspec.Struct):
    """A results document, as it is read."""

    benchmark: str
    metrics: dict[str, StoredInterval]
    counts: dict[str, int]
    n: int
    config: dict[str, Any]
    versions: dict[str, str]
    seeds: dict[str, int]
    device: str
    differences: dict[str, StoredInterval] = {}
    units: dict[str, str] = {}
    hidden: tuple[str, ...] = ()
    tests: dict[str, float | None] = {}
    protocol: str = ""
    protocol_parts: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    prompt: str = ""
    made: dict[str, Any] = {}


def read_results(path: str | Path) -> Results:
    """Reads a `results.json` back.

    Raises:
        UserError: the file cannot be read, or is no such document; names the place in it.
    """
    stored = read_json(Path(path), _Stored, error=UserError)
    fields = {name: getattr(stored, name) for name in stored.__struct_fields__}
    found: dict[str, Any] = {
        part: {name: one.interval() for name, one in fields.pop(part).items()}
        for part in ("metrics", "differences")
    }
    found["tests"] = {n: math.nan if p is None else p for n, p in fields.pop("tests").items()}
    return Results(**fields, **found)


def interval_fields(interval: Interval) -> dict[str, float | None]:
    """An interval as JSON: value, low, high; null where it is not a number."""
    ends = (interval.value, interval.low, interval.high)
    return {
        name: float(end) if math.isfinite(end) else None
        for name, end in zip(("value", "low", "high"), ends)
    }


def protocol_hash(protocol: Mapping[str, Any]) -> str:
    """A short hash of a protocol: equal for equal content, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:16]


def package_versions(packages: Iterable[str] = ("vlm_jax", "numpy")) -> dict[str, str]:
    """Versions of Python and of some installed packages; "source" for one that is not installed."""
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


@functools.cache
def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "source"


def write_json(path: str | Path, document: Any) -> Path:
    """Writes JSON under a temporary sibling name and renames it, so that no half-written file is
    seen.

    Raises:
        UserError: the folder cannot be made or written.
    """
    replace_file(path, json.dumps(document, indent=2, allow_nan=False, default=_plain) + "\n")
    return Path(path)


def metric_table(arms: Sequence[tuple[str, Results]], metrics: Sequence[str] | None = None) -> str:
    """Returns a table with a row an arm and a column a metric, "value [low, high]" in each cell.

    Fractions are shown in percent. Where an arm has differences from a baseline, a second row
    under it shows them, "*" marking an interval that excludes 0.

    Raises:
        ValueError: there is no arm.
    """
    if not arms:
        raise ValueError("a table needs at least one arm")
    hidden = {name for _, arm in arms for name in arm.hidden}
    every = dict.fromkeys(name for _, arm in arms for name in arm.metrics)
    names = list(metrics or (name for name in every if name not in hidden))
    units = {name: unit for _, arm in arms for name, unit in arm.units.items()}
    headers = ["", *(f"{name} ({units.get(name, '%')})" for name in names), "n"]
    rows = []
    for label, arm in arms:
        cells = [_cell(arm.metrics.get(name), name in units) for name in names]
        rows.append([label, *cells, str(arm.n)])
        if arm.differences:
            cells = [_cell(arm.differences.get(name), name in units, signed=True) for name in names]
            rows.append(["  vs baseline", *cells, ""])
    return shown(headers, rows)


def _cell(entry: Interval | None, plain: bool, signed: bool = False) -> str:
    if entry is None or math.isnan(entry.value):
        return "-"
    scale = 1 if plain else 100
    sign = "+" if signed else ""
    text = f"{scale * entry.value:{sign}.1f}"
    if math.isnan(entry.low) or math.isnan(entry.high):
        return text
    mark = "*" if signed and entry.excludes_zero else ""
    return f"{text}{mark} [{scale * entry.low:{sign}.1f}, {scale * entry.high:{sign}.1f}]"


def _plain(value: Any) -> Any:
    """NumPy scalars, tuples and paths as JSON values."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "to_dict"):
        return value.to_dict()
    raise TypeError(f"{type(value).__name__} {value!r} does not fit into JSON")
