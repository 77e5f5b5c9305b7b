"""Scores a file of answers against a file of truth: no model, no JAX."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_jax.errors import AnswersError
from vlm_jax.evals import chair, pope
from vlm_jax.evals.answers import Answers, read_captions, read_question_answers
from vlm_jax.evals.records import some
from vlm_jax.evals.results import Results, protocol_hash
from vlm_jax.evals.statistics import DRAWS, bootstrap_all, paired_bootstrap
from vlm_jax.evals.tallies import Statistic, TallyTable, tabulate, tabulate_sums
from vlm_jax.evals.truth import ObjectTruth, Question, read_truth
from vlm_jax.evals.vocabulary import Vocabulary, coco_vocabulary

BENCHMARKS = ("chair", "pope")
_PRINTED_CHAIR_COUNTS = chair.COUNTS[:6]


def score(
    answers: str | Path,
    truth: str | Path | Sequence[str | Path],
    benchmark: str | None = None,
    *,
    vocabulary: Vocabulary | None = None,
    parser: str = "rucaibox",
    baseline: str | Path | None = None,
    allow_missing: bool = False,
    draws: int = DRAWS,
    seed: int = 0,
) -> Results:
    """Scores answers, with bootstrap intervals over images.

    The questions on one image are resampled together.

    Args:
        answers: captions (image_id, caption) or answers (question_id, text); see `answers`.
        truth: object tables, COCO annotation JSON or a POPE question file; see `truth`.
        benchmark: "chair" or "pope"; default: by the kind of truth.
        vocabulary: CHAIR's words; default: our own table.
        parser: POPE's reading of answers, a key of `pope.PARSERS`.
        baseline: answers of an unedited model, for paired differences over the same items.
        allow_missing: score a question file of which some questions are unanswered.
        draws: bootstrap resamples.
        seed: of the bootstrap.

    Raises:
        AnswersError: a malformed or duplicate row, an answer without truth, an unanswered
            question, or truth of another kind than the benchmark needs.
    """
    if benchmark not in (None, *BENCHMARKS):
        raise AnswersError(
            f"benchmark {benchmark!r} is unknown; choose one of {', '.join(BENCHMARKS)}"
        )
    vocabulary = vocabulary or coco_vocabulary()
    known = read_truth(truth, vocabulary)
    actual = "chair" if isinstance(known, ObjectTruth) else "pope"
    if benchmark not in (None, actual):
        kinds = {"chair": "objects of images", "pope": "labelled questions"}
        raise AnswersError(
            f"benchmark {benchmark} needs {kinds[str(benchmark)]} as truth, but {truth} holds "
            f"{kinds[actual]}"
        )
    if isinstance(known, ObjectTruth):
        judge: _Judge = _ChairJudge(known, vocabulary)
    else:
        judge = _PopeJudge(known, parser, allow_missing)
    table, items, notes = judge.tabulate(answers)
    totals = table.totals()
    statistics = judge.statistics()
    differences = {}
    if baseline is not None:
        other, others, _ = judge.tabulate(baseline)
        _same_items(answers, items, baseline, others)
        differences = paired_bootstrap(
            statistics, table, other.take(table.ids), draws=draws, seed=seed
        )
    return Results(
        benchmark=actual,
        metrics=bootstrap_all(statistics, table, draws=draws, seed=seed),
        counts={name: totals[name] for name in judge.counts},
        n=len(items),
        differences=differences,
        units=judge.units,
        config={
            "answers": str(answers),
            "truth": [str(path) for path in _listed(truth)],
            "baseline": None if baseline is None else str(baseline),
            "draws": draws,
            **judge.settings(),
        },
        seeds={"bootstrap": seed},
        protocol=protocol_hash(
            {
                "benchmark": actual,
                "truth": sorted(_digest(path) for path in _listed(truth)),
                "items": sorted(map(str, items)),
                **judge.settings(),
            }
        ),
        notes=notes,
    )


class _ChairJudge:
    """Captions against objects."""

    counts = _PRINTED_CHAIR_COUNTS
    units: Mapping[str, str] = {"length": "words"}

    def __init__(self, truth: ObjectTruth, vocabulary: Vocabulary) -> None:
        self.truth = truth
        self.vocabulary = vocabulary
        self.scorer = chair.ChairScorer(truth.objects, vocabulary)

    def tabulate(self, path: str | Path) -> tuple[TallyTable, set[Any], tuple[str, ...]]:
        captions = read_captions(path)
        _refuse_unknown(captions, self.truth.objects, "caption", "image")
        table = tabulate(
            (image, self.scorer.tally(image, text)) for image, text in captions.texts.items()
        )
        rest = len(self.truth.objects) - len(captions.texts)
        notes = [f"{rest} images of the truth have no caption and were left out"] if rest else []
        return table, set(table.ids), (*notes, *_failed(captions))

    def statistics(self) -> Mapping[str, Statistic]:
        return chair.METRICS

    def settings(self) -> dict[str, Any]:
        return {
            "variant": self.vocabulary.variant,
            "vocabulary": self.vocabulary.fingerprint(),
        }


class _PopeJudge:
    """Answers against labels."""

    counts = pope.COUNTS
    units: Mapping[str, str] = {}

    def __init__(self, questions: Sequence[Question], parser: str, allow_missing: bool) -> None:
        pope.parse_answer("", "yes", parser)
        self.questions = {question.id: question for question in questions}
        self.parser = parser
        self.allow_missing = allow_missing

    def tabulate(self, path: str | Path) -> tuple[TallyTable, set[Any], tuple[str, ...]]:
        answers = read_question_answers(path)
        _refuse_unknown(answers, self.questions, "answer", "question")
        lacking = [key for key in self.questions if key not in answers.texts]
        missing = [key for key in lacking if str(key) not in answers.failed]
        if missing and not self.allow_missing:
            raise AnswersError(
                f"{path}: {len(missing)} of {len(self.questions)} questions have no answer: "
                f"{some(missing)}; answer them all, or allow missing answers"
            )
        table = tabulate_sums(
            (question.image, pope.tally(answers.texts[key], question.label, self.parser))
            for key, question in self.questions.items()
            if key in answers.texts
        )
        notes = [f"{len(missing)} questions have no answer and were left out"] if missing else []
        items = self.questions.keys() - set(lacking)
        return table, items, (*notes, *_failed(answers))

    def statistics(self) -> Mapping[str, Statistic]:
        return pope.metrics(self.parser)

    def settings(self) -> dict[str, Any]:
        return {"parser": self.parser}


_Judge = _ChairJudge | _PopeJudge


def _failed(answers: Answers) -> tuple[str, ...]:
    count = len(answers.failed)
    return (f"{count} items could not be read and were left out",) if count else ()


def _refuse_unknown(answers: Answers, truth: Mapping[Any, Any], what: str, item: str) -> None:
    unknown = [key for key in answers.texts if key not in truth]
    if unknown:
        raise AnswersError(
            f"{answers.path} line {answers.lines[unknown[0]]}: {len(unknown)} of "
            f"{len(answers.texts)} {what}s have no truth; {item} {some(unknown)}"
        )


def _same_items(path: str | Path, items: set[Any], other: str | Path, others: set[Any]) -> None:
    differing = items ^ others
    if differing:
        raise AnswersError(
            f"{path} and the baseline {other} must answer the same items; {len(differing)} are in "
            f"one alone: {some(sorted(map(str, differing)))}"
        )


def _listed(truth: str | Path | Sequence[str | Path]) -> list[str | Path]:
    return [truth] if isinstance(truth, str | Path) else list(truth)


def _digest(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
