"""R3: what a method adds to whole answers, from images and words to words.

    python -m benchmarks R3

Eight questions about eight images of 576 tokens, through `VLM.answer`: one token each (yes or no)
and 128 tokens each (captions). Stop tokens are biased away, so that every run says as much.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import PIL.Image

import vlm_jax
from benchmarks.protocol import Route, in_turns
from benchmarks.record import figure, milliseconds, record
from benchmarks.small import TOWER, functional, scratch_model, text_of
from vlm_jax.answering import Answer
from vlm_jax.attention.steering import Steering
from vlm_jax.steering.methods.air import air

QUANTITY = "steered / vanilla, time of a batch of answers"
GOAL = 1.08


def settings(quick: bool) -> dict[str, Any]:
    """The model, the batch and the answers' lengths, with repeats."""
    if quick:
        return dict(text=text_of(True), vision={}, rows=2, answers=[(2, 2)])
    text = text_of(False, num_hidden_layers=3)
    return dict(text=text, vision=TOWER, rows=8, answers=[(1, 21), (128, 11)])


def measure(quick: bool = False) -> dict[str, Any]:
    """Measures the row."""
    chosen = settings(quick)

    def figures() -> list[dict[str, Any]]:
        with scratch_model(chosen["text"], chosen["vision"]) as vlm:
            found = []
            for new_tokens, repeats in chosen["answers"]:
                found += one_length(vlm, chosen["rows"], new_tokens, repeats, judged=not quick)
            return found

    return record("R3", QUANTITY, chosen, figures)


def picture(seed: int) -> PIL.Image.Image:
    """A random photograph-sized image."""
    rng = np.random.default_rng(seed)
    return PIL.Image.fromarray(rng.integers(0, 256, (336, 336, 3), dtype=np.uint8))


def no_stops(vlm: vlm_jax.VLM) -> np.ndarray:
    """A logit bias [V] under which no answer ends by itself."""
    bias = np.zeros(vlm.config.decoder.vocab_size, np.float32)
    bias[list(vlm.processor.stop_ids)] = -1e9
    return bias


def one_length(
    vlm: vlm_jax.VLM, rows: int, new_tokens: int, repeats: int, judged: bool
) -> list[dict[str, Any]]:
    """Times vanilla and steered answers of one length."""
    images = [[picture(seed)] for seed in range(rows)]
    questions = [f"Is there a thing number {seed} in the image?" for seed in range(rows)]
    bias = no_stops(vlm)

    def answers(steering: Steering | None) -> list[tuple[int, ...]]:
        made = vlm.answer(
            images, questions, max_new_tokens=new_tokens, batch_size=rows,
            logit_bias=bias, steering=steering,
        )  # fmt: skip
        by_index = {each.index: each.tokens for each in made if isinstance(each, Answer)}
        return [by_index[index] for index in range(rows)]

    methods: dict[str, Steering | None] = {
        "vanilla": None,
        "functional heads": functional(vlm.config),
        "AIR": air(vlm.config, heads="all"),
    }
    expected = {name: answers(steering) for name, steering in methods.items()}

    def check(done: dict[str, Any]) -> None:
        for name, tokens in done.items():
            if tokens != expected[name] or any(len(each) != new_tokens for each in tokens):
                raise RuntimeError(f"A timed run of {name} did not say what the first run said.")

    routes = {name: Route(lambda s=steering: answers(s)) for name, steering in methods.items()}
    series = in_turns(routes, repeats, check=check)
    return [
        figure(
            f"{name}, batch {rows}, {new_tokens} token{'s' * (new_tokens > 1)}",
            series[name].over(series["vanilla"]),
            GOAL if judged else None,
            steered_ms=milliseconds(series[name].seconds),
            vanilla_ms=milliseconds(series["vanilla"].seconds),
        )
        for name in methods
        if name != "vanilla"
    ]
