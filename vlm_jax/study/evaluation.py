"""An evaluation: arms measured on benchmarks and compared, written and printed.

The jobs `evaluate` and `sweep` share it.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_jax import terminal
from vlm_jax.evals.base import Suite
from vlm_jax.evals.comparison import Comparison, compare, statistics_of
from vlm_jax.evals.exports import export
from vlm_jax.evals.power import foresight
from vlm_jax.evals.protocol import parts_of
from vlm_jax.evals.results import Results, protocol_hash, write_json
from vlm_jax.evals.statistics import Interval, bootstrap_all
from vlm_jax.evals.tallies import TallyTable
from vlm_jax.files import replace_file, slug
from vlm_jax.made import made
from vlm_jax.parallel import processes
from vlm_jax.report.run import report_of
from vlm_jax.report.stored import read_run
from vlm_jax.report.tables import Table
from vlm_jax.report.verdict import verdicts
from vlm_jax.report.written import ReportSettings, read_settings, write_report
from vlm_jax.study import report as reports
from vlm_jax.study.arms import Arm, heads_file, pair_controls
from vlm_jax.study.request import Request
from vlm_jax.study.runtime import provenance
from vlm_jax.study.say_less import SayLess
from vlm_jax.study.session import Measured, Session
from vlm_jax.treatments import TwoPasses


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        arms: the rows, the source as it is first.
        measured: tallies and edits.
        comparison: of the arms.
        results: benchmark -> arm -> result document.
    """

    arms: Sequence[Arm]
    measured: Measured
    comparison: Comparison
    results: Mapping[str, Mapping[str, Results]]

    @property
    def as_it_is(self) -> str:
        """The name of the first arm, the source as it is."""
        return self.arms[0].name

    @property
    def sizes(self) -> dict[str, list[Mapping[str, Any]]]:
        """Arm -> certificate summary, one a draw."""
        planned = self.measured.planned
        return {
            arm.name: [planned[edit].sizes for edit in arm.edits] for arm in self.arms if arm.edits
        }

    def document(self) -> dict[str, Any]:
        """The comparison as JSON, with what every arm is.

        How many programs were compiled is not part of it: a run that goes on after a kill compiles
        others, and its files are those of an undisturbed one.
        """
        document = self.comparison.document()
        for arm in self.arms:
            entry = document["arms"][arm.name]
            if arm.acts:
                entry["seeds"] = [draw.seed for draw in arm.draws]
            if arm.edits:
                entry["edit"] = dataclasses.asdict(arm.edits[0])
                entry["matched_quantities"] = [dict(sizes) for sizes in self.sizes[arm.name]]
            if arm.methods:
                entry["methods"] = [dict(method) for method in arm.methods]
                entry["acted"] = list(self.measured.acted.get(arm.name, ()))
        document["failures"] = {
            name: dict(found) for name, found in self.measured.failures.items() if found
        }
        return document


def evaluate(
    session: Session,
    benchmarks: Mapping[str, Suite],
    arms: Sequence[Arm],
    say_less: SayLess | None,
    workdir: pathlib.Path,
) -> Evaluation:
    """Measures and compares arms, writes everything to `workdir` and prints the tables.

    Args:
        session: of the job.
        benchmarks, arms, say_less, workdir: see `Session.measure`.
    """
    settings = read_settings(session.config)
    found = compare_arms(session, benchmarks, arms, say_less, workdir)
    if processes.primary():
        _publish(workdir, found)
        keep(session, found, benchmarks, workdir)
        if settings.attention:
            _keep_attention(session, found, benchmarks, workdir, settings)
        report = report_of(read_run(workdir))
        files = write_report(report, workdir, settings)
        show(report.tables, found.measured)
        for verdict in verdicts(found.comparison):
            print(terminal.folded(f"{verdict.arm}: {verdict.text}", "  "))
        print(f"Results: {', '.join(map(str, [workdir / 'results.json', files[0]]))}")
    return found


def keep(
    session: Session,
    found: Evaluation,
    benchmarks: Mapping[str, Suite],
    workdir: pathlib.Path,
) -> None:
    """Writes what a report shows besides results: pictures, head sets, spectra."""
    heads = pathlib.Path(heads_file(session.config, session.source))
    reports.keep(workdir, benchmarks, found.arms, found.measured.planned, heads)


def _keep_attention(
    session: Session,
    found: Evaluation,
    benchmarks: Mapping[str, Suite],
    workdir: pathlib.Path,
    settings: ReportSettings,
) -> None:
    """Writes where the model and its arms looked, without controls and arms of two passes."""
    models = {
        arm.name: arm.draws[0].apply(session.model, found.measured.planned)
        for arm in found.arms
        if not arm.is_control
        and not any(isinstance(one, TwoPasses) for one in arm.draws[0].treatments)
    }
    reports.keep_attention(workdir, benchmarks, models, settings)


def show(tables: Sequence[Table], measured: Measured) -> None:
    """Prints tables, and how many programs were compiled."""
    for table in tables:
        print(f"\n{table.text()}")
    print(f"\n{measured.compiled}")


def compare_arms(
    session: Session,
    benchmarks: Mapping[str, Suite],
    arms: Sequence[Arm],
    say_less: SayLess | None,
    workdir: pathlib.Path,
) -> Evaluation:
    """Measures and compares arms; writes each arm's answers and results."""
    config = session.config
    if len(arms) > 1 and processes.primary():
        print("\n".join(foresight(name, one) for name, one in benchmarks.items()))
    measured = session.measure(benchmarks, arms, workdir, say_less)
    comparison = compare(
        measured.tables,
        {
            name: benchmark.metrics(measured.tables[arms[0].name][name][0].totals())
            for name, benchmark in benchmarks.items()
        },
        sweep=measured.sweep,
        controls=pair_controls(arms),
        draws=config.bootstrap_draws,
        seed=config.seed,
    )
    results = _write_arms(session.request, benchmarks, arms, measured, comparison, workdir)
    return Evaluation(arms, measured, comparison, results)


def _write_arms(
    request: Request,
    benchmarks: Mapping[str, Suite],
    arms: Sequence[Arm],
    measured: Measured,
    comparison: Comparison,
    workdir: pathlib.Path,
) -> dict[str, dict[str, Results]]:
    """Returns the arms' results; process 0 writes them beside the answers of every draw."""
    results: dict[str, dict[str, Results]] = {name: {} for name in benchmarks}
    options = {"draws": request.config.bootstrap_draws, "seed": request.config.seed}
    for arm, row in zip(arms, comparison.arms):
        for name, benchmark in benchmarks.items():
            tables = measured.tables[arm.name][name]
            failed = len(measured.failures.get(name, {}))
            about = (measured.generation, measured.prompts[name], failed)
            describe = _Describe(request, benchmark, arm, *about)
            entry = describe.results(row.levels[name], row.changes.get(name, {}), tables)
            results[name][arm.name] = entry
            if not processes.primary():
                continue
            folder = workdir / slug(name)
            entry.write(folder / slug(arm.name) / "results.json")
            lost = measured.failures[name]
            every = zip(measured.answered[arm.name][name], tables, arm.folders())
            for answered, table, place in every:
                answered.write_items(folder / place / "items.jsonl", lost)
                values, texts = benchmark.report(table.totals()), answered.texts(lost)
                called = slug(arm.name)
                export(folder / place, benchmark, texts, values, request.exports, called)
            if arm.is_random:
                statistics = statistics_of(benchmark.metrics(tables[0].totals()))
                for table, place in zip(tables, arm.folders()):
                    levels = bootstrap_all(statistics, table, **options)
                    describe.results(levels, {}, [table]).write(folder / place / "results.json")
    return results


@dataclasses.dataclass(frozen=True)
class _Describe:
    """What every result of an arm on a benchmark carries."""

    request: Request
    benchmark: Suite
    arm: Arm
    generation: Mapping[str, Any]
    prompt: str
    failed: int = 0

    def results(
        self,
        metrics: Mapping[str, Interval],
        differences: Mapping[str, Interval],
        tables: Sequence[TallyTable],
    ) -> Results:
        """Returns the results of an arm; counts are summed over its draws."""
        found = provenance(self.request.config)
        counts: dict[str, int] = {}
        for table in tables:
            for field, count in table.totals().items():
                counts[field] = counts.get(field, 0) + count
        notes = [f"Metrics are means over {len(tables)} draws."] if len(tables) > 1 else []
        if self.failed:
            notes.append(f"{self.failed} items could not be read and are left out of all arms.")
        notes += self.benchmark.notes()
        known = self.benchmark.metrics(counts)
        protocol = parts_of({**self.benchmark.protocol(), **self.generation})
        edits = [dataclasses.asdict(edit) for edit in self.arm.edits[:1]]
        arm = {"arm": self.arm.name, "edit_of_arm": edits[0] if edits else None}
        if self.arm.methods:
            arm["methods_of_arm"] = [dict(method) for method in self.arm.methods]
        return Results(
            benchmark=self.benchmark.name,
            metrics=metrics,
            counts=counts,
            n=len(tables[0].ids),
            differences=differences,
            units={name: metric.unit for name, metric in known.items() if metric.plain},
            hidden=tuple(name for name, metric in known.items() if not metric.shown),
            config={**found["config"], "source": str(self.request.source), **arm},
            versions=found["versions"],
            seeds={**found["seeds"], "bootstrap": self.request.config.seed},
            device=found["device"],
            protocol=protocol_hash(protocol),
            protocol_parts=protocol,
            notes=tuple(notes),
            prompt=self.prompt,
        )


def _publish(workdir: pathlib.Path, found: Evaluation) -> None:
    """Writes the top `results.json` and `answers.jsonl`."""
    first = next(iter(found.results))
    own = found.as_it_is
    entry = found.results[first][own]
    everything = {
        name: {arm: result.document() for arm, result in entries.items()}
        for name, entries in found.results.items()
    }
    top = {**entry.document(), "arm": own, "all": everything, "comparison": found.document()}
    top["made"] = made()
    write_json(workdir / "results.json", top)
    answers = (workdir / slug(first) / slug(own) / "answers.jsonl").read_bytes()
    replace_file(workdir / "answers.jsonl", answers)
