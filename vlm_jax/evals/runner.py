"""Runs a model over a benchmark: answers go to disk as they are made, a killed run goes on."""

import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from vlm_jax.errors import AnswersError, UserError
from vlm_jax.evals.base import Benchmark, Example
from vlm_jax.evals.results import protocol_hash
from vlm_jax.evals.tallies import TallyTable, tabulate_sums
from vlm_jax.progress import Progress

_SYNC_EVERY = 128


class Model(Protocol):
    """What the runner needs of a model; `vlm_jax.VLM` is one."""

    @property
    def answer(self) -> Callable[..., Iterator[Any]]:
        """Of lists of images and prompts: yields answers with `index` and `text` as made."""
        ...


def run(
    model: Model,
    benchmark: Benchmark,
    path: str | os.PathLike,
    *,
    identity: Mapping[str, Any],
    label: str = "",
    details: Callable[[Any], Mapping[str, Any]] | None = None,
    **settings: Any,
) -> TallyTable:
    """Answers a benchmark and tallies the answers.

    Args:
        model: the model.
        benchmark: what to ask, and how to score it.
        path: the answers file (JSONL). Answers that it holds from a killed run are kept.
        identity: JSON values that say which model and which settings make the answers; answers of
            another identity are refused.
        label: shown with the progress.
        details: more fields of an answer's line in the file, of what `Model.answer` yields.
        settings: for `Model.answer`, such as `max_new_tokens`.

    Returns:
        A row of tallies an image (questions on one image are resampled together).

    Raises:
        AnswersError: the file holds answers of another run.
        UserError: the file cannot be written.
    """
    examples = list(benchmark.examples())
    store = _Store(
        pathlib.Path(path), {**identity, "protocol": protocol_hash(benchmark.protocol())}
    )
    texts = store.read({str(example.id) for example in examples})
    todo = [example for example in examples if str(example.id) not in texts]
    if todo:
        with Progress(len(todo), "answers", label=label) as progress, store:
            answers = model.answer(
                [list(example.images) for example in todo],
                [example.prompt for example in todo],
                **settings,
            )
            for answer in answers:
                example = todo[answer.index]
                texts[str(example.id)] = answer.text
                row = benchmark.answer_row(example, answer.text)
                store.append(example.id, {**row, **(details(answer) if details else {})})
                progress.advance()
    return tabulate_answers(benchmark, examples, texts)


def tabulate_answers(
    benchmark: Benchmark, examples: list[Example], texts: Mapping[str, str]
) -> TallyTable:
    """Sums the tallies of answers by image; `texts` is keyed by the example's id as a string."""
    return tabulate_sums(
        (example.meta.get("image", example.id), benchmark.tally(example, texts[str(example.id)]))
        for example in examples
    )


class _Store:
    """An append-only answers file beside a small file that says whose answers they are."""

    def __init__(self, path: pathlib.Path, identity: Mapping[str, Any]):
        self.path, self.key = path, path.with_suffix(".run.json")
        self.identity = json.loads(json.dumps(identity, sort_keys=True, default=str))
        self._file = None
        self._written = 0

    def read(self, known: set[str]) -> dict[str, str]:
        """Returns the answers of an earlier part of this run; drops a line that was cut short."""
        if not self.path.exists() or not self.key.exists():
            return {}
        if json.loads(self.key.read_text(encoding="utf-8")) != self.identity:
            raise AnswersError(
                f"{self.path} holds answers of another model or other settings ({self.key.name} "
                "says which); delete it or choose another --workdir."
            )
        texts: dict[str, str] = {}
        kept = 0
        data = self.path.read_bytes()
        for line in data.splitlines(keepends=True):
            try:
                row = json.loads(line)
                identifier, text = str(row["id"]), row.get("caption", row.get("text"))
            except (ValueError, KeyError, TypeError, AttributeError):
                break
            if not line.endswith(b"\n") or identifier not in known:
                break
            texts[identifier] = text
            kept += len(line)
        if kept < len(data):
            os.truncate(self.path, kept)
        return texts

    def __enter__(self) -> "_Store":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fresh = not (self.path.exists() and self.key.exists())
            if fresh:
                self.key.write_text(json.dumps(self.identity, indent=2), encoding="utf-8")
            self._file = self.path.open("w" if fresh else "a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}.") from error
        return self

    def append(self, identifier: Any, row: Mapping[str, Any]) -> None:
        """Writes one answer; it survives the process from then on, and soon the machine."""
        assert self._file is not None
        try:
            self._file.write(json.dumps({"id": identifier, **row}) + "\n")
            self._file.flush()
            self._written += 1
            if self._written % _SYNC_EVERY == 0:
                os.fsync(self._file.fileno())
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror or error}; the answers so far are kept."
            ) from error

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
