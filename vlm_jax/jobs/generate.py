"""Answers prompts about images."""

import json
import os
import pathlib
from typing import Any

from vlm_jax.errors import PromptError, UserError
from vlm_jax.jobs.request import Request
from vlm_jax.jobs.runtime import generation_settings, load_model
from vlm_jax.progress import Progress


def run(request: Request) -> None:
    """Answers `config.requests`, or `config.prompt` about `config.images`.

    Prints the answers; with `--workdir` also writes `answers.jsonl`, a line {"id", "prompt",
    "text"} an answer.
    """
    config = request.config
    rows = _rows(config.requests, config.prompt, list(config.images))
    model = load_model(request)
    answers = model.answer(
        [row["images"] for row in rows],
        [row["prompt"] for row in rows],
        **generation_settings(config),
    )
    with Progress(len(rows), "answers", label="generate") as progress, _Output(request) as out:
        for answer in answers:
            row = rows[answer.index]
            out.write({"id": row["id"], "prompt": row["prompt"], "text": answer.text})
            progress.advance()


class _Output:
    def __init__(self, request: Request):
        self.folder = request.workdir
        self.file = None

    def __enter__(self) -> "_Output":
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self.file = (self.folder / "answers.jsonl").open("w", encoding="utf-8")
            except OSError as error:
                raise UserError(f"cannot write to {self.folder}: {error.strerror}.") from error
        return self

    def write(self, row: dict[str, Any]) -> None:
        print(f"[{row['id']}] {row['text']}", flush=True)
        if self.file is not None:
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()

    def __exit__(self, *error: object) -> None:
        if self.file is not None:
            os.fsync(self.file.fileno())
            self.file.close()
            print(f"Answers: {self.file.name}")


def _rows(path: str, prompt: str, images: list[str]) -> list[dict[str, Any]]:
    """Reads requests; images are relative to the request file."""
    if not path:
        if not prompt:
            raise PromptError("Set config.requests (a JSONL file) or config.prompt.")
        return [{"id": 0, "prompt": prompt, "images": images}]
    folder = pathlib.Path(path).parent
    try:
        lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            listed = row.get("images", [])
            rows.append(
                {
                    "id": row.get("id", number),
                    "prompt": row["prompt"],
                    "images": [folder / image for image in listed],
                }
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PromptError(
                f"{path} line {number} must be an object with 'prompt' and 'images': {error}."
            ) from None
    if not rows:
        raise PromptError(f"{path} holds no request.")
    return rows
