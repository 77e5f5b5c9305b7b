"""Runs as their folders hold them: what `evaluate` and `sweep` wrote, read back for a report.

A run is read from its files alone; no model, benchmark or picture folder is needed. Every file is
typed, so one that was changed by hand is one line that names the place.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from vlm_jax.errors import UserError
from vlm_jax.evals.base import Metric
from vlm_jax.evals.comparison import ArmResult, Comparison, Contrast
from vlm_jax.evals.frontier import FrontierPoint, Gap
from vlm_jax.evals.results import Results, StoredInterval, read_results
from vlm_jax.evals.statistics import RankTest
from vlm_jax.evals.sweeps import Dose
from vlm_jax.files import slug
from vlm_jax.foreign import convert, parse_json, plain_name, read_bytes, read_json

RESULTS, ITEMS, GALLERY, ATTENTION, HEADS, EDITS = (
    "results.json", "items.jsonl", "gallery.json", "attention.json", "heads.json", "edits.json",
)  # fmt: skip
DEV, TEST = "dev", "test"
CHOSEN = "chosen.json"
"""Of a test split: the one setting that is measured on it."""

Rows = Mapping[Any, Mapping[str, Any]]
"""Id -> a line of `items.jsonl`."""


class _Metric(msgspec.Struct):
    better: Literal["low", "high", ""]
    unit: str
    primary: bool
    shown: bool


class _Point(msgspec.Struct):
    bias: float
    recall: float
    metric: float
    length: float


class _Frontier(msgspec.Struct):
    benchmarks: list[str]
    points: list[_Point]


class _Arm(msgspec.Struct):
    draws: int
    frontier_gap: StoredInterval | str | None = None
    frontier_length_gap: StoredInterval | None = None
    frontier_gaps_by_draw: list[float | str] = []
    pooled: dict[str, list[float]] = {}
    resamples_out_of_range: float = 0.0
    range_over_draws: dict[str, dict[str, tuple[float, float]]] = {}
    seeds: list[int] = []
    edit: dict[str, Any] = {}
    matched_quantities: list[dict[str, Any]] = []
    acted: list[dict[str, Any]] = []


class _Contrast(msgspec.Struct):
    edit: str
    control: str
    draws: int
    differences: dict[str, dict[str, StoredInterval]]
    rank_p: dict[str, float | None] = {}
    frontier_gap_rank_p: float | None = None


class _Comparison(msgspec.Struct):
    items: dict[str, int]
    level: float
    metrics: dict[str, dict[str, _Metric]]
    arms: dict[str, _Arm]
    frontier: _Frontier | None = None
    controls: list[_Contrast] = []
    failures: dict[str, dict[str, str]] = {}


class _Setting(msgspec.Struct):
    """A setting of a sweep; its swept fields are beside these."""

    draws: int
    value: float
    detectable: float
    change: StoredInterval
    items: int | None = None
    p: float | None = None
    p_holm: float | None = None
    p_max_t: float | None = None
    recall: StoredInterval | None = None
    simultaneous: StoredInterval | None = None

    def dose(self, name: str) -> Dose:
        """Returns the effect that was written."""
        fields = {key: getattr(self, key) for key in self.__struct_fields__}
        for key in ("change", "recall", "simultaneous"):
            fields[key] = None if fields[key] is None else fields[key].interval()
        return Dose(name, **fields)


class _Top(msgspec.Struct):
    """The `results.json` of a run; what it needs of any kind of run."""

    comparison: _Comparison | None = None
    models: dict[str, Any] | None = None
    compared: dict[str, dict[str, dict[str, dict[str, StoredInterval]]]] | None = None
    config: dict[str, Any] = {}
    made: dict[str, Any] = {}
    settings: dict[str, dict[str, Any]] | None = None
    metric: str = ""
    benchmarks: list[str] = []
    chosen: str | None = None
    test: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep chose from.

    Attributes:
        metric: what is judged.
        benchmarks: which are pooled.
        doses: the effect of every setting.
        settings: setting -> swept field -> value.
        chosen: the setting that was chosen, if any.
        test: its effect on the test split, and the run there.
    """

    metric: str
    benchmarks: tuple[str, ...]
    doses: tuple[Dose, ...]
    settings: Mapping[str, Mapping[str, Any]]
    chosen: str | None
    test: tuple[Dose, "Run"] | None = None


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of one model.

    Attributes:
        folder: where its arms' answers are.
        model: what was measured.
        comparison: of its arms.
        about: the result whose config, versions, seeds and device a report names.
        sizes: arm -> summary of its edit, one a draw.
        acted: arm -> what its attention methods did, one a draw.
        failures: benchmark -> id -> why it could not be read.
        edits: arm -> what its edit of weights is.
        sweep: of a sweep.
    """

    folder: Path
    model: str
    comparison: Comparison
    about: Results
    sizes: Mapping[str, Sequence[Mapping[str, Any]]]
    acted: Mapping[str, Sequence[Mapping[str, Any]]]
    failures: Mapping[str, Mapping[str, str]]
    edits: Mapping[str, Mapping[str, Any]]
    sweep: Sweep | None = None
    seeds: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)

    def rows(self, benchmark: str) -> dict[str, Rows]:
        """Arm -> what was found in its answers to a benchmark; of random arms the first draw."""
        found = {}
        for arm in self.comparison.arms:
            folder = self.folder / slug(benchmark) / slug(arm.name)
            if arm.draws > 1 or not (folder / ITEMS).is_file():
                first = next(iter(self.seeds.get(arm.name, ())), 0)
                folder = folder / f"seed_{first}"
            found[arm.name] = read_items(folder / ITEMS)
        return found

    def document(self, name: str, benchmark: str = "") -> Any:
        """The JSON of a further file of the run, or of one of its benchmarks; None without it."""
        path = self.folder / slug(benchmark) / name if benchmark else self.folder / name
        return read_json(path, dict[str, Any], error=UserError) if path.is_file() else None


@dataclasses.dataclass(frozen=True)
class StoredRuns:
    """Runs of several models.

    Attributes:
        runs: by name.
        compared: the models as they are on the same items; None where they were not asked alike.
    """

    runs: Mapping[str, Run]
    compared: Comparison | None = None


def read_run(folder: Path) -> Run | StoredRuns:
    """Reads the folder of an `evaluate` or a `sweep`.

    Raises:
        UserError: it holds none, or one of its files is not what these jobs write.
    """
    path = folder / RESULTS
    if not path.is_file():
        raise UserError(f"{folder} holds no {RESULTS}; name the --workdir of an evaluate or sweep.")
    top = _top(path)
    if top.models is not None:
        runs = {
            name: _run_of(folder / plain_name(name, str(path), error=UserError))
            for name in top.models
        }
        return StoredRuns(runs, _models(top, runs))
    return _run_of(folder, top)


def read_items(path: Path) -> Rows:
    """Returns what was found in the answers of an arm, by id; none where the file is not there."""
    if not path.is_file():
        return {}
    rows: dict[Any, Mapping[str, Any]] = {}
    for number, line in enumerate(read_bytes(path, error=UserError).splitlines(), 1):
        if line.strip():
            row = parse_json(line, dict[str, Any], f"{path}, line {number}", UserError)
            rows[row.get("id")] = row
    return rows


def _top(path: Path) -> _Top:
    return read_json(path, _Top, error=UserError)


def _run_of(folder: Path, top: _Top | None = None) -> Run:
    path = folder / RESULTS
    if top is None:
        top = _top(path)
    if top.comparison is None:
        raise UserError(
            f"{path} holds no comparison that a report can be made of; run evaluate or sweep again "
            "with this --workdir (answers that are there are kept)."
        )
    stored, held = top.comparison, folder if top.settings is None else folder / DEV
    levels = {
        benchmark: {
            arm: read_results(held / slug(benchmark) / slug(arm) / RESULTS) for arm in stored.arms
        }
        for benchmark in stored.metrics
    }
    comparison = _comparison(stored, levels)
    first = next(iter(next(iter(levels.values())).values()))
    about = dataclasses.replace(first, config={**first.config, **top.config}, made=top.made)
    run = Run(
        folder=held,
        model=Path(str(first.config.get("source", folder))).name,
        comparison=comparison,
        about=about,
        sizes={a: one.matched_quantities for a, one in stored.arms.items() if one.edit},
        acted={a: one.acted for a, one in stored.arms.items() if one.acted},
        failures=stored.failures,
        edits={a: one.edit for a, one in stored.arms.items() if one.edit},
        seeds={a: one.seeds for a, one in stored.arms.items()},
    )
    return run if top.settings is None else dataclasses.replace(run, sweep=_sweep(folder, top))


def _sweep(folder: Path, top: _Top) -> Sweep:
    where, known = str(folder / RESULTS), set(_Setting.__struct_fields__)
    read = lambda fields: convert(fields, _Setting, where, UserError)
    doses = tuple(read(one).dose(name) for name, one in (top.settings or {}).items())
    test = None if top.test is None else read(top.test).dose("chosen")
    swept = {
        name: {key: value for key, value in one.items() if key not in known}
        for name, one in (top.settings or {}).items()
    }
    both = None if test is None else (test, _run_of(folder / TEST))
    return Sweep(top.metric, tuple(top.benchmarks), doses, swept, top.chosen, both)


def _comparison(stored: _Comparison, levels: Mapping[str, Mapping[str, Results]]) -> Comparison:
    return Comparison(
        items=stored.items,
        metrics={
            benchmark: {
                name: Metric(_gone, one.better, one.unit, one.primary, one.shown)
                for name, one in metrics.items()
            }
            for benchmark, metrics in stored.metrics.items()
        },
        arms=tuple(_arm(name, one, levels) for name, one in stored.arms.items()),
        contrasts=tuple(map(_contrast, stored.controls)),
        points=tuple(
            FrontierPoint(p.bias, p.recall, p.metric, p.length)
            for p in (stored.frontier.points if stored.frontier else ())
        ),
        pooled=tuple(stored.frontier.benchmarks) if stored.frontier else (),
        level=stored.level,
    )


def _arm(name: str, stored: _Arm, levels: Mapping[str, Mapping[str, Results]]) -> ArmResult:
    own = {benchmark: arms[name] for benchmark, arms in levels.items()}
    gaps = []
    for number, gap in enumerate(stored.frontier_gaps_by_draw):
        known = None
        if isinstance(gap, float | int):
            single = stored.frontier_gap if len(stored.frontier_gaps_by_draw) == 1 else None
            value = StoredInterval(gap) if not isinstance(single, StoredInterval) else single
            known = value.interval()
        length = stored.frontier_length_gap
        at = stored.pooled["recall"][number]
        outside = stored.resamples_out_of_range
        gaps.append(Gap(known, length and length.interval(), at, (math.nan, math.nan), outside))
    return ArmResult(
        name=name,
        draws=stored.draws,
        levels={benchmark: found.metrics for benchmark, found in own.items()},
        changes={b: found.differences for b, found in own.items() if found.differences},
        spread=stored.range_over_draws,
        gaps=tuple(gaps),
        pooled={metric: tuple(values) for metric, values in stored.pooled.items()},
    )


def _contrast(stored: _Contrast) -> Contrast:
    rank = lambda p: RankTest(math.nan if p is None else p, stored.draws)
    gap = stored.frontier_gap_rank_p
    return Contrast(
        stored.edit,
        stored.control,
        stored.draws,
        {
            benchmark: {name: one.interval() for name, one in metrics.items()}
            for benchmark, metrics in stored.differences.items()
        },
        {name: rank(p) for name, p in stored.rank_p.items()},
        None if gap is None else rank(gap),
    )


def _models(top: _Top, runs: Mapping[str, Run]) -> Comparison | None:
    if top.compared is None:
        return None
    first = next(iter(runs.values())).comparison
    read = lambda found: {name: one.interval() for name, one in found.items()}
    arms = {
        model: ArmResult(
            model,
            1,
            {b: read(own[model]["metrics"]) for b, own in top.compared.items()},
            {
                b: read(own[model]["differences"])
                for b, own in top.compared.items()
                if own[model]["differences"]
            },
            {},
        )
        for model in runs
    }
    return Comparison(first.items, first.metrics, tuple(arms.values()), level=first.level)


def _gone(totals: Any) -> Any:
    raise ValueError("a metric that was read back has its value, not its formula")
