"""Grades of answers by a judge: any server with OpenAI's chat API that the user names.

Each question is put to it as a row of a table that it completes:

    Question | Ground truth | Prediction | Correctness
    What is it? | a dog <OR> a hound | It is a hound. | -> 1.0

What it said is kept line by line, so that a run that was stopped asks for the rest alone. The file
of grades is in the form of MM-Vet's official grader. Grades of different judges do not compare.
"""

import concurrent.futures
import contextlib
import hashlib
import http.client
import json
import os
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm_jax.errors import AnswersError, ConfigError
from vlm_jax.evals.base import Example
from vlm_jax.evals.final_answer import answered
from vlm_jax.evals.records import read_rows, read_text, shorten
from vlm_jax.files import cannot_write, lock, open_to_append, replace_file, write_all
from vlm_jax.progress import Progress
from vlm_jax.settings import number, setting, text, whole

PROMPT = """\
Compare the prediction with the ground truth of each question and complete the column Correctness \
with one number from 0.0 (totally wrong) to 1.0 (totally right), in steps of 0.1. Parts joined by \
<AND> must all be in the prediction for 1.0; of parts joined by <OR> one is enough. Say the number \
alone.

Question | Ground truth | Prediction | Correctness
--- | --- | --- | ---
What colours has the flag? | red <AND> white | It is red. | 0.5
What colours has the flag? | red <AND> white | Red, with a white cross. | 1.0
What animal is it? | a dog <OR> a hound | A grey hound. | 1.0
What animal is it? | a dog <OR> a hound | A cat. | 0.0
What is 3 x 4? | 12 | The answer is 34. | 0.0
"""
_GRADE = re.compile(
    r"[^\w.-]*(?:correctness[^\w.-]*)?([01](?:\.\d+)?|\.\d+)(?![\d.]*\d)", re.IGNORECASE
)
_SECONDS = re.compile(r"[0-9]{1,9}")
_MAX_REPLY = 1 << 20
_LONGEST_WAIT = 60.0
_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """What `config.judge` says.

    Attributes:
        url: of the API, such as "https://api.openai.com/v1" or "http://127.0.0.1:8000/v1".
        model: the judge's id there.
        key_variable: the environment variable with the API key; one that is not set sends none.
        prompt: a file with the text before the row; "" is `PROMPT`.
        runs: times that every answer is graded; the mean is its grade.
        temperature: of the judge.
        max_tokens: of its reply; a judge that thinks needs more.
        parallel: requests at once.
        retries: further tries of a request that failed, or whose reply is no grade.
        wait_s: before the first further try; doubled for each.
        timeout_s: of a request, from its start to the end of its reply.
        max_characters: of an answer that are shown to the judge.
    """

    url: str = setting("", text)
    model: str = setting("", text)
    key_variable: str = setting("OPENAI_API_KEY", text)
    prompt: str = setting("", text)
    runs: int = setting(1, whole, low=1, high=100)
    temperature: float = setting(0.0, number, low=0, high=2)
    max_tokens: int = setting(16, whole, low=1, high=100_000)
    parallel: int = setting(8, whole, low=1, high=256)
    retries: int = setting(4, whole, low=0, high=100)
    wait_s: float = setting(1.0, number, low=0, high=3600)
    timeout_s: float = setting(120.0, number, low=0.1, high=3600)
    max_characters: int = setting(8000, whole, low=1)

    def before(self) -> str:
        """The text before the row."""
        return read_text(self.prompt) if self.prompt else PROMPT

    def name(self) -> str:
        """What results call the judge: the model, and a hash of the text before the row."""
        return f"{self.model} {_hash(self.before())[:8]}"


class _Refused(Exception):
    """A reply that another try will not change."""


@dataclass
class Judge:
    """Asks for grades.

    Args:
        chosen: how.
        key: API key, "" for none.
        folder: where `grades.jsonl`, what the judge said so far, and `grades.json` are.
    """

    chosen: JudgeSettings
    key: str
    folder: Path
    _ended: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        if not _is_address(self.chosen.url) or not self.chosen.model:
            raise ConfigError(
                "Set config.judge.url to the judge's API (http://127.0.0.1:8000/v1) and "
                "config.judge.model to its id there."
            )
        if not (self.key.isascii() and self.key.isprintable()):
            raise ConfigError(
                f"The environment variable {self.chosen.key_variable} holds a character that no "
                "API key has: a line's end, a control character or a letter beyond ASCII."
            )

    def grade(self, examples: Sequence[Example], texts: Mapping[Any, str]) -> Path:
        """Grades answers; returns `grades.json`.

        Whatever the judge said is kept, also where this is interrupted: nothing more is asked then.

        Raises:
            AnswersError: some could not be graded, after all others were.
            ConfigError: the judge refuses the key, the model or the address.
            UserError: another run grades in this folder, or it cannot be written.
        """
        before = self.chosen.before()
        asked = {
            (example.id, run): self._body(before, example, texts[example.id], run)
            for example in examples
            for run in range(self.chosen.runs)
        }
        keys = {place: _hash(json.dumps(body, sort_keys=True)) for place, body in asked.items()}
        with _Log(self.folder / "grades.jsonl") as log:
            left = {place: key for place, key in keys.items() if key not in log.said}
            failed = self._ask_all(log, {place: (key, asked[place]) for place, key in left.items()})
        if failed:
            first = next(iter(failed))
            raise AnswersError(
                f"{len(failed)} of {len(asked)} grades are missing, the first of {first[0]}: "
                f"{failed[first]} Run it again: the grades so far are in {log.path}."
            )
        return self._write(examples, [log.said[keys[place]] for place in asked])

    def _ask_all(
        self, log: "_Log", left: Mapping[Any, tuple[str, Mapping[str, Any]]]
    ) -> dict[Any, str]:
        """Asks for grades, several at once; returns why some are missing, by place."""
        failed: dict[Any, str] = {}
        self._ended.clear()

        def ask(place: Any) -> None:
            key, body = left[place]
            reply, grade = self._ask(body)
            log.append({"key": key, "id": place[0], "reply": reply, "score": grade})

        with (
            Progress(len(left), "grades", label=self.chosen.model) as progress,
            concurrent.futures.ThreadPoolExecutor(self.chosen.parallel) as pool,
        ):
            try:
                futures = {pool.submit(ask, place): place for place in left}
                for future in concurrent.futures.as_completed(futures):
                    try:
                        future.result()
                    except AnswersError as error:
                        failed[futures[future]] = str(error)
                    progress.advance()
            except _Refused as error:
                raise ConfigError(f"{self.chosen.url}: {error}") from None
            finally:
                self._ended.set()
                pool.shutdown(wait=True, cancel_futures=True)
        return failed

    def _write(self, examples: Sequence[Example], said: Sequence[Mapping[str, Any]]) -> Path:
        """Writes the grades as the official grader does."""
        found: dict[str, dict[str, list[Any]]] = {}
        for line in said:
            entry = found.setdefault(str(line["id"]), {"model": [], "content": [], "score": []})
            entry["model"].append(self.chosen.model)
            entry["content"].append(line["reply"])
            entry["score"].append(line["score"])
        path = self.folder / "grades.json"
        replace_file(path, json.dumps(found, indent=2) + "\n")
        return path

    def _body(self, before: str, example: Example, answer: str, run: int) -> dict[str, Any]:
        """A request: a row behind what stands `before` it; `run` tells repeated ones apart."""
        spaced = re.sub(r"\s*<(AND|OR)>\s*", r" <\1> ", str(example.meta["answer"]))
        said = answered(answer)  # of a model that thinks, what it says then
        shown = answer[said.start : said.end][: self.chosen.max_characters]
        cells = (example.meta["question"], spaced, shown)
        row = " | ".join(" ".join(str(cell).split()).replace("|", "/") for cell in cells)
        return {
            "model": self.chosen.model,
            "messages": [{"role": "user", "content": f"{before}{row} | "}],
            "temperature": self.chosen.temperature,
            "max_tokens": self.chosen.max_tokens,
            "seed": run,
        }

    def _ask(self, body: Mapping[str, Any]) -> tuple[str, float]:
        """A reply and the grade in it.

        Raises:
            AnswersError: there was none after all tries.
            _Refused: the judge will never answer.
        """
        problem, wait = "", self.chosen.wait_s
        for attempt in range(self.chosen.retries + 1):
            if attempt:
                self._ended.wait(min(wait, _LONGEST_WAIT))
                wait *= 2
            if self._ended.is_set():
                raise AnswersError("the judge refused another one.")
            try:
                reply = self._post(body)
            except urllib.error.HTTPError as error:
                problem = f"status {error.code}: {_message(error)}."
                if error.code not in _AGAIN:
                    self._ended.set()
                    raise _Refused(problem) from None
                asked = error.headers.get("Retry-After", "")
                wait = max(wait, float(asked)) if _SECONDS.fullmatch(asked) else wait
                continue
            except (OSError, http.client.HTTPException, ValueError) as error:
                problem = f"{type(error).__name__}: {shorten(str(error))}."
                continue
            grade = _GRADE.match(reply)
            if grade and float(grade[1]) <= 1:
                return reply[:200], float(grade[1])
            problem = f"its reply {shorten(reply)} is no grade from 0 to 1."
        raise AnswersError(problem)

    def _post(self, body: Mapping[str, Any]) -> str:
        """The text of the judge's reply.

        Raises:
            OSError, HTTPException, ValueError: there is none.
        """
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(
            self.chosen.url.rstrip("/") + "/chat/completions",
            json.dumps(body).encode(),
            headers,
            method="POST",
        )
        end = time.monotonic() + self.chosen.timeout_s
        with _OPENER.open(request, timeout=self.chosen.timeout_s) as response:
            content = _read_until(end, response)
        if len(content) > _MAX_REPLY:
            raise ValueError(f"a reply of more than {_MAX_REPLY} bytes")
        try:
            found = json.loads(content)["choices"][0]["message"]["content"]
        except (ValueError, RecursionError, LookupError, TypeError):
            raise ValueError("a reply that is no chat completion") from None
        if not isinstance(found, str):
            raise ValueError("a reply without text")
        return found


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The key goes to the server that was named, and nowhere else."""

    def redirect_request(self, *args: Any, **others: Any) -> None:
        """Follows none."""


_OPENER = urllib.request.build_opener(_NoRedirects)


def _is_address(url: str) -> bool:
    """Whether a text is an http address with a host."""
    try:
        parts = urllib.parse.urlsplit(url)
        _ = parts.port  # raises for one that no port has
    except ValueError:
        return False
    plain = url.isprintable() and " " not in url
    return parts.scheme in ("http", "https") and bool(parts.hostname) and plain


def _read_until(end: float, response: http.client.HTTPResponse) -> bytes:
    """Reads a reply, or a byte more than it may have; a server may send it byte by byte.

    Raises:
        TimeoutError: it has not come by then.
    """
    content = b""
    while len(content) <= _MAX_REPLY:
        part = response.read1(_MAX_REPLY + 1 - len(content))
        if not part:
            break
        content += part
        if time.monotonic() > end:
            raise TimeoutError("the reply has not ended in timeout_s")
    return content


class _Log:
    """What the judge said, a line a grade, kept as it comes; a context manager around asking.

    Attributes:
        said: lines by the hash of what was asked, of earlier runs too.
    """

    def __init__(self, path: Path):
        self.path = path
        self.said: dict[str, Mapping[str, Any]] = {}
        self._one = threading.Lock()
        self._file = -1

    def __enter__(self) -> "_Log":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open_to_append(self.path)
            lock(self._file, self.path)
            self.said.update(self._kept())
            os.lseek(self._file, 0, os.SEEK_END)
        except OSError as error:
            self.__exit__()
            raise cannot_write(self.path, error) from error
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def append(self, line: Mapping[str, Any]) -> None:
        """Keeps a grade; threads may call it.

        Raises:
            UserError: it cannot be written; the grades before it are kept.
        """
        content = (json.dumps(line) + "\n").encode()
        with self._one:
            try:
                write_all(self._file, content)
            except OSError as error:
                raise cannot_write(self.path, error, "the grades so far are kept") from error
            self.said[line["key"]] = line

    def _kept(self) -> Mapping[str, Mapping[str, Any]]:
        """The lines of earlier runs; one that was cut short is removed."""
        content = self.path.read_bytes()
        end = content.rfind(b"\n") + 1
        os.truncate(self._file, end)
        if not content[:end].strip():
            return {}
        found = {}
        for row in read_rows(self.path):
            line = row.fields
            score = line.get("score")
            graded = isinstance(score, int | float) and 0 <= score <= 1
            if not isinstance(line.get("key"), str) or not graded:
                raise row.error("is no line of a judge's log; delete the file to ask it again")
            found[line["key"]] = line
        return found


def _message(error: urllib.error.HTTPError) -> str:
    """What a server says of an error, in one line."""
    try:
        text = error.read(_MAX_REPLY).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        text = error.reason
    with contextlib.suppress(ValueError, RecursionError, LookupError, TypeError):
        text = json.loads(text)["error"]["message"]
    return shorten(" ".join(str(text).split()))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
