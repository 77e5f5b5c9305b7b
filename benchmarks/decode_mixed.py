"""R18: rows of different arms in one batch, as the server answers them.

    python -m benchmarks R18

Eight rows of four arms (not steered, AIR in two strengths, gains of classes of heads) over eight
rows of one arm: tokens/s of decoding from the same cache. All parts of all arms act on every row,
in those that lack them as identities, so that the batch costs what all of its parts cost.
"""

from __future__ import annotations

from typing import Any

from benchmarks.decoding import Decoding
from benchmarks.protocol import in_turns
from benchmarks.record import figure, milliseconds, record
from benchmarks.small import air, bare, functional, prompts, text_of
from vlm_jax.attention.steering import Steering
from vlm_jax.steering.combine import stack

QUANTITY = "different arms / equal ones, tokens/s of a batch"
GOAL = 0.95


def settings(quick: bool) -> dict[str, Any]:
    """Rows, the context, and the steps of a run."""
    if quick:
        return dict(text=text_of(True), context=48, rows=8, steps=4, repeats=2)
    return dict(text=text_of(False), context=512, rows=8, steps=8, repeats=25)


def measure(quick: bool = False) -> dict[str, Any]:
    """Measures the row."""
    chosen = settings(quick)
    model = bare(chosen["text"])
    rows = chosen["rows"]

    def figures() -> list[dict[str, Any]]:
        batch = prompts(model.config, 1, chosen["context"])
        one = Decoding.record(model.generator, model.params, batch, chosen["steps"])
        vanilla = one.repeated(rows)
        strong, mild = (air(model.config, heads="all", visual_gain=g) for g in (4.0, 1.5))
        arms = [Steering(), strong, mild, functional(model.config)]
        loops = {
            "different": vanilla.steered(stack((arms * rows)[:rows])),
            "AIR": vanilla.steered(stack([strong] * rows)),
            "unedited": vanilla,
        }

        def check(done: dict[str, Any]) -> None:
            for name, tokens in done.items():
                loops[name].check(tokens)

        routes = {name: loop.route() for name, loop in loops.items()}
        series = in_turns(routes, chosen["repeats"], check=check)
        time_of = lambda name: milliseconds(series[name].seconds, vanilla.new_tokens)
        # Tokens/s are one over the time: those of different rows over those of equal ones.
        return [
            figure(
                f"{rows} rows of {len(arms)} arms over {rows} of {name}",
                series[name].over(series["different"]),
                GOAL if not quick and name == "AIR" else None,
                at_most=False,
                different_ms=time_of("different"),
                equal_ms=time_of(name),
            )
            for name in ("AIR", "unedited")
        ]

    return record("R18", QUANTITY, chosen, figures)
