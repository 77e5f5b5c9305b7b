"""R2: what a method adds to reading a prompt, and what it would add with the whole map.

    python -m benchmarks R2

The decoder's prefill with a method in all heads of all layers over the vanilla one, and the same
with attention through the materialised T x S map, which is how methods on attention maps are
commonly written. AIR* is timed without the map: its oracle projects row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import vlm_jax.models.hooks
from benchmarks.protocol import Route, in_turns
from benchmarks.record import figure, milliseconds, record
from benchmarks.small import Bare, bare, prefill_methods, prompts, text_of
from tests.attention.dense_steering import dense_steered
from vlm_jax.attention.steering import State, Steering
from vlm_jax.batch import Batch
from vlm_jax.models import abstract, merge

QUANTITY = "steered / vanilla, time of prefill"
GOALS = {"functional heads": 1.10, "AIR": 1.10, "AIR* (projection)": 1.25}
MATERIALISED = ("AIR",)
WHOLE = ", materialised map"


def settings(quick: bool) -> dict[str, Any]:
    """Prompt lengths with repeats; 2 layers are as good as 12, which cost the same each."""
    if quick:
        return dict(text=text_of(True), lengths=[(48, 2)])
    lengths = [(640, 31), (1500, 21), (4096, 15)]
    return dict(text=text_of(False, num_hidden_layers=2), lengths=lengths)


def measure(quick: bool = False) -> dict[str, Any]:
    """Measures the row."""
    chosen = settings(quick)
    model = bare(chosen["text"])

    def figures() -> list[dict[str, Any]]:
        found = []
        for length, repeats in chosen["lengths"]:
            found += one_length(model, length, repeats, not quick)
        return found

    return record("R2", QUANTITY, chosen, figures)


def one_length(model: Bare, length: int, repeats: int, judged: bool) -> list[dict[str, Any]]:
    """Times all methods at one prompt length."""
    batch = model.put(prompts(model.config, 1, length))
    methods = prefill_methods(model.config)
    programs = {"vanilla": compiled(model, batch, None)}
    for name, steering in methods.items():
        programs[name] = compiled(model, batch, steering)
        if name in MATERIALISED:
            programs[f"{name}{WHOLE}"] = compiled(model, batch, steering, whole_map=True)
    expected = {name: run() for name, run in programs.items()}
    for name, logits in expected.items():
        base = name.removesuffix(WHOLE)
        if not np.all(np.isfinite(logits)):
            raise RuntimeError(f"{name} has logits that are not finite.")
        if np.array_equal(logits, expected["vanilla"]) != (base == "vanilla"):
            raise RuntimeError(f"{name} does not change the logits; nothing to time.")
        np.testing.assert_allclose(logits, expected[base], atol=2e-3)

    def check(done: dict[str, Any]) -> None:
        for name, logits in done.items():
            np.testing.assert_array_equal(logits, expected[name])

    def timed(names: Iterable[str]) -> list[dict[str, Any]]:
        routes = {name: Route(programs[name]) for name in ("vanilla", *names)}
        series = in_turns(routes, repeats, check=check)
        return [
            figure(
                f"{name}, {length} tokens",
                series[name].over(series["vanilla"]),
                GOALS.get(name) if judged else None,
                steered_ms=milliseconds(series[name].seconds),
                vanilla_ms=milliseconds(series["vanilla"].seconds),
            )
            for name in names
        ]

    # A run after a whole map, whose gigabytes go back to the system, has to ask for its own anew:
    # those are timed apart.
    return timed(methods) + timed([name for name in programs if name.endswith(WHOLE)])


def compiled(
    model: Bare, batch: Batch, steering: Steering | None, *, whole_map: bool = False
) -> Callable[[], np.ndarray]:
    """Compiles prefill; a call returns the logits of the first token [B, V]."""
    program = lower(model, batch, steering, whole_map=whole_map).compile()
    steering = model.put(steering)
    return lambda: np.asarray(program(model.params, batch, steering)[0])


def lower(
    model: Bare, batch: Batch, steering: Steering | None, *, whole_map: bool = False
) -> jax.stages.Lowered:
    """Lowers prefill into the logits and the cache, with tiles or with the whole map."""
    graphdef = abstract(model.config)[0]

    def prefill(params, batch, steering):
        logits_bv, cache, _ = merge(graphdef, params).prefill(batch, 1, steering)
        return logits_bv, cache

    if not whole_map:
        return jax.jit(prefill).lower(model.params, batch, steering)
    with mock.patch.object(vlm_jax.models.hooks, "attend", side_effect=_through_the_map) as attend:
        lowered = jax.jit(prefill).lower(model.params, batch, steering)
    if not attend.called:
        raise RuntimeError("No layer attends through the whole map; nothing to compare.")
    return lowered


def _through_the_map(q_btnh, segments, seen, *, causal, steering, rows, state, scale=None):
    """Is steered `attend`, of whole prompts, by the materialised map."""
    del causal, state, scale
    out, _, readings = dense_steered(q_btnh, segments, seen, steering, rows)
    return out.astype(q_btnh.dtype), State(), jax.tree.map(jnp.asarray, readings)
