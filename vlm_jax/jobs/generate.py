"""Answers prompts about images."""

import json
import pathlib
import sys
from typing import Any

from vlm_jax import checkpoint
from vlm_jax.errors import PromptError, UserError
from vlm_jax.evals.answer_log import AnswerLog, Unkept
from vlm_jax.evals.answers import ERROR
from vlm_jax.evals.base import Example
from vlm_jax.evals.results import protocol_hash
from vlm_jax.evals.runner import answer_all
from vlm_jax.foreign import read_bytes
from vlm_jax.jobs.fingerprint import fingerprint
from vlm_jax.jobs.request import Request
from vlm_jax.jobs.runtime import generation_identity, generation_settings, load_model, share
from vlm_jax.parallel import processes


def run(request: Request) -> None:
    """Answers `config.requests`, or `config.prompt` about `config.images`.

    Prints the answers; with `--workdir` also writes `answers.jsonl`, a line {"id", "prompt",
    "text"} an answer, or {"id", "error"} for a request that cannot be read. A killed run goes on
    where it stopped.
    """
    config = request.config
    examples, malformed = read_requests(config.requests, config.prompt, list(config.images))
    model = load_model(request)
    part = share(config)
    log: AnswerLog | Unkept = Unkept()
    if request.workdir is not None:
        asked = [[e.id, e.prompt, [str(image) for image in e.images]] for e in examples]
        identity = {
            "source": fingerprint(checkpoint.open_folder(request.need("source"))),
            **generation_identity(config, model),
            "requests": protocol_hash({"asked": asked}),
        }
        log = part.log(request.workdir / "answers.jsonl", identity)
    rows = answer_all(
        model,
        examples,
        log,
        lambda example, answer: {"prompt": example.prompt, "text": answer.text},
        label="generate",
        max_failures=config.max_failures,
        share=part,
        malformed=malformed,
        show=lambda example, answer: print(f"[{example.id}] {answer.text}", flush=True),
        **generation_settings(config),
    )
    failed = [row for row in rows.values() if ERROR in row]
    for row in failed if processes.primary() else []:
        print(f"[{row['id']}] failed: {row[ERROR]}", file=sys.stderr)
    if log.path is not None:
        counted = f" ({len(failed)} of {len(rows)} failed)" if failed else ""
        print(f"Answers: {log.path}{counted}")


def read_requests(
    path: str, prompt: str, images: list[str]
) -> tuple[list[Example], dict[str, str]]:
    """Reads requests; images are relative to the request file.

    Returns:
        The requests, and what is wrong with those that are none, by line.

    Raises:
        UserError: the file cannot be read, holds no request, or two of one id.
    """
    if not path:
        if not prompt:
            raise PromptError("Set config.requests (a JSONL file) or config.prompt.")
        return [Example(0, tuple(images), prompt)], {}
    folder = pathlib.Path(path).parent
    try:
        # Not `splitlines`: it also cuts at characters that may stand in a string of JSON.
        lines = read_bytes(pathlib.Path(path), error=UserError).decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}).") from error
    examples: dict[str, Example] = {}
    malformed: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            example = _read_request(json.loads(line), number, folder)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = f"needs an object with 'prompt' and 'images': {type(error).__name__}: {error}."
            malformed[f"line {number}"] = reason
            continue
        if str(example.id) in examples:
            raise PromptError(f"{path} line {number}: second request {example.id}; keep one.")
        examples[str(example.id)] = example
    if not examples and not malformed:
        raise PromptError(f"{path} holds no request.")
    return list(examples.values()), malformed


def _read_request(fields: dict[str, Any], number: int, folder: pathlib.Path) -> Example:
    images, prompt = fields.get("images", []), fields["prompt"]
    if not isinstance(prompt, str):
        raise TypeError(f"prompt is {type(prompt).__name__}, not text")
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise TypeError("images is no list of paths")
    return Example(fields.get("id", number), tuple(folder / image for image in images), prompt)
