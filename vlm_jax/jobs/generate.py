"""Answers prompts about images."""

import pathlib
import sys
from typing import Any

from vlm_jax import checkpoint
from vlm_jax.answering import Answer
from vlm_jax.evals.answer_log import AnswerLog, Unkept
from vlm_jax.evals.answers import ERROR
from vlm_jax.evals.base import Example
from vlm_jax.evals.results import protocol_hash
from vlm_jax.evals.runner import answer_all
from vlm_jax.parallel import processes
from vlm_jax.settings import listed, word
from vlm_jax.study.fingerprint import fingerprint, picture
from vlm_jax.study.prompts import read_requests
from vlm_jax.study.request import Request
from vlm_jax.study.runtime import generation_identity, generation_settings, load_model, share
from vlm_jax.study.treated import treated


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
    given = [one for one in images.split(",") if one] if isinstance(images, str) else images
    return list(listed("config.images", given, each=word))


def _row(example: Example, answer: Answer) -> dict[str, Any]:
    """The line of an answer, which `--job=score` reads: an image by its file's name."""
    names = [pathlib.Path(image).name for image in example.images]
    about = {"image": names[0]} if len(names) == 1 else {"images": names} if names else {}
    return {"prompt": example.prompt, **about, "text": answer.text}
