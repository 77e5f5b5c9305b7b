"""Sweeps settings of an edit or a method on a development split; reports one on the test split.

`config.sweep` lists values for fields of `config.edit` or of attention methods (`grids`); every
combination is a setting. All share one loaded model, the unedited run, and the factors of each
layer or the programs of a method. `config.choose` says how one of them is chosen; that one, and
nothing else, is measured on the test split beside its controls.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_jax import checkpoint
from vlm_jax.edits.qk import QKEdit
from vlm_jax.errors import ConfigError
from vlm_jax.evals.base import Suite
from vlm_jax.evals.comparison import Comparison
from vlm_jax.evals.results import protocol_hash, write_json
from vlm_jax.evals.suites import read_benchmarks
from vlm_jax.evals.sweeps import Dose, choose, dose_response
from vlm_jax.foreign import read_json
from vlm_jax.made import made
from vlm_jax.parallel import processes
from vlm_jax.report.run import report_of
from vlm_jax.report.stored import read_run
from vlm_jax.report.tables import Table
from vlm_jax.report.written import read_settings, write_report
from vlm_jax.settings import listed, number, read, refuse_unknown, setting, text
from vlm_jax.study.arms import Arm, ArmReader, Draw
from vlm_jax.study.evaluation import Evaluation, compare_arms, evaluate, keep, show
from vlm_jax.study.grids import Grid, read_grid
from vlm_jax.study.request import Request
from vlm_jax.study.runtime import provenance
from vlm_jax.study.say_less import read_say_less
from vlm_jax.study.session import Session

GAP = "gap"
CHOSEN = "chosen"


def run(request: Request) -> None:
    """Sweeps `config.sweep` over `--source`; writes to `--workdir`.

    Answers of the settings are under `dev`, the whole table is in `results.json`, `report.md` and
    `report.html`, with the chosen setting on both splits, whose evaluation on the test split is
    under `test`, as `evaluate` writes it.
    """
    config, workdir = request.config, request.need("workdir")
    source = checkpoint.open_folder(request.need("source"))
    benchmarks = read_benchmarks(config.benchmarks, source.config.family)
    test = read_test_benchmarks(config, benchmarks, source.config.family)
    say_less = read_say_less(config.frontier, benchmarks)
    reader = ArmReader.of(config, source)
    grid = read_grid(config.sweep, reader)
    why = (
        "config.sweep varies methods that leave weights alone"
        if grid.steers
        else "config.sweep varies it"
    )
    fields = {field for entry in grid.entries.values() for field in entry}
    own = {field.name for field in dataclasses.fields(QKEdit)}
    request.refuse_edit(why, () if grid.steers else sorted(own - fields))
    rule = Rule.read(config.choose, has_frontier=say_less is not None, known=grid.control_words)
    for arm in grid.tested:
        grid.controls(arm.name, rule.controls, reader)  # refused now, not after the sweep
    for left_out in grid.left_out:
        print(f"left out: {left_out}")
    for arm in grid.arms:
        for edit in arm.edits:
            edit.layers(source.config.decoder.num_layers)
    session = Session(request, source)
    arms = [Arm(reader.as_it_is), *grid.arms]
    found = compare_arms(session, benchmarks, arms, say_less, workdir / "dev")
    report = _Report.of(request, found, benchmarks, grid, rule)
    chosen = report.chosen
    if processes.primary():
        keep(session, found, benchmarks, workdir / "dev")
    show(report.write(workdir)[:1], found.measured)
    print(f"Results: {workdir / 'results.json'}, {workdir / 'report.html'}")
    if chosen is None:
        print(
            "No setting keeps recall as config.choose asks; nothing is measured on the test split."
        )
        return
    print(f"\nChosen on the development split: {chosen} ({rule}).")
    if not test:
        print("config.test is empty: nothing is measured on a test split.")
        return
    draw = next(arm.draws[0] for arm in grid.arms if arm.name == chosen)
    _only_once(workdir / "test" / "chosen.json", chosen, draw)
    controls = grid.controls(chosen, rule.controls, reader)
    finalists = [Arm(reader.as_it_is), Arm(CHOSEN, (draw,)), *controls]
    print(f"\nTest split; {CHOSEN} is {chosen}")
    tested = evaluate(session, test, finalists, say_less, workdir / "test")
    both = report.with_test(tested, test)
    for table in both.write(workdir)[:1]:
        print(f"\n{table.text()}")


@dataclasses.dataclass(frozen=True)
class Rule:
    """How a setting is chosen.

    Attributes:
        metric: what is optimised: "gap" (to the say-less frontier) or a metric, pooled.
        max_recall_drop: settings that lose more recall, as a fraction, are not considered.
        controls: measured beside the chosen setting on the test split.
    """

    metric: str = setting("C_S", text)
    max_recall_drop: float = setting(0.01, number, low=-1, high=1)
    controls: tuple[str, ...] = setting((), listed, each=text)

    @classmethod
    def read(
        cls, section: Mapping[str, Any], *, has_frontier: bool, known: Sequence[str]
    ) -> "Rule":
        """Reads `config.choose`.

        Args:
            section: what it says.
            has_frontier: whether a gap can be measured.
            known: controls that what is swept has.

        Raises:
            ConfigError: a key or a value is wrong.
        """
        rule = read(cls, section, "config.choose")
        if rule.metric == GAP and not has_frontier:
            raise ConfigError("config.choose.metric='gap' needs config.frontier.biases; set some.")
        wrong = [control for control in rule.controls if control not in known]
        if wrong:
            raise ConfigError(
                f"config.choose.controls holds {wrong[0]!r}; controls of what is swept are "
                f"{', '.join(known)}."
            )
        return rule

    def __str__(self) -> str:
        points = 100 * self.max_recall_drop
        drop = f"{points:g} point{'' if points == 1 else 's'} of recall"
        return f"best {self.metric} among settings that lose at most {drop}"


def read_test_benchmarks(
    config: Any, benchmarks: Mapping[str, Suite], family: str
) -> dict[str, Suite]:
    """Makes the test split's benchmarks: those of the config, changed as `config.test` says.

    Raises:
        ConfigError: a benchmark is unknown, or a test split is its development split.
    """
    sections = {}
    refuse_unknown(config.test, benchmarks, "config.test")
    for name, changes in config.test.items():
        if not hasattr(changes, "items"):
            raise ConfigError(f"config.test.{name} must be a mapping of settings, not {changes!r}.")
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


@dataclasses.dataclass(frozen=True)
class _Report:
    """What a sweep found.

    Attributes:
        request: of the job.
        found: the comparison on the development split.
        grid: its settings.
        rule: how one was chosen.
        metric: what is judged.
        pooled: the benchmarks that it is judged on.
        doses: the effect of every setting.
        chosen: the setting that was chosen, or None.
        test: its effect on the test split, and the comparison there.
    """

    request: Request
    found: Evaluation
    grid: Grid
    rule: Rule
    metric: str
    pooled: tuple[str, ...]
    doses: Sequence[Dose]
    chosen: str | None
    test: tuple[Dose, Comparison] | None = None

    @classmethod
    def of(
        cls,
        request: Request,
        found: Evaluation,
        benchmarks: Mapping[str, Suite],
        grid: Grid,
        rule: Rule,
    ) -> "_Report":
        """Judges the settings of a grid, and chooses one."""
        pooled, metric = _judged(found.comparison, rule.metric)
        tested = [arm.name for arm in grid.tested]
        doses = _doses(request, found, benchmarks, metric, pooled, tested)
        gaps = {arm.name: arm.mean_gap for arm in found.comparison.arms}
        values = {d.name: gaps[d.name] if rule.metric == GAP else d.value for d in doses}
        candidates = [dose for dose in doses if dose.name in tested]
        better = "low"  # of gaps
        if rule.metric != GAP:
            better = found.comparison.metrics[pooled[0]][metric].better
        chosen = choose(candidates, values, better, rule.max_recall_drop)
        return cls(request, found, grid, rule, metric, pooled, doses, chosen)

    def with_test(self, found: Evaluation, benchmarks: Mapping[str, Suite]) -> "_Report":
        """The report with what the chosen setting does on the test split."""
        doses = _doses(self.request, found, benchmarks, self.metric, self.pooled, [CHOSEN])
        dose = next(dose for dose in doses if dose.name == CHOSEN)
        return dataclasses.replace(self, test=(dose, found.comparison))

    def write(self, workdir: pathlib.Path) -> Sequence[Table]:
        """Returns the tables of the report, what matters first; process 0 writes and has them.

        The first is the chosen setting on both splits, or before that every setting a row.
        """
        if not processes.primary():
            return ()
        write_json(workdir / "results.json", self._document())
        report = report_of(read_run(workdir))
        write_report(report, workdir, read_settings(self.request.config))
        return report.tables

    def _document(self) -> dict[str, Any]:
        test = None
        if self.test is not None:
            arm = next(arm for arm in self.test[1].arms if arm.name == CHOSEN)
            test = {**self.test[0].document(), "frontier_gap": arm.mean_gap}
        settings = self.grid.settings
        return {
            "sweep": {k: list(v) for k, v in self.request.config.sweep.to_dict().items()},
            "left_out": list(self.grid.left_out),
            "rule": dataclasses.asdict(self.rule),
            "chosen": self.chosen,
            "metric": self.metric,
            "benchmarks": list(self.pooled),
            "settings": {d.name: {**settings[d.name], **d.document()} for d in self.doses},
            "test": test,
            "comparison": self.found.document(),
            **provenance(self.request.config),
            "made": made(),
        }


def _doses(
    request: Request,
    found: Evaluation,
    benchmarks: Mapping[str, Suite],
    metric: str,
    pooled: Sequence[str],
    tested: Sequence[str],
) -> list[Dose]:
    """The effects of all arms, those of `tested` corrected together."""
    first = found.measured.tables[found.as_it_is][pooled[0]][0]
    return dose_response(
        found.measured.tables,
        benchmarks[pooled[0]].metrics(first.totals()),
        metric,
        pooled,
        tested,
        draws=request.config.bootstrap_draws,
        seed=request.config.seed,
    )


def _judged(comparison: Comparison, wanted: str) -> tuple[tuple[str, ...], str]:
    """The benchmarks that are pooled and the metric that is judged: captions before questions."""
    levels = comparison.baseline.levels
    captions = tuple(name for name in levels if "C_S" in levels[name])
    pooled = captions or tuple(levels)
    metric = comparison.primary(pooled[0]) if wanted == GAP else wanted
    for name in pooled:
        if metric not in levels[name]:
            raise ConfigError(
                f"config.choose.metric={wanted!r} is no metric of {name}, which has "
                f"{', '.join(levels[name])}."
            )
    return pooled, metric


def _only_once(path: pathlib.Path, chosen: str, draw: Draw) -> None:
    """Records the setting that sees the test split, and refuses a second one.

    Raises:
        ConfigError: the folder's test split was used for another setting.
    """
    record = json.loads(json.dumps({"setting": chosen, **draw.identity}, default=str))
    before = read_json(path, dict[str, Any], error=ConfigError) if path.exists() else record
    if before != record:
        raise ConfigError(
            f"the test split was used for {before.get('setting')!r} already ({path}); choosing "
            "again after seeing it is tuning on it. Use another --workdir for another study."
        )
    write_json(path, record)
