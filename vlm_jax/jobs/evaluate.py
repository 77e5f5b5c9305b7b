"""Measures a model, edits of it and attention methods beside their controls, on benchmarks."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_jax import checkpoint, terminal
from vlm_jax.errors import AnswersError, ConfigError
from vlm_jax.evals.base import Suite
from vlm_jax.evals.comparison import Comparison, compare, statistics_of
from vlm_jax.evals.power import foresight
from vlm_jax.evals.protocol import MODEL_PARTS, differing, parts_of
from vlm_jax.evals.results import Results, interval_fields, protocol_hash, write_json
from vlm_jax.evals.statistics import Interval, bootstrap_all
from vlm_jax.evals.suites import read_benchmark
from vlm_jax.evals.tallies import TallyTable
from vlm_jax.files import replace_file
from vlm_jax.foreign import read_json
from vlm_jax.made import made
from vlm_jax.parallel import processes
from vlm_jax.report.across import across_tables
from vlm_jax.report.comparison import benchmark_table, comparison_tables, published_table
from vlm_jax.report.examples import examples_section, read_items
from vlm_jax.report.page import comparison_page, page
from vlm_jax.report.tables import Section, Table, write_reports
from vlm_jax.report.verdict import verdicts
from vlm_jax.study.arms import Arm, ArmReader, pair_controls, slug
from vlm_jax.study.request import Request
from vlm_jax.study.runtime import provenance
from vlm_jax.study.say_less import SayLess, read_say_less
from vlm_jax.study.session import Measured, Session


def run(request: Request) -> None:
    """Evaluates `--source` and the config's arms on the config's benchmarks.

    Writes to `--workdir` a folder `<benchmark>/<arm>` each with `answers.jsonl` and `results.json`;
    at the top those of the first benchmark and arm, the comparison of all arms in `results.json`,
    and the tables as `report.md` and `report.html`. Prints the tables.

    Several sources, such as training seeds, each have all of that in a folder of their name; the
    tables over all of them are at the top.
    """
    if not request.sources:
        evaluate_model(request)
        return
    workdir = request.need("workdir")
    # All of them are opened and their settings read before the first of them runs.
    asked = {
        name: _Asked.of(
            dataclasses.replace(request, source=source, sources=(), workdir=workdir / name)
        )
        for name, source in _folders(request.sources).items()
    }
    found = {}
    for name, one in asked.items():
        print(f"\n{name}")
        found[name] = one.evaluate()
    what = models_differ(found)
    compared = None if what else compare_models(found, request.config)
    if what:
        print(f"\nThe models are not compared, for they were not asked alike: {what}.")
    tables = [] if compared is None else models_tables(compared)
    shown = len(tables)
    # An edited folder has no arms that edit weights: only models of the same arms make one table.
    full = {name: one.comparison for name, one in found.items() if len(one.arms) > 1}
    if len(full) > 1 and len({tuple(a.name for a in one.arms) for one in full.values()}) == 1:
        tables += across_tables(full)
    document = {
        "models": {name: one.document() for name, one in found.items()},
        "compared": None if compared is None else models_document(compared),
    }
    facts = {**provenance(request.config), "made": made()}
    if processes.primary():
        write_json(workdir / "results.json", {**document, **facts})
    title = f"{len(found)} models"
    about = next(iter(next(iter(next(iter(found.values())).results.values())).values()))
    page_text = page(title, [table.section() for table in tables], about)
    if processes.primary():
        write_reports(workdir, title, tables, page_text)
    print(f"\n{len(found)} models: {', '.join(found)}")
    for table in tables[: shown + 2]:
        print(f"\n{table.text()}")
    print(f"\nResults: {workdir / 'results.json'}, {workdir / 'report.html'}")


def evaluate_model(request: Request) -> "Evaluation":
    """Evaluates one source; see `run`."""
    return _Asked.of(request).evaluate()


@dataclasses.dataclass(frozen=True)
class _Asked:
    """An evaluation of one source, every setting read and nothing run."""

    request: Request
    source: checkpoint.ModelFolder
    benchmarks: Mapping[str, Suite]
    arms: Sequence[Arm]
    say_less: SayLess | None

    @classmethod
    def of(cls, request: Request) -> "_Asked":
        """Opens the source and reads what the config asks of it.

        Raises:
            UserError: the source cannot be opened, or a setting cannot be.
        """
        config = request.config
        request.need("workdir")
        source = checkpoint.open_folder(request.need("source"))
        benchmarks = read_benchmarks(config.benchmarks, source.config.family)
        say_less = read_say_less(config.frontier, benchmarks)
        arms = ArmReader.of(config, source).arms(config.arms)
        if not any(arm.edits for arm in arms):
            refuse_edit(request, "no arm edits weights; add one by --config.arms.edited={}")
        if source.certificate is not None:
            kept = [arm for arm in arms if not arm.edits]
            if len(kept) < len(arms):
                left_out = ", ".join(arm.name for arm in arms if arm.edits)
                print(
                    f"{source.path.name} is edited already, so arms that edit weights are left out "
                    f"of it: {left_out}. {arms[0].name!r} is the folder as it is."
                )
            arms = kept
        for edit in (edit for arm in arms for edit in arm.edits):
            edit.layers(source.config.decoder.num_layers)
        _refuse_fewer(request.need("workdir") / "results.json", [arm.name for arm in arms])
        return cls(request, source, benchmarks, arms, say_less)

    def evaluate(self) -> "Evaluation":
        """Runs it."""
        return evaluate(
            self.request,
            Session(self.request, self.source),
            self.benchmarks,
            self.arms,
            self.say_less,
            self.request.need("workdir"),
        )


def _refuse_fewer(results: pathlib.Path, arms: Sequence[str]) -> None:
    """Refuses to write over the results of a run that had further arms.

    Raises:
        ConfigError: naming these arms.
    """
    if not results.is_file():
        return
    document = read_json(results, dict[str, Any], error=AnswersError)
    comparison = document.get("comparison")
    before = comparison.get("arms") if isinstance(comparison, dict) else None
    lost = [name for name in before if name not in arms] if isinstance(before, dict) else []
    if lost:
        raise ConfigError(
            f"{results} has arms that this run lacks: {', '.join(lost)}. Choose another --workdir, "
            "or delete the file to do without them."
        )


def refuse_edit(request: Request, why: str, used: Sequence[str] = ()) -> None:
    """Refuses a setting of `config.edit` on the command line that nothing would read.

    Args:
        request: of the job.
        why: nothing reads it.
        used: settings of `config.edit` that are read nevertheless.

    Raises:
        ConfigError: naming the first such setting.
    """
    for name in request.changed:
        section, _, setting = name.partition(".")
        if section == "edit" and setting not in used:
            raise ConfigError(f"config.{name} changes nothing: {why}.")


def models_differ(found: Mapping[str, "Evaluation"]) -> str:
    """What differs between the protocols of models besides their own templates; "" if nothing.

    The testbed's benchmarks, for example, differ for families that take images of other sizes.
    """
    first, *others = (
        {name: arms[one.as_it_is].protocol_parts for name, arms in one.results.items()}
        for one in found.values()
    )
    for other in others:
        for name, own in first.items():
            protocols = (own, other[name])
            what = differing(*protocols, without=MODEL_PARTS)
            if what:
                return f"{name}: {what}"
    return ""


def compare_models(found: Mapping[str, "Evaluation"], config: Any) -> Comparison:
    """Compares models as they are on the same items, the first of them being the baseline.

    Items that failed with any of them are left out.
    """
    own = {name: one.measured.tables[one.as_it_is] for name, one in found.items()}
    first = next(iter(found.values())).comparison
    shared = {}
    for benchmark, drawn in next(iter(own.values())).items():
        common = set.intersection(*(set(tables[benchmark][0].ids) for tables in own.values()))
        shared[benchmark] = [item for item in drawn[0].ids if item in common]
    tables = {
        name: {b: [t.take(shared[b]) for t in drawn] for b, drawn in by_benchmark.items()}
        for name, by_benchmark in own.items()
    }
    return compare(tables, first.metrics, draws=config.bootstrap_draws, seed=config.seed)


def models_document(compared: Comparison) -> dict[str, Any]:
    """Benchmark -> model -> metrics and paired differences from the first model, as JSON."""
    values = lambda found: {name: interval_fields(one) for name, one in found.items()}
    return {
        benchmark: {
            model.name: {
                "metrics": values(model.levels[benchmark]),
                "differences": values(model.changes.get(benchmark, {})),
            }
            for model in compared.arms
        }
        for benchmark in compared.items
    }


def models_tables(compared: Comparison) -> list[Table]:
    """Levels of every model, and their paired differences from the first one."""
    first = compared.arms[0].name
    return [
        dataclasses.replace(
            table,
            title=f"{table.title}: models, and changes from {first}",
            headers=("model", *table.headers[1:]),
        )
        for table in (benchmark_table(compared, name) for name in compared.items)
    ]


def _folders(sources: Sequence[pathlib.Path]) -> dict[str, pathlib.Path]:
    """Model folders by name.

    Raises:
        ConfigError: two have one name.
    """
    named: dict[str, pathlib.Path] = {}
    for source in sources:
        other = named.setdefault(source.resolve().name, source)
        if other is not source:
            raise ConfigError(
                f"--source names {other} and {source}, whose results would share a folder; give "
                "the folders different names."
            )
    return named


def read_benchmarks(sections: Mapping[str, Any], family: str) -> dict[str, Suite]:
    """Makes the benchmarks of a config.

    Raises:
        ConfigError: there is none, or one is misnamed or misdescribed.
    """
    if not sections:
        raise ConfigError(
            "config.benchmarks is empty; use --config=configs/testbed.py, configs/chair.py or "
            "configs/pope.py."
        )
    return {name: read_benchmark(name, section, family) for name, section in sections.items()}


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
    request: Request,
    session: Session,
    benchmarks: Mapping[str, Suite],
    arms: Sequence[Arm],
    say_less: SayLess | None,
    workdir: pathlib.Path,
    title: str = "arms beside their controls",
) -> Evaluation:
    """Measures, compares, writes and prints; see `run`.

    Args:
        request, session, benchmarks, arms, say_less, workdir: see `Session.measure`.
        title: of the report, behind the model's name.
    """
    found = compare_arms(request, session, benchmarks, arms, say_less, workdir)
    tables = comparison_tables(found.comparison, found.sizes, found.measured.acted)
    published = published_table(found.comparison, request.config.get("published", {}))
    tables += [published] if published is not None else []
    tables += failure_tables(found.measured.failures)
    if processes.primary():
        _publish(request, workdir, found, tables, title, _examples(workdir, benchmarks, arms))
    show(tables, found.measured)
    for verdict in verdicts(found.comparison):
        print(terminal.folded(f"{verdict.arm}: {verdict.text}", "  "))
    print(f"Results: {workdir / 'results.json'}, {workdir / 'report.html'}")
    return found


def failure_tables(failures: Mapping[str, Mapping[str, str]]) -> list[Table]:
    """The items that could not be read, if any; they are left out of all arms."""
    rows = [[name, key, why] for name, found in failures.items() for key, why in found.items()]
    notes = ["Left out of every arm, so that all arms answer the same items."]
    headers = ["benchmark", "item", "reason"]
    return [Table("Items that could not be read", headers, rows, notes)] if rows else []


def show(tables: Sequence[Table], measured: Measured) -> None:
    """Prints tables, and how many programs were compiled."""
    for table in tables:
        print(f"\n{table.text()}")
    print(f"\n{measured.compiled}")


def compare_arms(
    request: Request,
    session: Session,
    benchmarks: Mapping[str, Suite],
    arms: Sequence[Arm],
    say_less: SayLess | None,
    workdir: pathlib.Path,
) -> Evaluation:
    """Measures and compares arms; writes each arm's answers and results."""
    config = request.config
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
    results = _write_arms(request, benchmarks, arms, measured, comparison, workdir)
    return Evaluation(arms, measured, comparison, results)


def _write_arms(
    request, benchmarks, arms: Sequence[Arm], measured: Measured, comparison: Comparison, workdir
) -> dict[str, dict[str, Results]]:
    """Returns the arms' results; process 0 writes them beside the answers of every draw."""
    results: dict[str, dict[str, Results]] = {name: {} for name in benchmarks}
    options = {"draws": request.config.bootstrap_draws, "seed": request.config.seed}
    for arm, row in zip(arms, comparison.arms):
        for name, benchmark in benchmarks.items():
            tables = measured.tables[arm.name][name]
            failed = len(measured.failures.get(name, {}))
            describe = _Describe(request, benchmark, arm, measured.generation, failed)
            entry = describe.results(row.levels[name], row.changes.get(name, {}), tables)
            results[name][arm.name] = entry
            if not processes.primary():
                continue
            folder = workdir / slug(name)
            entry.write(folder / slug(arm.name) / "results.json")
            for answered, place in zip(measured.answered[arm.name][name], arm.folders()):
                answered.write_items(folder / place / "items.jsonl", measured.failures[name])
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
        )


def _publish(
    request: Request,
    workdir: pathlib.Path,
    found: Evaluation,
    tables: Sequence[Table],
    title: str,
    examples: Sequence[Section],
) -> None:
    """Writes the top `results.json` and `answers.jsonl`, `report.md` and `report.html`."""
    first = next(iter(found.results))
    own = found.as_it_is
    entry = found.results[first][own]
    everything = {
        name: {arm: result.document() for arm, result in entries.items()}
        for name, entries in found.results.items()
    }
    comparison = found.document()
    top = {**entry.document(), "arm": own, "all": everything, "comparison": comparison}
    top["made"] = made()
    write_json(workdir / "results.json", top)
    answers = (workdir / slug(first) / slug(own) / "answers.jsonl").read_bytes()
    replace_file(workdir / "answers.jsonl", answers)
    title = f"{request.need('source').name}: {title}"
    text = comparison_page(title, found.comparison, tables, entry, examples)
    write_reports(workdir, title, tables, text)


def _examples(
    workdir: pathlib.Path, benchmarks: Mapping[str, Suite], arms: Sequence[Arm]
) -> list[Section]:
    """The examples of every benchmark with all arms' answers, of random ones the first draw."""
    sections = []
    for name, suite in benchmarks.items():
        places = {arm.name: workdir / slug(name) / arm.folders()[0] for arm in arms}
        rows = {arm: read_items(place / "items.jsonl") for arm, place in places.items()}
        section = examples_section(name, suite, rows)
        sections += [] if section is None else [section]
    return sections
