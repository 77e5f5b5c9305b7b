"""What `config.requests`, or `config.prompt` and `config.images`, ask a model."""

import pathlib
from collections.abc import Sequence
from typing import Any

from vlm_jax.errors import PromptError, UserError
from vlm_jax.evals.base import Example
from vlm_jax.foreign import parse_json, read_bytes, utf8
from vlm_jax.settings import refuse_unknown

MAX_BYTES = 1 << 30
_FIELDS = ("id", "prompt", "image", "images")


def read_requests(
    path: str, prompt: str, images: Sequence[str]
) -> tuple[list[Example], dict[str, str]]:
    """Returns what a job is to ask; images are relative to the request file.

    A line is an object with `prompt`, and with `images` (a list of paths) or `image` (one path)
    where it is about any, and `id` where the answer is to be found again. A `prompt` that is a list
    holds several turns: the user's, the assistant's, ..., the user's.

    Args:
        path: of a JSONL file; "" asks the one prompt.
        prompt, images: what is asked where there is no file.

    Returns:
        The requests, and what is wrong with those that are none, by line: {"line 3": "needs ..."}.

    Raises:
        UserError: the file cannot be read, holds no request, or two of one id.
    """
    if not path:
        if not prompt:
            raise PromptError("Set config.requests (a JSONL file) or config.prompt.")
        return [Example(0, tuple(images), prompt)], {}
    folder = pathlib.Path(path).parent
    content = read_bytes(pathlib.Path(path), MAX_BYTES, UserError)
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
        if isinstance(value, str) and "\0" in utf8(value, "it", PromptError).decode():
            raise PromptError(f"holds {value[:40]!r}, which has a zero byte.")
    return Example(name, tuple(folder / image for image in images), prompt)
