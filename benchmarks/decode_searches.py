"""R15: what a search costs.

    python -m benchmarks R15

Beam search with 5 beams beside 5 plain rows that decode at once: what is more is the choice among
beams, what may be less is that they share their prompt. OPERA, whose step reads 25 candidates and
chooses among them, beside the 30 passes that its definition has (5 beams, each with 5 candidates),
read one by one. All decode from where their own prefill ended.
"""

from __future__ import annotations

from typing import Any

from benchmarks.decoding import Decoding
from benchmarks.protocol import in_turns
from benchmarks.record import figure, milliseconds, record
from benchmarks.small import Bare, bare, prompts, text_of
from vlm_jax.decoding.named import read_named

QUANTITY = "search / what it replaces, time of a decode step"
BEAMS, PASSES = 5, 30
GOALS = {"beams": 1.2, "OPERA": 0.5}


def settings(quick: bool) -> dict[str, Any]:
    """Contexts, and the steps of a run."""
    if quick:
        return dict(text=text_of(True), contexts=(48,), steps=4, repeats=2)
    return dict(text=text_of(False), contexts=(640,), steps=16, repeats=15)


def measure(quick: bool = False) -> dict[str, Any]:
    """Measures the row."""
    chosen = settings(quick)
    model = bare(chosen["text"])

    def figures() -> list[dict[str, Any]]:
        cases = (one_case(model, context, chosen, not quick) for context in chosen["contexts"])
        return [found for case in cases for found in case]

    return record("R15", QUANTITY, chosen, figures)


def one_case(
    model: Bare, context: int, chosen: dict[str, Any], judged: bool
) -> list[dict[str, Any]]:
    """Times both searches at one context."""
    batch, steps = prompts(model.config, 1, context), chosen["steps"]
    start = lambda **acting: Decoding.record(model.generator, model.params, batch, steps, **acting)
    plain = start()
    loops = {
        "one row": plain,
        "rows": plain.repeated(BEAMS),
        "beams": start(num_beams=BEAMS),
        "OPERA": start(strategy=read_named("opera", {})),
    }

    def check(done: dict[str, Any]) -> None:
        for name, tokens in done.items():
            loops[name].check(tokens)

    routes = {name: loop.route() for name, loop in loops.items()}
    series = in_turns(routes, chosen["repeats"], check=check)
    each = {name: milliseconds(one.seconds, steps) for name, one in series.items()}
    # OPERA's candidates for the last token are read as well: a step more than plain decoding.
    own = each["OPERA"] * steps / (steps + 1)
    return [
        figure(
            f"{BEAMS} beams / {BEAMS} rows, context {context}",
            series["beams"].over(series["rows"]),
            GOALS["beams"] if judged else None,
            beams_ms=each["beams"],
            rows_ms=each["rows"],
        ),
        figure(
            f"OPERA / {PASSES} passes one by one, context {context}",
            own / (PASSES * each["one row"]),
            GOALS["OPERA"] if judged else None,
            opera_ms=own,
            pass_ms=each["one row"],
        ),
    ]
