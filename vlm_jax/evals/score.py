"""Scores files of answers against files of truth: no model, no JAX."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlm_jax.errors import AnswersError, ConfigError
from vlm_jax.evals.answers import USUAL, Answers, Keys, read_answers
from vlm_jax.evals.base import Judged, Metric, Suite
from vlm_jax.evals.items import asked_of, tabulate_items, write_items
from vlm_jax.evals.protocol import parts_of, refuse_incomparable
from vlm_jax.evals.records import Record, decode, is_table, read_content, read_rows, some, text_rows
from vlm_jax.evals.results import Results, protocol_hash, read_results
from vlm_jax.evals.statistics import DRAWS, bootstrap_all, mcnemar, paired_bootstrap
from vlm_jax.evals.suites import SUITES, kinds
from vlm_jax.evals.tallies import TallyTable
from vlm_jax.settings import read

Paths = str | Path | Sequence[str | Path]

MAX_UNPARSABLE = 0.95


@dataclass(frozen=True)
class ScoredFile:
    """What a file of answers is worth.

    Attributes:
        suite: the benchmark.
        results: metrics with intervals, counts, protocol.
        table: tallies by item.
        judged: id -> what its answer says.
        texts: id -> the answer.
        baseline: id -> the baseline's answer; None without one.
    """

    suite: Suite
    results: Results
    table: TallyTable
    judged: Mapping[Any, Judged]
    texts: Mapping[Any, str]
    baseline: Mapping[Any, str] | None = None

    def write_items(self, path: str | Path) -> Path:
        """Writes `items.jsonl`; see `items.write_items`."""
        return write_items(path, self.suite, self.judged, self.texts)


def score(
    answers: Paths,
    truth: Paths,
    suite: str = "",
    *,
    rules: Mapping[str, Any] | None = None,
    keys: Keys = USUAL,
    baseline: Paths | None = None,
    allow_missing: bool = False,
    allow_extra: bool = False,
    max_unparsable: float = MAX_UNPARSABLE,
    draws: int = DRAWS,
    seed: int = 0,
) -> ScoredFile:
    """Scores answers, with bootstrap intervals over items (the questions on one image together).

    Args:
        answers: one file or several of any kind that `records` reads; see `answers`.
        truth: the benchmark's files of truth.
        suite: the benchmark's kind, see `suites.benchmarks`; default: told by the form of the
            truth.
        rules: settings of the benchmark: its parser, words, variant.
        keys: fields with names of their own.
        baseline: answers of an unedited model, for paired differences over the same items.
        allow_missing: score although some questions are unanswered.
        allow_extra: leave out answers that have no truth.
        max_unparsable: the share of answers without a verdict, and of captions that name no object,
            from which on they are refused.
        draws: bootstrap resamples.
        seed: of the bootstrap.

    Raises:
        AnswersError: a malformed or duplicate row, an answer without truth, an unanswered
            question, next to no answer with a verdict or an object, or truth of no known form.
        ConfigError: the benchmark is unknown, or a rule is.
    """
    bench = make_suite(truth, suite, rules or {})
    judge = _Judge(bench, keys, allow_missing, allow_extra, max_unparsable)
    found = judge.read(answers)
    table = judge.table(found)
    totals = table.totals()
    metrics = bench.metrics(totals)
    statistics = {name: metric.of for name, metric in metrics.items()}
    differences, tests, theirs = {}, {}, None
    if baseline is not None:
        other = judge.read(baseline)
        _same_protocol(answers, baseline)
        _same_items(answers, set(found.judged), baseline, set(other.judged))
        differences = paired_bootstrap(
            statistics, table, judge.table(other).take(table.ids), draws=draws, seed=seed
        )
        tests = _exact_tests(found.judged, other.judged, metrics)
        theirs = other.texts
    protocol = _protocol(bench, truth, found.judged)
    results = Results(
        benchmark=bench.name,
        metrics=bootstrap_all(statistics, table, draws=draws, seed=seed),
        counts=totals,
        n=len(found.judged),
        differences=differences,
        tests=tests,
        units={name: metric.unit for name, metric in metrics.items() if metric.plain},
        hidden=tuple(name for name, metric in metrics.items() if not metric.shown),
        config={
            "answers": [str(path) for path in listed(answers)],
            "truth": [str(path) for path in listed(truth)],
            "baseline": None if baseline is None else [str(path) for path in listed(baseline)],
            "answer_field": found.field,
            "draws": draws,
            **bench.rules(),
        },
        seeds={"bootstrap": seed},
        protocol=protocol_hash(protocol),
        protocol_parts=protocol,
        notes=(*found.notes, *bench.notes()),
    )
    return ScoredFile(bench, results, table, found.judged, found.texts, theirs)


def _exact_tests(
    ours: Mapping[Any, Judged], theirs: Mapping[Any, Judged], metrics: Mapping[str, Metric]
) -> dict[str, float]:
    """Metric -> exact McNemar p-value, of metrics that are means of an outcome of each answer."""
    counts = lambda judged, outcome: np.array([judged[key].counts[outcome] for key in ours])
    return {
        name: mcnemar(counts(ours, metric.outcome), counts(theirs, metric.outcome))
        for name, metric in metrics.items()
        if metric.outcome
    }


def _protocol(suite: Suite, truth: Paths, ids: Iterable[Any]) -> dict[str, Any]:
    """The parts of the protocol: benchmark, hashes of the files of truth, ids and rules."""
    return parts_of(
        {
            "benchmark": suite.name,
            "truth": sorted(_digest(path) for path in listed(truth)),
            "ids": sorted(map(str, ids)),
            **suite.rules(),
        }
    )


def read_texts(suite: Suite, answers: Paths) -> dict[Any, str]:
    """Id -> answer of files of answers, all questions answered; see `score`."""
    return _Judge(suite, USUAL, False, False, MAX_UNPARSABLE).texts(answers)[0]


def make_suite(truth: Paths, suite: str = "", rules: Mapping[str, Any] | None = None) -> Suite:
    """The benchmark that files of truth are of, without images.

    Args:
        truth: its files.
        suite: its kind; "" tells it by the form of the truth.
        rules: its settings besides.

    Raises:
        AnswersError: the files cannot be read or are of no known form.
        ConfigError: the kind, or a setting, is unknown.
    """
    files = listed(truth)
    if not files:
        raise AnswersError("no truth file given; name the benchmark's by --truth.")
    kind = SUITES.find(suite, "config.score.suite") if suite else _recognised(files[0])
    if not _reads(kind):
        raise ConfigError(f"config.score.suite={kind.name!r} has no files of truth to score by.")
    section = {**(rules or {}), kind.truth: tuple(map(str, files))}
    return kind.of(read(kind.Settings, section, "config.score"))


def _recognised(path: str | Path) -> type[Suite]:
    """The kind of benchmark whose truth a file can only be."""
    first = _first_row(path)
    known = kinds()
    for name, kind in known.items():
        if (first is None and name == "chair") or (first is not None and kind.recognises(first)):
            return kind
    have = ", ".join(map(repr, first.fields)) if first is not None else ""
    raise AnswersError(
        f"{path} does not say which benchmark it is of (its rows have {have}); name one by "
        f"config.score.suite: {', '.join(name for name, kind in known.items() if _reads(kind))}."
    )


def _reads(kind: type[Suite]) -> bool:
    """Whether a kind of benchmark has files of truth."""
    return kind.truth in {one.name for one in dataclasses.fields(kind.Settings)}


def _first_row(path: str | Path) -> Record | None:
    """The first row of a file of truth; None for objects of images (a table, COCO annotations)."""
    content = read_content(path)
    if is_table(content):
        return next(read_rows(path))
    text = decode(path, content)
    start = text.lstrip()
    if not start:
        raise AnswersError(f"{path} is empty; expected ground truth.")
    if start.startswith("# categories:") or (start.startswith("{") and '"annotations"' in start):
        return None
    return next(iter(text_rows(path, text)))


@dataclass(frozen=True)
class _Read:
    """Answers that were judged."""

    judged: Mapping[Any, Judged]
    texts: Mapping[Any, str]
    notes: tuple[str, ...]
    field: str


@dataclass(frozen=True)
class _Judge:
    suite: Suite
    keys: Keys
    allow_missing: bool
    allow_extra: bool
    max_unparsable: float

    def texts(self, source: Paths) -> tuple[dict[Any, str], tuple[str, ...], str]:
        """Returns the answers of files by example, what is left out, and the field they were in.

        Raises:
            AnswersError: none can be scored, an answer is of no question or comes twice, or a
                question has none and `allow_missing` is not set.
        """
        examples = {example.id: example for example in self.suite.examples()}
        files = [read_answers(self.suite, path, self.keys) for path in listed(source)]
        texts: dict[Any, str] = {}
        notes, failed = [], set()
        for answers in files:
            unknown = [key for key in answers.texts if key not in examples]
            if unknown and not self.allow_extra:
                raise _unknown(answers, unknown)
            if unknown:
                notes.append(f"{len(unknown)} answers have no truth and were left out")
            twice = [key for key in answers.texts if key in texts]
            if twice:
                raise AnswersError(
                    f"{answers.places[twice[0]]}: second answer to {twice[0]}; the first is in "
                    "another file"
                )
            texts |= {key: text for key, text in answers.texts.items() if key in examples}
            failed |= set(answers.failed)
        missing = [key for key in examples if key not in texts and str(key) not in failed]
        where = ", ".join(str(answers.path) for answers in files)
        if missing:
            what = self.suite.missing_note(len(missing))
            if what is None and not self.allow_missing:
                raise AnswersError(
                    f"{where}: {len(missing)} of {len(examples)} questions have no answer: "
                    f"{some(missing)}; answer them all, or set config.score.allow_missing=True."
                )
            notes.append(what or f"{len(missing)} questions have no answer and were left out")
        if failed:
            notes.append(f"{len(failed)} items could not be read and were left out")
        if not texts:
            raise AnswersError(f"{where} holds no answer that can be scored.")
        field = ", ".join(dict.fromkeys(answers.key for answers in files if answers.key))
        return {key: texts[key] for key in examples if key in texts}, tuple(notes), field

    def read(self, source: Paths) -> _Read:
        """Judges the answers of some files."""
        texts, notes, field = self.texts(source)
        examples = self.suite.examples()
        judged = {
            one.id: self.suite.judge(one, texts[one.id]) for one in examples if one.id in texts
        }
        self._refuse_unparsable(", ".join(map(str, listed(source))), judged, texts)
        return _Read(judged, texts, notes, field)

    def table(self, found: _Read) -> TallyTable:
        """Returns the tallies by item.

        Raises:
            AnswersError: no item has all of its answers.
        """
        table = tabulate_items(self.suite, found.judged.values(), asked_of(self.suite))
        if not table.ids:
            raise AnswersError("no item has all of its answers, so that none can be scored.")
        return table

    def _refuse_unparsable(
        self, where: str, judged: Mapping[Any, Judged], texts: Mapping[Any, str]
    ) -> None:
        says_nothing = lambda one: one.details.get("unparsable") or one.counts.get("unparsable")
        lost = [key for key, one in judged.items() if says_nothing(one)]
        if len(lost) and len(lost) / len(judged) > self.max_unparsable:
            example = texts[lost[0]].strip()[:60]
            verdict = "unparsable" in judged[lost[0]].details  # captions and essays have none
            lack = "give no verdict" if verdict else "say nothing that is scored"
            raise AnswersError(
                f"{where}: {len(lost)} of {len(judged)} answers {lack}, such as "
                f"{example!r}; name the field of the answers by config.score.text_key, or score "
                "them as they are by config.score.max_unparsable=1."
            )


def _unknown(answers: Answers, unknown: Sequence[Any]) -> AnswersError:
    return AnswersError(
        f"{answers.places[unknown[0]]}: {len(unknown)} of {len(answers.texts)} answers have no "
        f"truth: {some(list(unknown))}; name a truth that covers them, or leave them out by "
        "config.score.allow_extra=True."
    )


def _same_protocol(answers: Paths, baseline: Paths) -> None:
    """Refuses answers of our own runs that were not made alike, by the results beside them."""
    ours, theirs = (_results_beside(files) for files in (answers, baseline))
    if ours is not None and theirs is not None:
        first, second = (str(listed(files)[0]) for files in (answers, baseline))
        refuse_incomparable(ours, theirs, (first, second))


def _results_beside(files: Paths) -> Results | None:
    """The results of the evaluation that wrote a file of answers; None where there are none."""
    path = Path(listed(files)[0])
    beside = path.with_name("results.json")
    if path.name != "answers.jsonl" or not beside.is_file():
        return None
    found = read_results(beside)
    return found if found.protocol_parts else None


def _same_items(answers: Paths, items: set[Any], baseline: Paths, others: set[Any]) -> None:
    differing = items ^ others
    if differing:
        named = lambda files: ", ".join(map(str, listed(files)))
        raise AnswersError(
            f"{named(answers)} and the baseline {named(baseline)} must answer the same items; "
            f"{len(differing)} are in one alone: {some(sorted(map(str, differing)))}"
        )


def listed(files: Paths) -> list[str | Path]:
    """Files as a list."""
    return [files] if isinstance(files, str | Path) else list(files)


def _digest(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
