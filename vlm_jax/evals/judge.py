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
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm_jax.errors import AnswersError, ConfigError
from vlm_jax.evals.base import Example
from vlm_jax.evals.final_answer import answered
from vlm_jax.evals.records import read_rows, read_text, shorten
from vlm_jax.files import replace_file
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
        timeout_s: of a request.
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
        sleep: waits so many seconds.
    """

    chosen: JudgeSettings
    key: str
    folder: Path
    sleep: Callable[[float], None] = time.sleep
    _refused: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        if not self.chosen.url.startswith(("http://", "https://")) or not self.chosen.model:
            raise ConfigError(
                "Set config.judge.url to the judge's API (http://127.0.0.1:8000/v1) and "
                "config.judge.model to its id there."
            )

    def grade(self, examples: Sequence[Example], texts: Mapping[Any, str]) -> Path:
        """Grades answers; returns `grades.json`.

        Raises:
            AnswersError: some could not be graded, after all others were.
            ConfigError: the judge refuses the key, the model or the address.
        """
        log = self.folder / "grades.jsonl"
        self.folder.mkdir(parents=True, exist_ok=True)
        said = _kept(log)
        before = self.chosen.before()
        asked = {
            (example.id, run): self._body(before, example, texts[example.id], run)
            for example in examples
            for run in range(self.chosen.runs)
        }
        keys = {place: _hash(json.dumps(body, sort_keys=True)) for place, body in asked.items()}
        left = [place for place, key in keys.items() if key not in said]
        failed: dict[Any, str] = {}
        with (
            Progress(len(left), "grades", label=self.chosen.model) as progress,
            concurrent.futures.ThreadPoolExecutor(self.chosen.parallel) as pool,
            open(log, "a", encoding="utf-8") as file,
        ):
            futures = {pool.submit(self._ask, asked[place]): place for place in left}
            try:
                for future in concurrent.futures.as_completed(futures):
                    place = futures[future]
                    try:
                        reply, grade = future.result()
                    except AnswersError as error:
                        failed[place] = str(error)
                    else:
                        line = {"key": keys[place], "id": place[0], "reply": reply, "score": grade}
                        said[keys[place]] = line
                        file.write(json.dumps(line) + "\n")
                        file.flush()
                    progress.advance()
            except _Refused as error:
                pool.shutdown(wait=True, cancel_futures=True)
                raise ConfigError(f"{self.chosen.url}: {error}") from None
        if failed:
            first = next(iter(failed))
            raise AnswersError(
                f"{len(failed)} of {len(asked)} grades are missing, the first of {first[0]}: "
                f"{failed[first]} Run it again: the grades so far are in {log}."
            )
        return self._write(examples, [said[keys[place]] for place in asked])

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
            if self._refused.is_set():
                raise AnswersError("the judge refused another one.")
            if attempt:
                self.sleep(min(wait, _LONGEST_WAIT))
                wait *= 2
            try:
                reply = self._post(body)
            except urllib.error.HTTPError as error:
                problem = f"status {error.code}: {_message(error.read(_MAX_REPLY))}."
                if error.code not in _AGAIN:
                    self._refused.set()
                    raise _Refused(problem) from None
                asked = error.headers.get("Retry-After", "")
                wait = max(wait, float(asked)) if asked.isdigit() else wait
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
        with _OPENER.open(request, timeout=self.chosen.timeout_s) as response:
            content = response.read(_MAX_REPLY + 1)
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


def _kept(log: Path) -> dict[str, dict[str, Any]]:
    """What the judge has said before, by the hash of what it was asked; a torn line is nothing."""
    if not log.is_file() or not log.stat().st_size:
        return {}
    content = log.read_text(encoding="utf-8", errors="replace")
    if not content.endswith("\n"):
        content = content[: content.rfind("\n") + 1]
        replace_file(log, content)
    if not content:
        return {}
    found = {}
    for row in read_rows(log):
        line = row.fields
        score = line.get("score")
        if not isinstance(line.get("key"), str) or not isinstance(score, int | float):
            raise row.error("is no line of a judge's log; delete the file to ask it again")
        found[line["key"]] = line
    return found


def _message(content: bytes) -> str:
    """What a server says of an error, in one line."""
    text = content.decode("utf-8", "replace")
    with contextlib.suppress(ValueError, RecursionError, LookupError, TypeError):
        text = json.loads(text)["error"]["message"]
    return shorten(" ".join(str(text).split()))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
