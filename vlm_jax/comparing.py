"""Models beside one another: their answers to the same questions, or their scores on a benchmark.

    vlm_jax.compare({"plain": vlm, "air": steered}, images, prompts)        # answers
    vlm_jax.compare(vlm, {"air": steered}, benchmark, draws=19)             # scores

The second form is the `evaluate` job on models in memory: paired differences on the same items,
with intervals, and each arm beside random heads or modes in place of its own.
"""

import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

from vlm_jax.api import VLM
from vlm_jax.calls import read_call
from vlm_jax.errors import ConfigError, UserError
from vlm_jax.evals import comparison as comparisons
from vlm_jax.evals.base import Suite
from vlm_jax.evals.runner import Answered
from vlm_jax.evals.runner import run as run_benchmark
from vlm_jax.evals.statistics import DRAWS
from vlm_jax.evals.suites import SUITES
from vlm_jax.evals.suites import benchmarks as kinds
from vlm_jax.evals.tallies import TallyTable
from vlm_jax.files import slug
from vlm_jax.listing import Listing, lines
from vlm_jax.methods import methods
from vlm_jax.report.comparison import comparison_tables
from vlm_jax.report.tables import Table
from vlm_jax.side_by_side import SideBySide, data_frame
from vlm_jax.study.acted import acted, details
from vlm_jax.study.fingerprint import fingerprint
from vlm_jax.treatments import Edited

PLAIN = "plain"
"""What the model that others are compared with is called."""


@overload
def compare(
    models: Mapping[str, VLM], images: Any = None, prompts: Any = None, **settings: Any
) -> SideBySide: ...


@overload
def compare(
    models: VLM, arms: Mapping[str, VLM], benchmark: Any, *, draws: int = 0, **settings: Any
) -> "Scored": ...


def compare(models: Any, *asked: Any, **settings: Any) -> Any:
    """Returns models beside one another: answers to questions, or scores on a benchmark.

        compare({"plain": vlm, "air": steered}, images, prompts)     # a `SideBySide`
        compare(vlm, {"air": steered}, benchmark, draws=19)          # a `Scored`

    Args:
        models: name -> model; then `asked` is images and prompts, see `compare_answers`. Or one
            model; then `asked` is others by name and a benchmark, see `compare_scores`.
        asked, settings: of the one or the other.

    Raises:
        ConfigError: it is neither call.
    """
    if isinstance(models, VLM):
        return compare_scores(models, *asked, **settings)
    return compare_answers(models, *asked, **settings)


def compare_answers(
    models: Mapping[str, VLM], images: Any = None, prompts: Any = None, **settings: Any
) -> SideBySide:
    """Returns the answers of several models to the same questions.

    Args:
        models: name -> model.
        images, prompts, settings: of `VLM.generate`.

    Raises:
        ConfigError: there are no models.
        PromptError: see `VLM.generate`.
    """
    _check_models(models)
    call = read_call(images, prompts)
    answers = {
        name: model.generate(call.images, call.prompts, **settings)
        for name, model in models.items()
    }
    return SideBySide(answers, call.prompts, call.images)


_ENDS = ("value", "low", "high")


@dataclasses.dataclass(frozen=True)
class Scored:
    """Models compared on benchmarks: the tables that the `evaluate` job prints.

    Attributes:
        comparison: levels, paired differences and controls as numbers.
        tables: of them, what matters first.
        answers: arm -> benchmark -> the answers of every draw.
        failures: benchmark -> id of an item -> why it could not be read; left out of all arms.
    """

    comparison: comparisons.Comparison
    tables: Sequence[Table]
    answers: Mapping[str, Mapping[str, Sequence[Answered]]]
    failures: Mapping[str, Mapping[str, str]]

    def table(self) -> str:
        """Returns all tables as text."""
        return "\n\n".join(table.text() for table in self.tables)

    def to_pandas(self) -> Any:
        """Returns a pandas `DataFrame`: a row an arm, benchmark and metric.

        Raises:
            UserError: pandas is not installed.
        """
        return data_frame(list(self._rows()))

    def _rows(self) -> Iterator[dict[str, Any]]:
        for arm in self.comparison.arms:
            for benchmark, levels in arm.levels.items():
                for metric, level in levels.items():
                    change = arm.changes.get(benchmark, {}).get(metric)
                    row: dict[str, Any] = {
                        "arm": arm.name,
                        "benchmark": benchmark,
                        "metric": metric,
                    }
                    row |= {"value": level.value, "low": level.low, "high": level.high}
                    for name in _ENDS:
                        key = "change" if name == "value" else f"change_{name}"
                        row[key] = getattr(change, name, None)
                    yield {**row, "draws": arm.draws}

    def __repr__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        return "".join(table._repr_html_() for table in self.tables)


@dataclasses.dataclass(frozen=True)
class _Row:
    """One row of the comparison: a model, or the draws of a control."""

    name: str
    models: tuple[VLM, ...]
    of: str = ""  # the row that it is a control of


def compare_scores(
    model: VLM,
    arms: Mapping[str, VLM],
    benchmark: Any,
    *,
    draws: int = 0,
    workdir: str | os.PathLike[str] | None = None,
    bootstrap_draws: int = DRAWS,
    seed: int = 0,
    **settings: Any,
) -> Scored:
    """Returns a model and treated ones compared on a benchmark.

    Args:
        model: what the others are compared with.
        arms: name -> model.
        benchmark: what is asked, or name -> benchmark of several.
        draws: each arm also stands beside its random control, drawn so many times: other heads of
            the same layers for attention methods, other modes for the edit; 19 allow a p of .05. 0
            leaves controls out. A note says which arms have none, and why.
        workdir: keeps the answers, so that a call that was stopped goes on; by default nothing is
            kept.
        bootstrap_draws: resamples behind the intervals.
        seed: of the resamples, and of the first draw of the controls.
        settings: of the answers, as for `VLM.generate`.

    Raises:
        ConfigError: a name is taken, or `draws` is no number of controls.
        UserError: an item cannot be read.
    """
    _check_models(arms)
    if not isinstance(draws, int) or isinstance(draws, bool) or draws < 0:
        raise ConfigError(f"draws must be a whole number, at least 0, not {draws!r}.")
    benchmarks = dict(benchmark) if isinstance(benchmark, Mapping) else {benchmark.name: benchmark}
    treated, without = _rows(arms, draws, seed)
    rows = [_Row(PLAIN, (model,)), *treated]
    _check_names([row.name for row in rows])
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(workdir or scratch)
        answers = {row.name: _answer(row, benchmarks, folder, settings) for row in rows}
    failures = {
        name: {
            key: reason
            for by_benchmark in answers.values()
            for answered in by_benchmark[name]
            for key, reason in answered.failures.items()
        }
        for name in benchmarks
    }
    tables = {
        row: {name: [one.table(failures[name]) for one in drawn] for name, drawn in own.items()}
        for row, own in answers.items()
    }
    compared = _compare(
        tables,
        benchmarks,
        controls=[(row.of, row.name, True) for row in rows if row.of],
        draws=bootstrap_draws,
        seed=seed,
    )
    first, *others = comparison_tables(compared, _sizes(rows), _acted(rows, answers))
    notes = [f"{name} has no random control: {why}" for name, why in without.items()]
    first = dataclasses.replace(first, notes=[*first.notes, *notes])
    return Scored(compared, [first, *others], answers, failures)


def _compare(
    tables: Mapping[str, Mapping[str, Sequence[TallyTable]]],
    benchmarks: Mapping[str, Any],
    **options: Any,
) -> comparisons.Comparison:
    base = tables[PLAIN]
    metrics = {
        name: benchmark.metrics(base[name][0].totals()) for name, benchmark in benchmarks.items()
    }
    return comparisons.compare(tables, metrics, **options)


def _rows(arms: Mapping[str, VLM], draws: int, seed: int) -> tuple[list[_Row], dict[str, str]]:
    """Every arm followed by its control, and the arms that have none, with the reason."""
    rows: list[_Row] = []
    without: dict[str, str] = {}
    for name, model in arms.items():
        rows.append(_Row(name, (model,)))
        if draws and model.treatments:
            try:
                control = tuple(_redrawn(model, seed + n) for n in range(draws))
            except UserError as error:
                without[name] = str(error)
            else:
                rows.append(_Row(f"{name}, random", control, of=name))
    return rows, without


def _redrawn(model: VLM, seed: int) -> VLM:
    """Returns the model with its treatments elsewhere, drawn at random.

    Raises:
        UserError: one of them cannot be.
    """
    known, drawn = methods(), model.untreated()
    for treatment in model.treatments:
        listed = treatment.method in known  # or a function of the user's
        word = known[treatment.method].random_control if listed else ""
        own = treatment.control
        if own or not word:
            why = f"is a control itself ({own})" if own else "draws nothing at random"
            raise ConfigError(f"{treatment.method} {why}.")
        control = {"control": word, "seed": seed}
        drawn = drawn.apply(treatment.method, **{**treatment.settings, **control})
    return drawn


def _answer(
    row: _Row, benchmarks: Mapping[str, Any], folder: pathlib.Path, settings: Mapping[str, Any]
) -> dict[str, list[Answered]]:
    """Answers the benchmarks with every draw of a row."""
    found: dict[str, list[Answered]] = {name: [] for name in benchmarks}
    for number, model in enumerate(row.models):
        label = f"{row.name} {number + 1} of {len(row.models)}" if row.of else row.name
        for name, benchmark in benchmarks.items():
            place = folder / slug(name) / slug(row.name) / str(number) / "answers.jsonl"
            answered = run_benchmark(
                model,
                benchmark,
                place,
                identity=_identity(model, settings),
                label=f"{name}, {label}",
                details=None if model.steering is None else details,
                **settings,
            )
            found[name].append(answered)
    return found


def _identity(model: VLM, settings: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values that say which model and settings make an answer."""
    source = None if model.folder is None else fingerprint(model.folder)
    treated = [treatment.identity() for treatment in model.treatments]
    named = {name: str(value) for name, value in settings.items()}
    dtype = str(next(iter(model.params.values())).dtype)
    return {"source": source, "treatments": treated, "dtype": dtype, "settings": named}


def _sizes(rows: Sequence[_Row]) -> dict[str, list[Mapping[str, Any]]]:
    """Row -> what its edit changed, one a draw."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        for model in row.models:
            for treatment in model.treatments:
                fields = treatment.certificate if isinstance(treatment, Edited) else {}
                if "summary" in fields:
                    summary = {"layers": fields["layers"], **fields["summary"]}
                    found.setdefault(row.name, []).append(summary)
    return found


def _acted(
    rows: Sequence[_Row], answers: Mapping[str, Mapping[str, Sequence[Answered]]]
) -> dict[str, list[Mapping[str, Any]]]:
    """Row -> what its steering did, one a draw."""
    return {
        row.name: [
            acted(model.steering, {name: own[n].rows for name, own in answers[row.name].items()})
            for n, model in enumerate(row.models)
            if model.steering is not None
        ]
        for row in rows
        if any(model.steering is not None for model in row.models)
    }


def _check_models(models: Any) -> None:
    if not isinstance(models, Mapping) or not models:
        raise ConfigError(
            "compare needs models by name, such as {'plain': vlm, 'air': vlm.apply('air', ...)}, "
            f"not {type(models).__name__}."
        )
    for name, model in models.items():
        if not isinstance(model, VLM):
            raise ConfigError(
                f"{name!r} must be a model of vlm_jax.load, not {type(model).__name__}."
            )


def _check_names(names: Sequence[str]) -> None:
    taken: dict[str, str] = {}
    for name in names:
        other = taken.setdefault(slug(name), name)
        if other != name or names.count(name) > 1:
            raise ConfigError(f"the name {name!r} is taken by another row; choose another.")


def benchmark(kind: str, /, **settings: Any) -> Suite:
    """Returns a benchmark by its kind: what `compare` asks.

        benchmark("testbed_chair", set="normal", split="dev", n=50)
        benchmark("chair", images="val2014", truth="instances_val2014.json")

    Args:
        kind: one that `vlm_jax.benchmarks()` lists.
        settings: those of the kind.

    Raises:
        ConfigError: there is no such kind or setting.
        AnswersError: a file of it cannot be read.
    """
    return SUITES.find(kind).read(settings, f"benchmark {kind!r}")


def benchmarks() -> Listing[str]:
    """Returns the kinds of benchmarks, with a line on each."""
    return lines(kinds(), "benchmark")
