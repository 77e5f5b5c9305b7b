"""R21: answers by VCD, M3ID and PAI against those of `mitigv`, another package of such methods.

    pip install --no-deps mitigv==0.1.7
    python -m benchmarks R21

Both sides answer the same questions about the same images from the same folder with the same noise,
images and words to tokens, and every run's tokens must be equal (`benchmarks/mitigv_decoding.py`
says what that takes). Without mitigv the row is skipped.
"""

from __future__ import annotations

import pathlib
import tempfile
import time
from typing import Any

import numpy as np
import PIL.Image
import torch

import vlm_jax
from benchmarks.decoding import same
from benchmarks.end_to_end import no_stops, picture
from benchmarks.mitigv_decoding import Mitigv, imported
from benchmarks.protocol import Route, in_turns
from benchmarks.record import figure, milliseconds, record
from benchmarks.small import TOWER, folder_model, text_of
from vlm_jax.decoding.named import read_named

QUANTITY = "mitigv 0.1.7 on torch / ours, time of answers"
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "vcd": ({"alpha": 1.0, "beta": 0.1}, {"alpha": 1.0, "beta": 0.1}),
    "m3id": ({"alpha": 0.3}, {"alpha": 0.3}),
    "pai": (
        {"alpha": 0.5, "gamma": 1.1, "beta": 0.1, "first_layer": 1},
        {"alpha": 0.5, "gamma": 1.1, "beta": 0.1, "start_layer": 1},
    ),
}
"""Method -> our settings, and theirs."""


def settings(quick: bool) -> dict[str, Any]:
    """The model, 144 tokens an image, and the answers."""
    if quick:
        return dict(text=text_of(True), vision={}, batches=(2,), new_tokens=4, repeats=2)
    sizes = dict(text=text_of(False, num_hidden_layers=6), vision={**TOWER, "image_size": 168})
    return dict(**sizes, batches=(1, 8), new_tokens=32, repeats=7)


def measure(quick: bool = False) -> dict[str, Any]:
    """Measures the row.

    Raises:
        Unavailable: mitigv is not installed.
    """
    chosen = settings(quick)
    imported()

    def figures() -> list[dict[str, Any]]:
        with tempfile.TemporaryDirectory() as scratch:
            folder = pathlib.Path(scratch) / "model"
            vlm = folder_model(folder, chosen["text"], chosen["vision"])
            found = []
            for name in METHODS:
                for rows in chosen["batches"]:
                    found += one_case(folder, vlm, name, rows, chosen)
            return found

    return record("R21", QUANTITY, chosen, figures)


def one_case(
    folder: pathlib.Path, vlm: vlm_jax.VLM, name: str, rows: int, chosen: dict[str, Any]
) -> list[dict[str, Any]]:
    """Times both sides' answers by a method at one batch."""
    steps = chosen["new_tokens"]
    our_settings, their_settings = METHODS[name]
    strategy = read_named(name, our_settings)
    images = [picture(seed) for seed in range(rows)]
    questions = [f"Is there a thing number {seed} in the image?" for seed in range(rows)]
    attention = "eager" if name == "pai" else "sdpa"
    mitigv = Mitigv(folder, name, steps, attention, **their_settings)
    prompts = [mitigv.templated(question) for question in questions]
    ours = lambda: our_answers(vlm, strategy, images, questions, steps)
    routes = {
        "ours": Route(ours),
        "mitigv": Route(lambda: mitigv.one_by_one(images, prompts)),
    }
    if rows > 1:
        routes["one call"] = Route(lambda: mitigv.together(images, prompts))
    torch.set_num_threads(fastest_threads(routes["mitigv"]))
    expected = ours()
    series = in_turns(
        routes,
        chosen["repeats"],
        check=lambda done: [same(tokens, expected) for tokens in done.values()] and None,
    )
    words = {"mitigv": f", {rows} calls" if rows > 1 else "", "one call": ", one call"}
    return [
        figure(
            f"{name.upper()}, batch {rows}{words[route]}",
            series[route].over(series["ours"]),
            mitigv_ms=milliseconds(series[route].seconds, steps),
            ours_ms=milliseconds(series["ours"].seconds, steps),
            mitigv_is=f"{attention}, {torch.get_num_threads()} threads",
        )
        for route in routes
        if route != "ours"
    ]


def our_answers(
    vlm: vlm_jax.VLM,
    strategy: Any,
    images: list[PIL.Image.Image],
    questions: list[str],
    new_tokens: int,
) -> np.ndarray:
    """Returns our tokens [B, new_tokens]; no answer ends before."""
    made = vlm.answer(
        [[image] for image in images],
        questions,
        max_new_tokens=new_tokens,
        batch_size=len(images),
        logit_bias=no_stops(vlm),
        strategy=strategy,
    )
    by_index = {each.index: each.tokens for each in made}
    return np.array([by_index[index] for index in range(len(images))])


def fastest_threads(route: Route) -> int:
    """Of one thread of torch and two; each is tried twice."""
    taken = {}
    for threads in (1, 2, 1, 2):
        torch.set_num_threads(threads)
        start = time.perf_counter()
        route.run()
        taken[threads] = min(taken.get(threads, float("inf")), time.perf_counter() - start)
    return min(taken, key=lambda threads: taken[threads])
