"""R8: eight settings of a method in one batch, or run after run.

    python -m benchmarks R8

A batch may carry another steering in every row, so a sweep over one prompt reads it once and
decodes all settings together. Beside it: one run a setting, as a script that loops over settings
makes them. Every row must say what the run of its setting says.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from benchmarks.protocol import Route, in_turns
from benchmarks.record import figure, milliseconds, record
from benchmarks.small import Bare, bare, prompts, text_of
from vlm_jax.attention.steering import Steering
from vlm_jax.batch import Batch, Kind
from vlm_jax.decoding import DecodeSettings
from vlm_jax.steering.methods.air import air

QUANTITY = "8 settings in one batch / 8 runs, time"
GOAL = 0.5


def settings(quick: bool) -> dict[str, Any]:
    """The prompt, the answer's length, and how many settings."""
    if quick:
        return dict(text=text_of(True), length=48, new_tokens=4, settings=3, repeats=2)
    return dict(
        text=text_of(False, num_hidden_layers=6), length=640, new_tokens=24, settings=8, repeats=7
    )


def measure(quick: bool = False) -> dict[str, Any]:
    """Measures the row."""
    chosen = settings(quick)
    model = bare(chosen["text"])
    strengths = np.linspace(0.5, 4.0, chosen["settings"])
    methods = [air(model.config, heads="all", visual_gain=float(each)) for each in strengths]

    def figures() -> list[dict[str, Any]]:
        batch = prompts(model.config, 1, chosen["length"])
        together, apart = (
            one_batch(model, batch, methods, chosen),
            runs(model, batch, methods, chosen),
        )
        expected = apart()
        if np.all(expected == expected[:1]):
            raise RuntimeError("All settings say the same; there is nothing to sweep.")

        def check(done: dict[str, Any]) -> None:
            for tokens in done.values():
                np.testing.assert_array_equal(tokens, expected)

        routes = {"together": Route(together), "apart": Route(apart)}
        series = in_turns(routes, chosen["repeats"], check=check)
        return [
            figure(
                f"{chosen['settings']} strengths of AIR, {chosen['length']} + "
                f"{chosen['new_tokens']} tokens",
                series["together"].over(series["apart"]),
                None if quick else GOAL,
                together_ms=milliseconds(series["together"].seconds),
                apart_ms=milliseconds(series["apart"].seconds),
            )
        ]

    return record("R8", QUANTITY, chosen, figures)


def runs(model: Bare, batch: Batch, methods: list[Steering], chosen: dict[str, Any]):
    """Answers with one setting after another."""

    def run() -> np.ndarray:
        made = [
            model.generator(
                model.params,
                batch,
                DecodeSettings(max_new_tokens=chosen["new_tokens"]),
                steering=method,
            )
            for method in methods
        ]
        return np.concatenate([each.tokens_bn for each in made])

    return run


def one_batch(model: Bare, batch: Batch, methods: list[Steering], chosen: dict[str, Any]):
    """Reads the prompt up to its last image token once and goes on with every setting."""
    cut = 1 + int(np.flatnonzero(batch.kinds_bt[0] == Kind.IMAGE)[-1])
    count = len(methods)
    steering = jax.tree.map(lambda *leaves: np.concatenate(leaves), *methods)
    prefix_batch = _part(batch, slice(0, cut))
    rest = jax.tree.map(lambda a: np.repeat(a, count, axis=0), _part(batch, slice(cut, None)))

    def run() -> np.ndarray:
        prefix = model.generator.read_prefix(model.params, prefix_batch, steering)
        made = model.generator(
            model.params,
            rest,
            DecodeSettings(max_new_tokens=chosen["new_tokens"]),
            steering=steering,
            prefix=prefix,
            owner_b=[0] * count,
        )
        return made.tokens_bn

    return run


def _part(batch: Batch, places: slice) -> Batch:
    tokens = batch.tokens_bt[:, places]
    return Batch(
        tokens,
        batch.kinds_bt[:, places],
        batch.positions_bt3[:, places],
        batch.slots_bt[:, places],
        np.full(len(tokens), tokens.shape[1], np.int32),
        batch.next_position_b,
        None,
    )
