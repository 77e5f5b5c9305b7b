"""Answers prompts about images."""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from vlm_jax import checkpoint
from vlm_jax.api import VLM, Answer
from vlm_jax.edits.qk import METHODS as EDIT_METHODS
from vlm_jax.errors import PromptError, UserError
from vlm_jax.evals.answer_log import AnswerLog, Unkept
from vlm_jax.evals.answers import ERROR
from vlm_jax.evals.base import Example
from vlm_jax.evals.results import protocol_hash
from vlm_jax.evals.runner import answer_all
from vlm_jax.foreign import parse_json, read_bytes
from vlm_jax.parallel import processes
from vlm_jax.settings import plain, refuse_unknown
from vlm_jax.study.arms import IDENTIFIED
from vlm_jax.study.fingerprint import fingerprint, picture
from vlm_jax.study.request import Request
from vlm_jax.study.runtime import generation_identity, generation_settings, load_model, share

MAX_REQUESTS = 1 << 30
EDIT = "qk"
_FIELDS = ("id", "prompt", "image", "images")


def run(request: Request) -> None:
    """Answers `config.requests`, or `config.prompt` about `config.images`.

    `config.method` says what is done to the model first. Prints the answers; with `--workdir` also
    writes `answers.jsonl`, a line {"id", "prompt", "image" or "images", "text"} an answer, or
    {"id", "error"} for a request that cannot be read. A killed run goes on where it stopped.

    Raises:
        UserError: no request was answered, or more failed than may.
    """
    config = request.config
    examples, malformed = read_requests(config.requests, config.prompt, _listed(config.images))
    source = checkpoint.open_folder(request.need("source"))
    model = treated(load_model(request, source), config)
    part = share(config)
    settings = generation_settings(config, model, examples)
    log: AnswerLog | Unkept = Unkept()
    if request.workdir is not None:
        asked = [[e.id, e.prompt, [picture(image) for image in e.images]] for e in examples]
        identity = {
            "source": fingerprint(source),
            **generation_identity(config, model),
            "treatments": [one.identity() for one in model.treatments],
            "requests": protocol_hash({"asked": asked}),
        }
        log = part.log(request.workdir / "answers.jsonl", identity)
    rows = answer_all(
        model,
        examples,
        log,
        _row,
        label="generate",
        max_failures=config.max_failures,
        share=part,
        malformed=malformed,
        show=lambda example, answer: print(f"[{example.id}] {answer.text}", flush=True),
        settings=settings,
    )
    failed = [row for row in rows.values() if ERROR in row]
    for row in failed if processes.primary() else []:
        print(f"[{row['id']}] failed: {row[ERROR]}", file=sys.stderr)
    if log.path is not None:
        counted = f" ({len(failed)} of {len(rows)} failed)" if failed else ""
        print(f"Answers: {log.path}{counted}")


def _listed(images: Any) -> list[str]:
    """Paths, given as a list or as one text with commas between them."""
    return [one for one in images.split(",") if one] if isinstance(images, str) else list(images)


def _row(example: Example, answer: Answer) -> dict[str, Any]:
    """The line of an answer, which `--job=score` reads: an image by its file's name."""
    names = [pathlib.Path(image).name for image in example.images]
    about = {"image": names[0]} if len(names) == 1 else {"images": names} if names else {}
    return {"prompt": example.prompt, **about, "text": answer.text}


def read_requests(
    path: str, prompt: str, images: Sequence[str]
) -> tuple[list[Example], dict[str, str]]:
    """Reads requests; images are relative to the request file.

    A line is an object with `prompt`, and with `images` (a list of paths) or `image` (one path)
    where it is about any, and `id` where the answer is to be found again. A `prompt` that is a list
    holds several turns: the user's, the assistant's, ..., the user's.

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
    content = read_bytes(pathlib.Path(path), MAX_REQUESTS, UserError)
    try:
        lines = content.decode("utf-8-sig").split("\n")  # U+2028 may stand inside a JSON string
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}).") from error
    examples: dict[str, Example] = {}
    malformed: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            example = _read_request(line, number, folder)
        except UserError as error:
            malformed[f"line {number}"] = str(error)
            continue
        if str(example.id) in examples:
            raise PromptError(f"{path} line {number}: second request {example.id}; keep one.")
        examples[str(example.id)] = example
    if not examples and not malformed:
        raise PromptError(f"{path} holds no request.")
    return list(examples.values()), malformed


def _read_request(line: str, number: int, folder: pathlib.Path) -> Example:
    row = parse_json(line, dict[str, Any], "the request", PromptError)
    refuse_unknown(row, _FIELDS, "a request")
    if "image" in row and "images" in row:
        raise PromptError("has both 'image' and 'images'; give one of them.")
    images = [row["image"]] if "image" in row else row.get("images", [])
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise PromptError("needs 'images' as a list of paths, or 'image' as one path.")
    prompt, name = row.get("prompt"), row.get("id", number)
    turns = prompt if isinstance(prompt, list) else [prompt]
    if not turns or not all(isinstance(one, str) and one for one in turns):
        what = "texts as turns of its 'prompt'" if isinstance(prompt, list) else "a text 'prompt'"
        raise PromptError(f"needs {what}, not {prompt!r}.")
    if not isinstance(name, str | int) or isinstance(name, bool):
        raise PromptError(f"needs a number or a text as 'id', not {name!r}.")
    for value in (*turns, name, *images):
        if isinstance(value, str) and not _is_text(value):
            raise PromptError(f"holds {value[:40]!r}, which is no valid Unicode text.")
    return Example(name, tuple(folder / image for image in images), prompt)


def _is_text(value: str) -> bool:
    """Whether a string can be written as UTF-8: it has no half of a surrogate pair."""
    try:
        return "\0" not in value and value.encode("utf-8") is not None
    except UnicodeEncodeError:
        return False


def treated(model: VLM, config: Any) -> VLM:
    """Returns the model with `config.method` applied: one method, or several that act together.

    An entry is a method's name or a mapping of `method` and its settings; one that names none is
    `config.edit` with some settings changed, as in `config.arms`.

    Raises:
        ConfigError: a method or a setting is unknown, or a value cannot be.
        EditError: an edit does not fit the model.
    """
    section = plain(config.get("method", ""))
    if not section:
        return model
    listed = [section] if isinstance(section, str) or hasattr(section, "items") else list(section)
    heads = str(config.heads).replace("{source}", str(model.source_folder("config.method").path))
    for entry in ({"method": one} if isinstance(one, str) else dict(one) for one in listed):
        settings = {key: _hashable(plain(value)) for key, value in entry.items()}
        method = settings.pop("method", EDIT)
        if method in (EDIT, *EDIT_METHODS):
            given = {"seed": config.seed, **plain(config.edit), **settings}
            if method != EDIT:
                given["method"] = method
            settings, method = {key: _hashable(value) for key, value in given.items()}, EDIT
        elif settings.get("heads") == IDENTIFIED and pathlib.Path(heads).is_file():
            settings["heads"] = heads
        model = model.apply(method, **settings)
    return model


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
