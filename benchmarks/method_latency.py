"""R19: what whole answers cost by every method, beside the papers' tables of latency.

    python -m benchmarks R19

Seconds an answer over greedy decoding's, in one run: methods of attention, strategies, OPERA and
the rerankers. The models beside the VLM that AGLA, CGD and HALC ask (BLIP, SigLIP, a detector) are
functions that cost nothing here, so that these rows are what the method itself costs.

Published are ratios of other models on other hardware: of LLaVA-1.5 in AIR's figure (seconds a
sample over greedy's 2.8) and of reasoning models in the functional-heads paper's table.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import vlm_jax
from benchmarks.end_to_end import picture
from benchmarks.protocol import Route, in_turns
from benchmarks.record import figure, milliseconds, record
from benchmarks.small import TOWER, scratch_model, text_of

QUANTITY = "method / greedy, time of an answer"
GREEDY = 2.8
AIR_FIGURE = {
    "AD-HH": 3.2, "AIR": 3.4, "FarSight": 4.1, "DoLa": 4.2, "VCD": 5.3, "OPERA": 25.0, "HALC": 28.6,
}  # fmt: skip
HEADS_TABLE = {
    "functional heads": "up to 1.05", "VCD": "1.36 to 2.46", "AGLA": "1.05 to 1.67",
    "CGD": "3.58 to 7.24",
}  # fmt: skip


def settings(quick: bool) -> dict[str, Any]:
    """The model, the answers' length, and repeats."""
    if quick:
        return dict(text=text_of(True), vision={}, new_tokens=3, repeats=2)
    text = text_of(False, num_hidden_layers=3)
    return dict(text=text, vision=TOWER, new_tokens=64, repeats=5)


def methods(layers: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Row -> the method and its settings, as published."""
    return {
        "functional heads": (
            "functional_heads",
            {"reasoning_first_layer": 0, "perception_last_layer": layers - 1, "rows": "last"},
        ),
        "AD-HH": ("adhh", {"heads": "all"}),
        "AIR": ("air", {"heads": "all"}),
        "FarSight": ("farsight", {"mode": "budget"}),
        "DoLa": ("dola", {}),
        "VCD": ("vcd", {}),
        "AGLA": ("agla", {"mask": _whole}),
        "OPERA": ("opera", {}),
        "CGD": ("cgd", {"scorer": _lengths}),
        "HALC": ("halc", {"detector": _middle, "tagger": _noun, "matcher": _lengths}),
    }


def _whole(image: Any, prompt: Any) -> np.ndarray:
    """A mask that keeps the whole image."""
    return np.ones((image.height, image.width), int)


def _lengths(texts: Any, image: Any) -> list[float]:
    """Scores of texts: longer ones fit better."""
    return [float(len(text)) for text in texts]


def _middle(image: Any, word: str) -> list[tuple[float, float, float, float]]:
    """One box in the middle of an image."""
    return [(0.2, 0.2, 0.8, 0.8)]


def _noun(word: str) -> bool:
    """One word in four is looked for."""
    return sum(map(ord, word)) % 4 == 0


def measure(quick: bool = False) -> dict[str, Any]:
    """Measures the row."""
    chosen = settings(quick)

    def figures() -> list[dict[str, Any]]:
        with scratch_model(chosen["text"], chosen["vision"]) as vlm:
            return latencies(vlm, chosen["new_tokens"], chosen["repeats"])

    return record("R19", QUANTITY, chosen, figures)


def latencies(vlm: vlm_jax.VLM, new_tokens: int, repeats: int) -> list[dict[str, Any]]:
    """Times one answer by each method, turn by turn."""
    options = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    question = "Please describe this image in detail."

    def answers(model: vlm_jax.VLM) -> tuple[int, ...]:
        return model.ask([[picture(0)]], [question], options)[0].tokens

    models = {"greedy": vlm}
    for name, (method, given) in methods(vlm.config.decoder.num_layers).items():
        models[name] = vlm.apply(method, **given)
    expected = {name: answers(model) for name, model in models.items()}

    def check(done: dict[str, Any]) -> None:
        for name, tokens in done.items():
            if tokens != expected[name]:
                raise RuntimeError(f"A timed run of {name} did not say what the first run said.")

    routes = {name: Route(lambda model=model: answers(model)) for name, model in models.items()}
    series = in_turns(routes, repeats, check=check)
    greedy = series.pop("greedy")
    return [
        figure(
            name,
            one.over(greedy),
            published_air=f"{AIR_FIGURE[name] / GREEDY:.2f}" if name in AIR_FIGURE else "-",
            published_heads=HEADS_TABLE.get(name, "-"),
            tokens=len(expected[name]),
            method_ms=milliseconds(one.seconds),
            greedy_ms=milliseconds(greedy.seconds),
        )
        for name, one in series.items()
    ]
