"""Answers on disk while they are made, and the finished file.

A process appends a line an answer to a log of its own: the finished file's name where it works
alone, `answers.<process>-of-<n>.jsonl` where it is one of n. A line outlives the process as soon as
it is appended, and the machine within `SYNC_SECONDS`. The finished file has the lines of all
processes in the order of the questions, whoever made them and however often they were stopped.

A small file beside it, `answers.run.json`, says whose answers they are.
"""

import itertools
import json
import os
import pathlib
import sys
import threading
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from vlm_jax.errors import AnswersError, UserError
from vlm_jax.evals.answers import ERROR
from vlm_jax.files import (
    cannot_write,
    lock,
    open_to_append,
    read_own,
    refuse_other_kinds,
    replace_file,
    write_all,
)
from vlm_jax.foreign import parse_json

SYNC_SECONDS = 1.0

Line = Mapping[str, Any]


def unanswered(identifier: str, rows: Mapping[str, Line]) -> bool:
    """Whether rows by id have no answer to an item: no line, or one that says why there is none."""
    return ERROR in rows.get(identifier, {ERROR: ""})


class AnswerLog:
    """The log of one process, and what all logs hold; a context manager around appending.

    Args:
        path: the finished file.
        identity: JSON values that say which model and which settings make the answers.
        index: which process this is.
        count: how many share the work.
    """

    def __init__(
        self, path: str | os.PathLike, identity: Mapping[str, Any], index: int = 0, count: int = 1
    ):
        self.path = pathlib.Path(path)
        self.key = self.path.with_suffix(".run.json")
        self.identity = json.loads(json.dumps(identity, sort_keys=True, default=str))
        self._ending = f"-of-{count}{self.path.suffix}"
        name = f"{self.path.stem}.{index}{self._ending}"
        self.log = self.path if count == 1 else self.path.with_name(name)
        self._fresh = False
        self._file: int | None = None
        self._sync: _Sync | None = None
        self._size = 0

    def find(self, known: Collection[str]) -> dict[str, Line]:
        """Returns the lines of earlier parts of this run, by id as a string; changes nothing.

        Where an item failed and was answered later, the answer counts.

        Args:
            known: ids that the run asks about.

        Raises:
            AnswersError: the file holds answers of another run.
            UserError: it cannot be read.
        """
        try:
            before = self._whose() if self.key.exists() else None
            if before is None:
                self._set_aside()
                self._fresh = True
                return {}
            if before != self.identity:
                raise AnswersError(
                    f"{self.path} holds answers of another run: "
                    f"{difference(before, self.identity)}. Delete it and {self.key.name}, or "
                    "choose another --workdir."
                )
            rows: dict[str, Line] = {}
            for log in dict.fromkeys([self.path, self.log, *self._logs()]):
                for row, _ in _lines(log):
                    identifier = str(row["id"])
                    if identifier in known and unanswered(identifier, rows):
                        rows[identifier] = row
            return rows
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror or error}.") from error

    def _whose(self) -> Any:
        """The identity of the answers that are there; None where its file is damaged."""
        content = read_own(self.key)
        try:
            return parse_json(content, dict, str(self.key), AnswersError)
        except AnswersError:
            return None

    def _say_whose(self) -> None:
        replace_file(self.key, json.dumps(self.identity, indent=2) + "\n")

    def _set_aside(self) -> None:
        """Renames answers of which nothing says whose they are: ours, damaged, or another's."""
        logs = list(dict.fromkeys((self.path, self.log, *self._logs())))
        for old in logs:
            refuse_other_kinds(old)
        found = [old for old in logs if old.exists() and old.stat().st_size]
        # A process that has just started writes the key, then its log.
        if not found or (self.key.exists() and self._whose() is not None):
            return
        for old in found:
            kept = _free(old.with_name(f"{old.name}.damaged"))
            old.replace(kept)
            print(
                f"{self.key} is missing or damaged, so nothing says whose answers {old.name} "
                f"holds: they are kept as {kept.name} and made again.",
                file=sys.stderr,
            )

    def __enter__(self) -> "AnswerLog":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open_to_append(self.log)
            self._begin()
        except OSError as error:
            self._close()
            raise cannot_write(self.log, error) from error
        except UserError:
            self._close()
            raise
        self._sync = _Sync(self._file)
        return self

    def _begin(self) -> None:
        """Makes the log that was opened this run's alone; of a fresh run, an empty one."""
        assert self._file is not None
        lock(self._file, self.log)
        if self._fresh:
            os.truncate(self._file, 0)
            for old in (self.path, *self._logs()):
                refuse_other_kinds(old)
                # Of the same count are the logs that other processes open just now.
                if old != self.log and not old.name.endswith(self._ending):
                    old.unlink(missing_ok=True)
            self._say_whose()
            self._fresh = False
        self._size = max((end for _, end in _lines(self.log)), default=0)
        os.truncate(self._file, self._size)  # a line that was cut short
        os.lseek(self._file, self._size, os.SEEK_SET)

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file = None

    def append(self, identifier: Any, row: Line) -> None:
        """Writes one answer, or why there is none (`ERROR`).

        Raises:
            UserError: it cannot be written; the answers before it are kept.
        """
        assert self._file is not None
        assert self._sync is not None
        line = _line({"id": identifier, **row})
        try:
            self._sync.check()
            write_all(self._file, line)
            self._size += len(line)
            self._sync.wanted.set()
        except OSError as error:
            raise self._failed(error) from error

    def __exit__(self, kind: type | None, *error: object) -> None:
        if self._file is None or self._sync is None:
            return
        try:
            self._sync.stop()
            self._sync.check()
            os.truncate(self._file, self._size)  # half a line, where the disk is full
            os.fsync(self._file)
        except OSError as failed:
            if kind is None:
                raise self._failed(failed) from failed
        finally:
            os.close(self._file)
            self._file = self._sync = None

    def publish(self, rows: Collection[Line]) -> None:
        """Writes the finished file, lines in the order given, and removes the processes' logs.

        Raises:
            UserError: it cannot be written; all logs are kept.
        """
        content = b"".join(map(_line, rows))
        try:
            if not self.key.exists():  # removed meanwhile: nothing would say whose answers they are
                self._say_whose()
            if not self.path.exists() or read_own(self.path) != content:
                replace_file(self.path, content, kept=f"the answers are kept in {self._kept()}")
            for log in self._logs():
                log.unlink(missing_ok=True)
        except OSError as error:
            raise cannot_write(
                self.path, error, f"the answers are kept in {self._kept()}"
            ) from error

    def forget(self) -> None:
        """Removes this process's own log, once its lines are in the finished file elsewhere."""
        if self.log != self.path:
            self.log.unlink(missing_ok=True)

    def _logs(self) -> list[pathlib.Path]:
        return sorted(self.path.parent.glob(f"{self.path.stem}.*-of-*{self.path.suffix}"))

    def _kept(self) -> str:
        return ", ".join(log.name for log in self._logs()) or str(self.log)

    def _failed(self, error: OSError) -> UserError:
        return cannot_write(self.log, error, "the answers so far are kept: start again to go on")


class Unkept:
    """The log of answers that nobody keeps."""

    path = None

    def find(self, known: Collection[str]) -> dict[str, Line]:
        """Nothing."""
        return {}

    def __enter__(self) -> "Unkept":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def append(self, identifier: Any, row: Line) -> None:
        """Forgets it."""

    def publish(self, rows: Collection[Line]) -> None:
        """Writes nothing."""

    def forget(self) -> None:
        """There is nothing."""


class _Sync:
    """Puts a file's content on disk every `SYNC_SECONDS` while there is something new."""

    def __init__(self, file: int):
        self.wanted = threading.Event()
        self._file, self._stop = file, threading.Event()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="answers to disk")
        self._thread.start()

    def check(self) -> None:
        """Raises the error that the disk has reported."""
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Ends the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        # One event decides when to end: woken by `wanted` as well, it could clear the last call.
        while not self._stop.wait(SYNC_SECONDS):
            if not self.wanted.is_set():
                continue
            self.wanted.clear()
            try:
                os.fsync(self._file)
            except OSError as error:
                self._error = error
                return


def difference(before: Any, now: Mapping[str, Any]) -> str:
    """What differs between the identities of two runs, in words.

    ({"seed": 1, "a": 2}, {"seed": 2, "a": 2}) -> "seed was 1 and is 2".
    """
    if not isinstance(before, Mapping):
        return "their settings are not known"
    names = [*now, *(name for name in before if name not in now)]
    return "; ".join(
        f"{_WORDS.get(name, name)} was {_short(before.get(name))} and is {_short(now.get(name))}"
        for name in names
        if before.get(name) != now.get(name)
    )


_WORDS = {
    "source": "the model (a hash of its files)",
    "requests": "what is asked (a hash of prompts and images)",
    "protocol": "the benchmark (a hash of its protocol)",
    "pictures": "the images (a hash of their content)",
}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _free(path: pathlib.Path) -> pathlib.Path:
    """Returns a path at which nothing is: this one, or with a number behind it."""
    numbered = (path.with_name(f"{path.name}.{n}") for n in itertools.count(2))
    return next(one for one in itertools.chain([path], numbered) if not os.path.lexists(one))


def _line(row: Line) -> bytes:
    return (json.dumps(row) + "\n").encode()


def _lines(path: pathlib.Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Yields rows with the place where each ends, up to a line that was cut short."""
    try:
        data = read_own(path)
    except FileNotFoundError:
        return
    end = 0
    for line in data.split(b"\n")[:-1]:
        try:
            row = json.loads(line)
            _ = row["id"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return
        end += len(line) + 1
        yield row, end
