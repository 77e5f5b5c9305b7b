"""R13: memory that reading a long prompt takes, in tiles and through the whole map.

    python -m benchmarks R13

What the compiled prefill of the decoder needs beside its arguments and results, as its compiler
counts it; nothing is run. The whole map over tiles, for the vanilla function and for methods.
"""

from __future__ import annotations

from typing import Any

from benchmarks.prefill_steered import lower
from benchmarks.record import figure, record
from benchmarks.small import bare, prefill_methods, prompts, text_of

QUANTITY = "whole map / tiles, temporary bytes of prefill"
GOAL = 4.0


def settings(quick: bool) -> dict[str, Any]:
    """The prompt; two layers need no more than many, as each frees what it took."""
    return dict(text=text_of(quick, num_hidden_layers=2), length=1024 if quick else 4096)


def measure(quick: bool = False) -> dict[str, Any]:
    """Measures the row."""
    chosen = settings(quick)
    model = bare(chosen["text"])
    batch = prompts(model.config, 1, chosen["length"])

    def temporary(steering, whole_map: bool) -> int:
        program = lower(model, batch, steering, whole_map=whole_map).compile()
        return program.memory_analysis().temp_size_in_bytes

    def figures() -> list[dict[str, Any]]:
        methods = {"vanilla": None, **prefill_methods(model.config)}
        whole = temporary(methods["AIR"], whole_map=True)
        found = []
        for name, steering in methods.items():
            tiles = temporary(steering, whole_map=False)
            ratio = whole / tiles
            goal = None if quick else GOAL
            found.append(
                figure(
                    f"{name}, {chosen['length']} tokens",
                    ratio,
                    goal,
                    at_most=False,
                    tiles_MB=tiles / 1e6,
                    whole_map_MB=whole / 1e6,
                )
            )
        return found

    return record("R13", QUANTITY, chosen, figures)
