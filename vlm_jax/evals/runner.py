"""Runs a model over a benchmark: answers go to disk as they are made, a killed run goes on."""

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from vlm_jax.errors import AnswersError, UserError
from vlm_jax.evals.answer_log import AnswerLog, Line, Unkept, unanswered
from vlm_jax.evals.answers import ERROR
from vlm_jax.evals.base import Example, Judged, Suite
from vlm_jax.evals.items import asked_of, tabulate_items, write_items
from vlm_jax.evals.results import protocol_hash
from vlm_jax.evals.tallies import TallyTable
from vlm_jax.progress import Progress

CUT = "cut_off"
"""The field of an answers line that is true where the answer ended at the limit of tokens."""

_NUMBERED = re.compile(r"^Sample \d+(?:, |: (?:its )?)")


class AnsweringModel(Protocol):
    """What the runner needs of a model; `vlm_jax.VLM` is one."""

    @property
    def answer(self) -> Callable[..., Iterator[Any]]:
        """Of lists of images and prompts: yields answers with `index` and `text` as made.

        With `on_error="yield"` a sample that cannot be read gives its `index` and the `reason`;
        `streams` seeds each sample's random stream.
        """
        ...


@dataclass(frozen=True)
class Share:
    """The part of a run of one process, or of several that answer together; by default all of it.

    Attributes:
        index: which part.
        count: of how many.
        agree: does work in every process and gives the results (JSON values) of all; an error in
            one is an error in all.
        in_step: runs work on every process that shares this part (all must run the same programs)
            and returns this one's result.
        writes: whether this process keeps the part's answers.
    """

    index: int = 0
    count: int = 1
    agree: Callable[[Callable[[], Any]], list[Any]] = lambda work: [work()]
    in_step: Callable[[Callable[[], Any]], Any] = lambda work: work()
    writes: bool = True

    @property
    def speaks(self) -> bool:
        """Whether this process reports progress and writes the finished file."""
        return self.index == 0 and self.writes

    def of(self, examples: Sequence[Example]) -> list[Example]:
        """This part: all examples on one image stay together."""
        groups: dict[Any, int] = {}
        for example in examples:
            groups.setdefault(_item(example), len(groups) % self.count)
        return [example for example in examples if groups[_item(example)] == self.index]

    def log(self, path: str | os.PathLike, identity: Mapping[str, Any]) -> AnswerLog | Unkept:
        """Where this process keeps answers; see `AnswerLog`."""
        return AnswerLog(path, identity, self.index, self.count) if self.writes else Unkept()

    def union(self, work: Callable[[], Mapping[str, Line]]) -> dict[str, Line]:
        """Does work in every process; returns the rows of all by id, answers before failures."""
        merged: dict[str, Line] = {}
        for rows in self.agree(work):
            for identifier, row in rows.items():
                if unanswered(identifier, merged):
                    merged[identifier] = row
        return merged


@dataclass(frozen=True)
class Answered:
    """What a run found.

    Attributes:
        suite: the benchmark.
        judged: example's id as a string -> what its answer says.
        failures: id as a string -> why there is no answer.
        rows: the lines of the answers file, failures left out.
    """

    suite: Suite = field(compare=False)
    judged: Mapping[str, Judged]
    failures: Mapping[str, str] = field(default_factory=dict)
    rows: Sequence[Line] = ()

    def table(self, without: Collection[str] = ()) -> TallyTable:
        """A row of tallies an item: what is asked about one image is resampled together.

        Args:
            without: ids that are left out, such as those that failed in another arm.
        """
        kept = (one for identifier, one in self.judged.items() if identifier not in without)
        return tabulate_items(self.suite, kept, asked_of(self.suite))

    def write_items(self, path: str | os.PathLike, without: Collection[str] = ()) -> None:
        """Writes `items.jsonl`; see `items.write_items`."""
        texts = {str(row["id"]): row[self.suite.answer_key] for row in self.rows}
        write_items(os.fspath(path), self.suite, self.judged, texts, without)

    def texts(self, without: Collection[str] = ()) -> dict[Any, str]:
        """Id -> answer, of those that were judged."""
        said = {str(row["id"]): row[self.suite.answer_key] for row in self.rows}
        return {one.example.id: said[key] for key, one in self.judged.items() if key not in without}


def run(
    model: AnsweringModel,
    benchmark: Suite,
    path: str | os.PathLike,
    *,
    identity: Mapping[str, Any],
    label: str = "",
    details: Callable[[Any], Line] | None = None,
    max_failures: float = 0.0,
    share: Share = Share(),
    **settings: Any,
) -> Answered:
    """Answers a benchmark and tallies the answers.

    Args:
        model: the model.
        benchmark: what to ask, and how to score it.
        path: the answers file (JSONL). Answers that it holds from a killed run are kept; items that
            failed are tried again.
        identity: JSON values that say which model and which settings make the answers; answers of
            another identity are refused.
        label: shown with the progress.
        details: more fields of an answer's line in the file, of what `AnsweringModel.answer`
            yields.
        max_failures: see `failure_limit`.
        share: this process's part; every process gets the whole result.
        settings: for `AnsweringModel.answer`, such as `max_new_tokens`.

    Raises:
        AnswersError: the file holds answers of another run.
        UserError: the file cannot be written, or more items failed than may; what was answered is
            kept.
    """
    examples = list(benchmark.examples())
    protocol = protocol_hash(benchmark.protocol())
    log = share.log(path, {**identity, "protocol": protocol})
    row = lambda example, answer: {
        **benchmark.answer_row(example, answer.text),
        **({} if getattr(answer, "ended", True) else {CUT: True}),
        **(details(answer) if details else {}),
    }
    rows = answer_all(
        model,
        examples,
        log,
        row,
        label=label,
        max_failures=max_failures,
        share=share,
        malformed=getattr(benchmark, "malformed", None),
        **settings,
    )
    answered = {key: line for key, line in rows.items() if ERROR not in line}
    return Answered(
        benchmark,
        {
            str(example.id): _judge(benchmark, example, line, path)
            for example in examples
            if (line := answered.get(str(example.id))) is not None
        },
        {key: line[ERROR] for key, line in rows.items() if ERROR in line},
        tuple(answered.values()),
    )


def _judge(benchmark: Suite, example: Example, line: Line, path: str | os.PathLike) -> Judged:
    """What the answer in a line of the answers file says."""
    judged = benchmark.judge(example, _text(line, benchmark, path))
    return judged.cut_off() if line.get(CUT) else judged


def _text(line: Line, benchmark: Suite, path: str | os.PathLike) -> str:
    """The answer in a line of the answers file."""
    text = line.get(benchmark.answer_key)
    if not isinstance(text, str):
        raise AnswersError(
            f"{path}: the line of {line.get('id')!r} has no text in {benchmark.answer_key!r}, "
            f"where {benchmark.name} keeps its answers; delete the file to answer anew."
        )
    return text


def answer_all(
    model: AnsweringModel,
    examples: Sequence[Example],
    log: AnswerLog | Unkept,
    row: Callable[[Example, Any], Line],
    *,
    label: str = "",
    max_failures: float = 0.0,
    share: Share = Share(),
    malformed: Mapping[str, str] | None = None,
    show: Callable[[Example, Any], None] = lambda example, answer: None,
    **settings: Any,
) -> dict[str, Line]:
    """Answers the examples that no earlier part of the run has; writes the finished file.

    Args:
        model: the model.
        examples: what to ask.
        log: where answers are kept.
        row: the fields of an answer's line.
        label, max_failures, share, settings: see `run`.
        malformed: items that could not be read into an example, and why; they are failures.
        show: called with each new answer.

    Returns:
        Every line by its id as a string, in the order of the examples, failures among them.

    Raises:
        UserError: none could be answered, or more failed than `max_failures` allows.
    """
    malformed = dict(malformed or {})
    guard = FailureGuard.of(max_failures, len(examples), malformed)
    known = share.union(lambda: log.find({str(example.id) for example in examples}))
    todo = [example for example in share.of(examples) if unanswered(str(example.id), known)]
    # Samples keep their random streams whatever part of the examples is asked.
    places = {str(example.id): place for place, example in enumerate(examples)}

    def work() -> dict[str, Line]:
        made: dict[str, Line] = {}
        if not todo:
            return made
        with log, Progress(len(todo), "answers", label=label, enabled=share.speaks) as progress:
            answers = model.answer(
                [list(example.images) for example in todo],
                [example.prompt for example in todo],
                on_error="yield",
                streams=[places[str(example.id)] for example in todo],
                **settings,
            )
            for answer in answers:
                example, reason = todo[answer.index], why_not(answer)
                line = row(example, answer) if reason is None else {ERROR: reason}
                made[str(example.id)] = {"id": example.id, **line}
                log.append(example.id, line)
                progress.advance(failed=reason is not None)
                if reason is None:
                    show(example, answer)
                else:
                    guard.add({str(example.id): reason})
        return made if share.writes else {}

    new = share.union(lambda: share.in_step(work))
    failed = {**malformed, **{key: line[ERROR] for key, line in new.items() if ERROR in line}}
    FailureGuard(guard.limit, guard.total, failed).check()
    found = {**known, **new}
    if failed and all(unanswered(str(example.id), found) for example in examples):
        identifier, reason = next(iter(failed.items()))
        raise UserError(
            f"none of {guard.total} items was answered, the first {identifier}: {reason}"
        )
    rows = {str(e.id): found[str(e.id)] for e in examples}
    rows |= {key: {"id": key, ERROR: reason} for key, reason in malformed.items()}
    share.agree(lambda: log.publish(list(rows.values())) if share.speaks else None)
    log.forget()
    return rows


def failure_limit(max_failures: float, total: int) -> int:
    """How many of `total` items may fail: a number, or below 1 a share (of at least one item).

    Raises:
        UserError: it is negative.
    """
    if not max_failures >= 0:
        raise UserError(
            f"config.max_failures={max_failures} must be a number of items, or a share below 1."
        )
    if max_failures >= 1:
        return int(max_failures)
    return max(1, int(max_failures * total)) if max_failures else 0


@dataclass
class FailureGuard:
    """Counts items that failed, and stops at too many.

    Attributes:
        limit: how many may fail.
        total: how many there are.
        failed: id -> why.
    """

    limit: int
    total: int
    failed: dict[str, str]

    @classmethod
    def of(cls, max_failures: float, count: int, malformed: Mapping[str, str]) -> "FailureGuard":
        """A guard over `count` examples, and items that could not be read into one."""
        total = count + len(malformed)
        guard = cls(failure_limit(max_failures, total), total, dict(malformed))
        guard.check()
        return guard

    def add(self, failed: Mapping[str, str]) -> None:
        """Notes items that failed, and why.

        Raises:
            UserError: these are too many.
        """
        self.failed |= failed
        self.check()

    def check(self) -> None:
        """Raises `UserError` if more failed than may."""
        if len(self.failed) <= self.limit:
            return
        identifier, reason = list(self.failed.items())[-1]
        raise UserError(
            f"{len(self.failed)} of {self.total} items failed and config.max_failures allows "
            f"{self.limit}, the last {identifier}: {reason} Repair them or allow more; what was "
            "answered is kept."
        )


def why_not(answer: Any) -> str | None:
    """Returns why there is no answer, None if there is.

    Reasons begin with the sample's number in its call, which the line's id says better.
    """
    reason = getattr(answer, "reason", None)
    return None if reason is None else _NUMBERED.sub("", reason)


def _item(example: Example) -> Any:
    """The image that an example is about."""
    return example.meta.get("image", example.id)
