"""R7: a suite of yes-or-no questions, reading each image once or once a question.

    python -m benchmarks R7

As POPE asks: 18 questions about each of 20 images of 576 tokens. `VLM.answer` reads what the
questions on an image share once; beside it the same call reads every question's whole prompt. All
answers must be equal. The bound is the ratio of operations (`benchmarks.roofline`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

import vlm_jax
from benchmarks.end_to_end import no_stops, picture
from benchmarks.protocol import Route, in_turns
from benchmarks.record import figure, record
from benchmarks.roofline import prefill_flops, suffix_flops, vision_flops
from benchmarks.small import TOWER, scratch_model, text_of
from vlm_jax.answering import Answer
from vlm_jax.batch import Kind

QUANTITY = "row by row / shared prefixes, time of the suite"
GOAL = 5.0
THINGS = (
    "bench", "car", "bottle", "dog", "chair", "fork", "person", "truck", "cup", "bird", "boat",
    "horse", "sheep", "plane", "train", "cat", "table", "sink",
)  # fmt: skip


def settings(quick: bool) -> dict[str, Any]:
    """The model and the suite. Each run is long, and few make an interval."""
    if quick:
        sizes = dict(text=text_of(True), vision={}, images=2)
        return dict(**sizes, questions=3, new_tokens=2, batch_size=2, repeats=2)
    sizes = dict(text=text_of(False, num_hidden_layers=2), vision=TOWER, images=20)
    return dict(**sizes, questions=18, new_tokens=2, batch_size=8, repeats=3)


def measure(quick: bool = False) -> dict[str, Any]:
    """Measures the row."""
    chosen = settings(quick)

    def figures() -> list[dict[str, Any]]:
        with scratch_model(chosen["text"], chosen["vision"]) as vlm:
            return [one_suite(vlm, chosen, judged=not quick)]

    return record("R7", QUANTITY, chosen, figures)


def one_suite(vlm: vlm_jax.VLM, chosen: dict[str, Any], judged: bool) -> dict[str, Any]:
    """Times the suite both ways."""
    pictures = [picture(seed) for seed in range(chosen["images"])]
    things = THINGS[: chosen["questions"]]
    images = [[each] for each in pictures for _ in things]
    questions = [f"Is there a {thing} in the image?" for _ in pictures for thing in things]
    bias = no_stops(vlm)

    def answers(share_prefix: bool, count: int | None = None) -> list[tuple[int, ...]]:
        made = vlm.answer(
            images[:count], questions[:count], max_new_tokens=chosen["new_tokens"],
            batch_size=chosen["batch_size"], logit_bias=bias, share_prefix=share_prefix,
        )  # fmt: skip
        by_index = {each.index: each.tokens for each in made if isinstance(each, Answer)}
        return [by_index[index] for index in range(len(by_index))]

    # The same sizes as the whole suite's: whole batches, and the last one.
    answers(True)
    answers(False, 2 * chosen["batch_size"])

    def check(done: dict[str, Any]) -> None:
        lengths = {len(each) for each in done["shared"]}
        if len(done["shared"]) != len(questions) or lengths != {chosen["new_tokens"]}:
            raise RuntimeError("Not every question of the suite has its whole answer.")
        if done["shared"] != done["row by row"]:
            raise RuntimeError("Answers behind shared prefixes differ from those row by row.")

    routes = {
        "row by row": Route(lambda: answers(False)),
        "shared": Route(lambda: answers(True)),
    }
    series = in_turns(routes, chosen["repeats"], warm_up=0, check=check)
    whole, shared = operations(vlm, images, questions, chosen)
    seconds = {name: float(np.median(each.seconds)) for name, each in series.items()}
    return figure(
        f"{len(pictures)} images, {len(questions)} questions",
        series["row by row"].over(series["shared"]),
        GOAL if judged else None,
        at_most=False,
        row_by_row_s=seconds["row by row"],
        shared_s=seconds["shared"],
        operations_fewer_times=whole / shared,
    )


def operations(
    vlm: vlm_jax.VLM, images: list, questions: list[str], chosen: dict[str, Any]
) -> tuple[float, float]:
    """Operations of the suite row by row and with shared prefixes, without padding."""
    batch = vlm.processor.batch(images[:1], questions[:1])
    kinds, length = np.asarray(batch.kinds_bt)[0], int(batch.lengths_b[0])
    cut = 1 + int(np.flatnonzero(kinds == Kind.IMAGE)[-1])
    decoder, count = vlm.config.decoder, len(questions)
    tower = vision_flops(vlm.config, int((kinds == Kind.IMAGE).sum()))
    steps = sum(suffix_flops(decoder, length + n, 1) for n in range(chosen["new_tokens"] - 1))
    whole = count * (tower + prefill_flops(decoder, length) + steps)
    prefixes = chosen["images"] * (tower + prefill_flops(decoder, cut))
    return whole, prefixes + count * (suffix_flops(decoder, cut, length - cut) + steps)
