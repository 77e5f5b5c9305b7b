"""Measures a model, edits of it and attention methods beside their controls, on benchmarks."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_jax import checkpoint
from vlm_jax.errors import AnswersError, ConfigError
from vlm_jax.evals.base import Suite
from vlm_jax.evals.comparison import Comparison, compare
from vlm_jax.evals.protocol import MODEL_PARTS, differing
from vlm_jax.evals.results import interval_fields, write_json
from vlm_jax.evals.suites import read_benchmarks
from vlm_jax.foreign import read_json
from vlm_jax.made import made
from vlm_jax.parallel import processes
from vlm_jax.report.run import report_of
from vlm_jax.report.stored import read_run
from vlm_jax.report.written import read_settings, write_report
from vlm_jax.study.arms import Arm, ArmReader
from vlm_jax.study.evaluation import Evaluation, evaluate
from vlm_jax.study.request import Request
from vlm_jax.study.runtime import provenance
from vlm_jax.study.say_less import SayLess, read_say_less
from vlm_jax.study.session import Session


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
    document = {
        "models": {name: one.document() for name, one in found.items()},
        "compared": None if compared is None else models_document(compared),
    }
    if processes.primary():
        facts = {**provenance(request.config), "made": made()}
        write_json(workdir / "results.json", {**document, **facts})
        report = report_of(read_run(workdir))
        files = write_report(report, workdir, read_settings(request.config))
        print(f"\n{len(found)} models: {', '.join(found)}")
        for table in report.tables[: (0 if compared is None else len(compared.items)) + 2]:
            print(f"\n{table.text()}")
        print(f"\nResults: {', '.join(map(str, [workdir / 'results.json', files[0]]))}")


def evaluate_model(request: Request) -> Evaluation:
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
            request.refuse_edit("no arm edits weights; add one by --config.arms.edited={}")
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

    def evaluate(self) -> Evaluation:
        """Runs it."""
        return evaluate(
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


def models_differ(found: Mapping[str, Evaluation]) -> str:
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


def compare_models(found: Mapping[str, Evaluation], config: Any) -> Comparison:
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
