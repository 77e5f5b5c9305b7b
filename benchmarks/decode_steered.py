"""R1: what a method adds to a decode step.

    python -m benchmarks R1

A step with a method in all heads of all layers over a vanilla step, each decoding from the same
cache. The rows of a batch are copies of one prompt, whose decoder alone is read.
"""

from __future__ import annotations

from typing import Any

from benchmarks.decoding import Decoding
from benchmarks.protocol import in_turns
from benchmarks.record import figure, milliseconds, record
from benchmarks.small import Bare, bare, decode_methods, prompts, text_of

QUANTITY = "steered / vanilla, time of a decode step"
GOAL = 1.05


def settings(quick: bool) -> dict[str, Any]:
    """Contexts x batches, with the steps of a run: about 0.3 s on two cores."""
    if quick:
        return dict(text=text_of(True), cases=[(2, 48, 4)], repeats=2)
    cases = [(1, 512, 24), (8, 512, 12), (1, 2048, 20), (8, 2048, 8)]
    return dict(text=text_of(False), cases=cases, repeats=11)


def measure(quick: bool = False) -> dict[str, Any]:
    """Measures the row."""
    chosen = settings(quick)
    model = bare(chosen["text"])

    def figures() -> list[dict[str, Any]]:
        found = []
        for rows, context, steps in chosen["cases"]:
            found += one_case(model, rows, context, steps, chosen["repeats"], not quick)
        return found

    return record("R1", QUANTITY, chosen, figures)


def one_case(
    model: Bare, rows: int, context: int, steps: int, repeats: int, judged: bool
) -> list[dict[str, Any]]:
    """Times all methods at one batch and context."""
    batch = prompts(model.config, 1, context)
    vanilla = Decoding.record(model.generator, model.params, batch, steps).repeated(rows)
    methods = decode_methods(model.config)
    loops = {"vanilla": vanilla} | {
        name: vanilla.steered(steering) for name, steering in methods.items()
    }

    def check(done: dict[str, Any]) -> None:
        for name, tokens in done.items():
            loops[name].check(tokens)

    series = in_turns({n: loop.route() for n, loop in loops.items()}, repeats, check=check)
    base = series["vanilla"]
    return [
        figure(
            f"{name}, batch {rows}, context {context}",
            series[name].over(base),
            GOAL if judged else None,
            steered_ms=milliseconds(series[name].seconds, steps),
            vanilla_ms=milliseconds(base.seconds, steps),
        )
        for name in methods
    ]
