"""R14: what a decoding strategy adds to a decode step.

    python -m benchmarks R14

A step of VCD (two views of each sample), of DoLa (the head read for every candidate layer) and of
FarSight (attention registers, with a budget) over a vanilla step, each from where its own prefill
ended. Prompts are token ids, whose decoder alone is read.
"""

from __future__ import annotations

from typing import Any

from benchmarks.decoding import Decoding
from benchmarks.protocol import in_turns
from benchmarks.record import figure, milliseconds, record
from benchmarks.small import Bare, bare, prompts, text_of
from vlm_jax.decoding.named import read_named
from vlm_jax.steering.methods.farsight import farsight

QUANTITY = "strategy / vanilla, time of a decode step"
GOALS = {"VCD": 1.6, "DoLa": 1.5, "FarSight": 1.05}


def settings(quick: bool) -> dict[str, Any]:
    """Contexts x batches, and the steps of a run."""
    if quick:
        return dict(text=text_of(True), contexts=(48,), batches=(2,), steps=4, repeats=2)
    return dict(text=text_of(False), contexts=(640,), batches=(1, 8), steps=8, repeats=25)


def measure(quick: bool = False) -> dict[str, Any]:
    """Measures the row."""
    chosen = settings(quick)
    model = bare(chosen["text"])

    def figures() -> list[dict[str, Any]]:
        found = []
        for context in chosen["contexts"]:
            for rows in chosen["batches"]:
                found += one_case(model, rows, context, chosen, not quick)
        return found

    return record("R14", QUANTITY, chosen, figures)


def one_case(
    model: Bare, rows: int, context: int, chosen: dict[str, Any], judged: bool
) -> list[dict[str, Any]]:
    """Times all strategies at one batch and context."""
    vcd, dola = read_named("vcd", {}), read_named("dola", {})
    budget = farsight(model.config, mode="budget", budget=2 * context)
    start = lambda **acting: Decoding.record(
        model.generator,
        model.params,
        prompts(model.config, rows * (vcd.width if acting.get("strategy") is vcd else 1), context),
        chosen["steps"],
        **acting,
    )
    loops = {
        "vanilla": start(),
        "VCD": start(strategy=vcd),
        "DoLa": start(strategy=dola),
        "FarSight": start(steering=budget),
    }

    def check(done: dict[str, Any]) -> None:
        for name, tokens in done.items():
            loops[name].check(tokens)

    routes = {name: loop.route() for name, loop in loops.items()}
    series = in_turns(routes, chosen["repeats"], check=check)
    base, steps = series["vanilla"], chosen["steps"]
    return [
        figure(
            f"{name}, batch {rows}, context {context}",
            series[name].over(base),
            goal if judged else None,
            strategy_ms=milliseconds(series[name].seconds, steps),
            vanilla_ms=milliseconds(base.seconds, steps),
        )
        for name, goal in GOALS.items()
    ]
