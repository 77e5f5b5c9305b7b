"""Answers prompts about images."""

import logging
import pathlib
import resource
import sys
from typing import Any

import jax

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

_log = logging.getLogger(__name__)


def run(request: Request) -> None:
    """Answers `config.requests`, or `config.prompt` about `config.images`.

    `config.method` says what is done to the model first. Prints the answers; with `--workdir` also
    writes `answers.jsonl`, a line {"id", "prompt", "image" or "images", "text"} an answer, or
    {"id", "error"} for a request that cannot be read. A killed run goes on where it stopped. With
    `--verbosity=0` it also says how many tokens were read and written, and the peak of memory.

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
        show=_show,
        settings=settings,
    )
    _log.info("%s", _peak_memory())
    failed = [row for row in rows.values() if ERROR in row]
    for row in failed if processes.primary() else []:
        print(f"[{row['id']}] failed: {row[ERROR]}", file=sys.stderr)
    if log.path is not None:
        counted = f" ({len(failed)} of {len(rows)} failed)" if failed else ""
        print(f"Answers: {log.path}{counted}")


def _show(example: Example, answer: Answer) -> None:
    """Prints an answer; logs what it took."""
    print(f"[{example.id}] {answer.text}", flush=True)
    if answer.prompt_tokens:
        _log.info(
            "[%s] %d tokens read, %d of them of images; %d written",
            example.id,
            answer.prompt_tokens,
            answer.image_tokens,
            len(answer.tokens),
        )


def _peak_memory() -> str:
    """Returns the most memory that was in use so far, of each device or, on a CPU, the process."""
    found = [(str(device), device.memory_stats()) for device in jax.local_devices()]
    peaks = {name: stats["peak_bytes_in_use"] for name, stats in found if stats}
    # Linux counts in KiB.
    peaks = peaks or {"this process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10}
    listed = ", ".join(f"{name} {size / 2**20:,.0f} MiB" for name, size in peaks.items())
    return f"peak of memory: {listed}"


def _listed(images: Any) -> list[str]:
    """Paths, given as a list or as one text with commas between them."""
    given = [one for one in images.split(",") if one] if isinstance(images, str) else images
    return list(listed("config.images", given, each=word))


def _row(example: Example, answer: Answer) -> dict[str, Any]:
    """The line of an answer, which `--job=score` reads: an image by its file's name."""
    names = [pathlib.Path(image).name for image in example.images]
    about = {"image": names[0]} if len(names) == 1 else {"images": names} if names else {}
    return {"prompt": example.prompt, **about, "text": answer.text}
