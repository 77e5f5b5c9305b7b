"""R4: decoding against transformers on torch: vanilla, with AIR, and with q/k norms (Qwen3).

    python -m benchmarks R4

Both sides read the same folder: a LLaVA with a small CLIP tower and a decoder of 12 layers of width
512, float32, random weights. Prefill is not timed: each run decodes from a copy of the cache that
reading the same 512-token prompts (an image among them) left. Every run's tokens are compared
with what transformers' own `generate` says to the prompts from scratch. torch runs as fast as its
settings allow: attention, kind of cache and number of threads are tried before. A method on
attention weights needs eager attention there; it is written as it would be by a user of torch.
"""

from __future__ import annotations

import pathlib
import tempfile
from typing import Any

import numpy as np
import PIL.Image

import vlm_jax
from benchmarks import torch_decoding
from benchmarks.decoding import Decoding, same
from benchmarks.protocol import Route, in_turns
from benchmarks.record import figure, milliseconds, record
from benchmarks.small import folder_model, text_of
from benchmarks.torch_decoding import Torch
from vlm_jax.batch import Batch
from vlm_jax.steering.methods.air import air

QUANTITY = "transformers on torch, its best setting / ours, time of a decode step"
KINDS = {"q/k norms": "qwen3"}
GOALS = {"vanilla": 1.5, "AIR": 2.0, "q/k norms": 1.5}


def settings(quick: bool) -> dict[str, Any]:
    """Prompt, answer and batches."""
    if quick:
        return dict(text=text_of(True), prompt=64, new_tokens=4, batches=(2,), repeats=2)
    return dict(text=text_of(False), prompt=512, new_tokens=24, batches=(1, 8), repeats=7)


def measure(quick: bool = False) -> dict[str, Any]:
    """Measures the row."""
    chosen = settings(quick)

    def figures() -> list[dict[str, Any]]:
        with tempfile.TemporaryDirectory() as scratch:
            models: dict[str, Any] = {}
            for kind in ("llama", "qwen3"):
                folder = pathlib.Path(scratch) / kind
                models[kind] = folder, folder_model(folder, chosen["text"] | {"model_type": kind})
            return [
                one_case(models[KINDS.get(name, "llama")], rows, name, chosen, not quick)
                for name in GOALS
                for rows in chosen["batches"]
            ]

    return record("R4", QUANTITY, chosen, figures)


def one_case(
    model: tuple[pathlib.Path, vlm_jax.VLM],
    rows: int,
    name: str,
    chosen: dict[str, Any],
    judged: bool,
) -> dict[str, Any]:
    """Times both sides of a folder and its model at one batch."""
    folder, vlm = model
    steps = chosen["new_tokens"]
    batch, pixels = prompts(vlm, rows, chosen["prompt"])
    steering = air(vlm.config, heads="all") if name == "AIR" else None
    ours = Decoding.record(vlm.generator, vlm.params, batch, steps, steering)
    method = torch_decoding.air if name == "AIR" else None
    theirs = Torch(folder, batch, pixels, steps, method)
    same(ours.tokens_bn, theirs.tokens_bn)
    best, tried = theirs.best(2)

    def check(done: dict[str, Any]) -> None:
        for tokens in done.values():
            same(tokens, theirs.tokens_bn)

    routes = {
        "torch": Route(lambda cache: theirs.run(best, cache), lambda: theirs.prepare(best)),
        "ours": ours.route(),
    }
    series = in_turns(routes, chosen["repeats"], check=check)
    found = figure(
        f"{name}, batch {rows}",
        series["torch"].over(series["ours"]),
        GOALS[name] if judged else None,
        at_most=False,
        torch_ms=milliseconds(series["torch"].seconds, steps),
        ours_ms=milliseconds(series["ours"].seconds, steps),
        torch_is=f"{best.attention}, {best.cache} cache, {best.threads} threads",
    )
    return found | {"tried": tried}


def prompts(vlm: vlm_jax.VLM, rows: int, length: int) -> tuple[Batch, np.ndarray]:
    """Returns prompts of `length` tokens, each with an image, and the images.

    The batch is padded as the processor pads: ours reads the pads too, torch never sees them.
    """
    rng = np.random.default_rng(rows)
    # No two of these letters are a token together, so that a letter is a token.
    letters = np.array(list("bcdfgjklmpqsuvwxyz"))
    pixels = rng.integers(0, 256, (rows, 56, 56, 3), dtype=np.uint8)
    images = [[PIL.Image.fromarray(picture)] for picture in pixels]
    write = lambda count: ["".join(rng.choice(letters, count)) for _ in range(rows)]
    short = int(np.max(vlm.processor.batch(images, write(8)).lengths_b))
    batch = vlm.processor.batch(images, write(8 + length - short))
    if np.any(np.asarray(batch.lengths_b) != length):
        raise RuntimeError(f"The prompts are {batch.lengths_b} tokens long, not {length}.")
    return batch, pixels
