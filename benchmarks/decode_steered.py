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
    """Contexts x batches, and the steps of a run."""
    if quick:
        return dict(text=text_of(True), contexts=(48,), batches=(2,), steps=4, repeats=2)
    sizes = dict(contexts=(512, 2048), batches=(1, 8), steps=8)
    return dict(text=text_of(False), **sizes, repeats=25)


def measure(quick: bool = False) -> dict[str, Any]:
    """Measures the row."""
    chosen = settings(quick)
    model = bare(chosen["text"])

    def figures() -> list[dict[str, Any]]:
        found = []
        for context in chosen["contexts"]:
            batch = prompts(model.config, 1, context)
            one = Decoding.record(model.generator, model.params, batch, chosen["steps"])
            for rows in chosen["batches"]:
                where = f"batch {rows}, context {context}"
                found += one_case(model, one.repeated(rows), where, chosen["repeats"], not quick)
        return found

    return record("R1", QUANTITY, chosen, figures)


def one_case(
    model: Bare, vanilla: Decoding, where: str, repeats: int, judged: bool
) -> list[dict[str, Any]]:
    """Times all methods at one batch and context."""
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
            f"{name}, {where}",
            series[name].over(base),
            GOAL if judged else None,
            steered_ms=milliseconds(series[name].seconds, vanilla.new_tokens),
            vanilla_ms=milliseconds(base.seconds, vanilla.new_tokens),
        )
        for name in methods
    ]
