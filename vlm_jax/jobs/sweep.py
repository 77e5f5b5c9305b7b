"""Sweeps the settings of an edit on a development split; reports one on the test split.

`config.sweep` lists values for fields of `config.edit`; every combination is a setting. All share
one loaded model, the unedited run and the factors of each layer. `config.choose` says how one of
them is chosen; that one, and nothing else, is measured on the test split beside its controls.
"""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_jax import checkpoint
from vlm_jax.errors import ConfigError
from vlm_jax.evals.base import Benchmark
from vlm_jax.evals.comparison import Comparison, primary_metric
from vlm_jax.evals.results import protocol_hash, write_json
from vlm_jax.evals.sweeps import Dose, choose, dose_response
from vlm_jax.jobs.arms import UNEDITED, Arm, ArmReader, Setting, check_folders
from vlm_jax.jobs.evaluate import (
    Evaluation,
    compare_arms,
    evaluate,
    read_benchmarks,
    show,
    write_reports,
)
from vlm_jax.jobs.measure import Session
from vlm_jax.jobs.request import Request
from vlm_jax.jobs.runtime import provenance
from vlm_jax.jobs.say_less import read_say_less
from vlm_jax.report.comparison import comparison_tables
from vlm_jax.report.page import FRONTIER_NOTE, frontier_plot, page, section
from vlm_jax.report.sweep import dose_plot, dose_table, setting_name
from vlm_jax.steering.qk import CONTROLS, QKEdit

GAP = "gap"
CHOSEN = "chosen"


def run(request: Request) -> None:
    """Sweeps `config.sweep` over `--source`; writes to `--workdir`.

    Answers of the settings are under `dev`, the whole table is in `results.json`, `report.md` and
    `report.html`, and the chosen setting's evaluation is under `test`, as `evaluate` writes it.
    """
    config, workdir = request.config, request.need("workdir")
    source = checkpoint.open_folder(request.need("source"))
    benchmarks = read_benchmarks(config.benchmarks, source.config.family)
    test = read_test_benchmarks(config, benchmarks, source.config.family)
    say_less = read_say_less(config.frontier, benchmarks)
    rule = Rule.read(config.choose, has_frontier=say_less is not None)
    reader = ArmReader.of(config, source)
    grid = read_grid(config.sweep, reader)
    for left_out in grid.left_out:
        print(f"left out: {left_out}")
    for arm in grid.arms:
        for edit in arm.edits:
            edit.layers(source.config.decoder.num_layers)
    session = Session(request)
    arms = [Arm(UNEDITED), *grid.arms]
    found = compare_arms(request, session, benchmarks, arms, say_less, workdir / "dev")
    chosen = _report(request, found, benchmarks, grid, rule, workdir)
    if chosen is None:
        print(
            "No setting keeps recall as config.choose asks; nothing is measured on the test split."
        )
        return
    print(f"\nChosen on the development split: {chosen} ({rule}).")
    if not test:
        print("config.test is empty: nothing is measured on a test split.")
        return
    edit = next(arm.edits[0] for arm in grid.arms if arm.name == chosen)
    _only_once(workdir / "test" / "chosen.json", chosen, edit)
    finalists = [Arm(UNEDITED), Arm(CHOSEN, (Setting(edit.seed, edit),))]
    for control in rule.controls:
        values = {**dataclasses.asdict(edit), "control": control}
        where = f"config.choose.controls, {control}"
        finalists.append(reader.arm(control, values, where))
    print("\nTest split")
    evaluate(request, session, test, finalists, say_less, workdir / "test")


@dataclasses.dataclass(frozen=True)
class Rule:
    """How a setting is chosen.

    Attributes:
        metric: what is optimised: "gap" (to the say-less frontier) or a metric, pooled.
        max_recall_drop: settings that lose more recall, as a fraction, are not considered.
        controls: measured beside the chosen setting on the test split.
    """

    metric: str
    max_recall_drop: float
    controls: tuple[str, ...]

    @classmethod
    def read(cls, section: Mapping[str, Any], *, has_frontier: bool) -> "Rule":
        """Reads `config.choose`.

        Raises:
            ConfigError: a key or a value is wrong.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = [key for key in section if key not in known]
        if unknown:
            raise ConfigError(
                f"config.choose has no key {unknown[0]!r}; it knows {', '.join(known)}."
            )
        rule = cls(**{**dict(section), "controls": tuple(section["controls"])})
        if rule.metric == GAP and not has_frontier:
            raise ConfigError("config.choose.metric='gap' needs config.frontier.biases; set some.")
        wrong = [control for control in rule.controls if control not in CONTROLS or not control]
        if wrong:
            raise ConfigError(
                f"config.choose.controls holds {wrong[0]!r}; it knows "
                f"{', '.join(word for word in CONTROLS if word)}."
            )
        return rule

    def __str__(self) -> str:
        drop = f"{100 * self.max_recall_drop:g} points of recall"
        return f"best {self.metric} among settings that lose at most {drop}"


@dataclasses.dataclass(frozen=True)
class Grid:
    """The settings of a sweep.

    Attributes:
        arms: one a setting.
        settings: arm -> swept field -> value.
        left_out: combinations that no edit can have, with the reason.
    """

    arms: tuple[Arm, ...]
    settings: Mapping[str, Mapping[str, Any]]
    left_out: tuple[str, ...] = ()


def read_grid(sweep: Mapping[str, Any], reader: ArmReader) -> Grid:
    """Makes every combination of the values that `config.sweep` lists.

    Combinations that contradict themselves, such as an odd k in the antisymmetric channel, are left
    out with the reason.

    Raises:
        ConfigError: nothing is listed, a field is unknown, or no combination is possible.
    """
    fields = tuple(field.name for field in dataclasses.fields(QKEdit))
    lists: dict[str, list[Any]] = {}
    for name, values in sweep.items():
        if name not in fields:
            raise ConfigError(
                f"config.sweep has no field {name!r}; it knows {', '.join(sorted(fields))}."
            )
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise ConfigError(f"config.sweep.{name} must list values, not {values!r}.")
        if name == "band" and not all(isinstance(value, Sequence) for value in values):
            raise ConfigError(
                f"config.sweep.band must list (first, last) pairs, not {tuple(values)!r}."
            )
        if values:
            lists[name] = list(values)
    if not lists:
        raise ConfigError(
            "config.sweep lists no value; name some, such as config.sweep.strength=(0.25,0.5), or "
            "use --config=configs/sweep.py."
        )
    # The control varies fastest, so that a setting and its controls are neighbours in the table.
    order = sorted(lists, key=lambda name: (name == "control", name != "method"))
    arms, settings, left_out = [], {}, []
    for combination in itertools.product(*(lists[name] for name in order)):
        values = dict(zip(order, combination))
        varied = {key: v for key, v in values.items() if len(lists[key]) > 1 or key == "control"}
        name = setting_name(varied) or "edit"
        try:
            arms.append(reader.arm(name, values, name))
            settings[name] = varied
        except ConfigError as error:
            left_out.append(str(error))
    if all(arm.is_control for arm in arms):
        reason = f" ({left_out[0]})" if left_out else ""
        raise ConfigError(
            f"config.sweep holds no possible edit{reason}; config.sweep.control must list '' too."
        )
    check_folders(arms)
    return Grid(tuple(arms), settings, tuple(left_out))


def read_test_benchmarks(
    config: Any, benchmarks: Mapping[str, Benchmark], family: str
) -> dict[str, Benchmark]:
    """Makes the test split's benchmarks: those of the config, changed as `config.test` says.

    Raises:
        ConfigError: a benchmark is unknown, or a test split is its development split.
    """
    sections = {}
    for name, changes in config.test.items():
        if name not in benchmarks:
            raise ConfigError(
                f"config.test.{name} is none of the benchmarks, {', '.join(benchmarks)}."
            )
        sections[name] = {**dict(config.benchmarks[name]), **dict(changes)}
    made = read_benchmarks(sections, family) if sections else {}
    for name, benchmark in made.items():
        if protocol_hash(benchmark.protocol()) == protocol_hash(benchmarks[name].protocol()):
            raise ConfigError(
                f"config.test.{name} is the development split itself; a setting must be reported "
                "on items that it was not chosen on."
            )
    missing = [name for name in benchmarks if name not in made]
    if made and missing:
        raise ConfigError(f"config.test lacks {missing[0]!r}; every benchmark needs a test split.")
    return made


def _report(
    request: Request,
    found: Evaluation,
    benchmarks: Mapping[str, Benchmark],
    grid: Grid,
    rule: Rule,
    workdir: pathlib.Path,
) -> str | None:
    """Writes and prints the sweep; returns the chosen setting."""
    config, comparison = request.config, found.comparison
    pooled, metric = _judged(comparison, rule.metric)
    first = found.measured.tables[UNEDITED][pooled[0]][0]
    tested = [arm.name for arm in grid.arms if not arm.is_control]
    doses = dose_response(
        found.measured.tables,
        benchmarks[pooled[0]].metrics(first.totals()),
        metric,
        pooled,
        tested,
        draws=config.bootstrap_draws,
        seed=config.seed,
    )
    gaps = {arm.name: arm.mean_gap for arm in comparison.arms}
    values = {d.name: gaps[d.name] if rule.metric == GAP else d.value for d in doses}
    candidates = [dose for dose in doses if dose.name in tested]
    chosen = choose(candidates, values, rule.metric, rule.max_recall_drop)
    dose_rows = dose_table(doses, comparison, metric, pooled, chosen)
    tables = [dose_rows, *comparison_tables(comparison, found.sizes)]
    document = {
        "sweep": {name: list(values) for name, values in config.sweep.to_dict().items()},
        "left_out": list(grid.left_out),
        "rule": dataclasses.asdict(rule),
        "chosen": chosen,
        "metric": metric,
        "benchmarks": list(pooled),
        "settings": {d.name: {**grid.settings[d.name], **d.document()} for d in doses},
        "comparison": found.document(),
        **provenance(config),
    }
    write_json(workdir / "results.json", document)
    title = f"{request.need('source').name}: sweep"
    about = next(iter(found.results[pooled[0]].values()))
    plots = _plots(doses, grid, metric in comparison.units, metric)
    if comparison.points:
        plots.append(section("The say-less frontier", frontier_plot(comparison), FRONTIER_NOTE))
    html = page(title, [*plots, *(table.html() for table in tables)], about)
    write_reports(workdir, title, tables, html)
    show([dose_rows], found.measured)
    print(f"Results: {workdir / 'results.json'}, {workdir / 'report.html'}")
    return chosen


def _judged(comparison: Comparison, wanted: str) -> tuple[tuple[str, ...], str]:
    """The benchmarks that are pooled and the metric that is judged: captions before questions."""
    levels = comparison.baseline.levels
    captions = tuple(name for name in levels if "C_S" in levels[name])
    pooled = captions or tuple(levels)
    metric = primary_metric(levels[pooled[0]]) if wanted == GAP else wanted
    for name in pooled:
        if metric not in levels[name]:
            raise ConfigError(
                f"config.choose.metric={wanted!r} is no metric of {name}, which has "
                f"{', '.join(levels[name])}."
            )
    return pooled, metric


def _plots(doses: Sequence[Dose], grid: Grid, plain: bool, metric: str) -> list[str]:
    """A dose-response plot for each swept field with several numbers for values."""
    plots = []
    for axis in ("strength", "k", "energy", "alignment_min"):
        values = {one.get(axis) for one in grid.settings.values()}
        if len(values) > 1 and None not in values:
            plot = dose_plot(doses, grid.settings, axis, metric, plain)
            plots.append(section(f"Change of {metric} against {axis}", plot))
    return plots


def _only_once(path: pathlib.Path, chosen: str, edit: QKEdit) -> None:
    """Records the setting that sees the test split, and refuses a second one.

    Raises:
        ConfigError: the folder's test split was used for another setting.
    """
    record = {"setting": chosen, "edit": repr(edit)}
    if path.exists() and (before := json.loads(path.read_text(encoding="utf-8"))) != record:
        raise ConfigError(
            f"the test split was used for {before['setting']!r} already ({path}); choosing again "
            "after seeing it is tuning on it. Use another --workdir for another study."
        )
    write_json(path, record)
