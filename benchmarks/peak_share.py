"""R6: which share of the machine's peaks decoding and prefill reach.

    python -m benchmarks R6

Decoding's bytes over its time, against a stream read timed turn by turn with it; prefill's
operations over its time, against a large matrix product likewise. Bytes and operations are what the
work needs (`benchmarks.roofline`), not what was moved. A wide model decodes eight rows too: in
products of few rows, each byte of a narrow matrix costs more.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.decoding import Decoding
from benchmarks.prefill_steered import compiled
from benchmarks.protocol import Route, in_turns
from benchmarks.record import figure, milliseconds, record
from benchmarks.roofline import decode_bytes, prefill_flops
from benchmarks.small import Bare, bare, prompts, text_of

QUANTITY = "share of the measured peak"
DECODE_GOAL, BATCH_GOAL, PREFILL_GOAL = 0.65, 0.55, 0.55
WIDE = dict(
    hidden_size=2048,
    num_hidden_layers=2,
    num_attention_heads=16,
    head_dim=128,
    intermediate_size=5632,
    vocab_size=8000,
)
"""Half a gigabyte of float32 weights, as wide as the smallest released decoders."""
FLOAT32 = 4


def settings(quick: bool) -> dict[str, Any]:
    """Batches of decoding, lengths of prefill, and sizes of what measures the peaks."""
    if quick:
        sizes = dict(batches=(1,), context=48, steps=4, lengths=(48,))
        return dict(
            text=text_of(True), wide=text_of(True), repeats=2, stream_mb=8, square=128, **sizes
        )
    sizes = dict(batches=(1, 8), context=512, steps=24, lengths=(640, 1500))
    models = dict(text=text_of(False), wide=text_of(False, **WIDE))
    return dict(**models, repeats=11, stream_mb=256, square=1536, **sizes)


def measure(quick: bool = False) -> dict[str, Any]:
    """Measures the row."""
    chosen = settings(quick)
    model, wide = bare(chosen["text"]), bare(chosen["wide"])

    def figures() -> list[dict[str, Any]]:
        return [
            *decode_shares(model, chosen, judged=not quick),
            *decode_shares(wide, {**chosen, "batches": (8,)}, judged=not quick),
            *prefill_shares(model, chosen, judged=not quick),
        ]

    return record("R6", QUANTITY, chosen, figures)


def decode_shares(model: Bare, chosen: dict[str, Any], judged: bool) -> list[dict[str, Any]]:
    """Bytes a second over the stream's."""
    stream = jnp.ones(chosen["stream_mb"] * 2**20 // FLOAT32, jnp.float32)
    read = jax.jit(jnp.sum)
    steps, found = chosen["steps"], []
    width = model.config.decoder.hidden_size
    goals = {1: DECODE_GOAL, 8: BATCH_GOAL}
    one = Decoding.record(
        model.generator, model.params, prompts(model.config, 1, chosen["context"]), steps
    )
    for rows in chosen["batches"]:
        loop = one.repeated(rows)
        routes = {"stream": Route(lambda: read(stream).block_until_ready()), "loop": loop.route()}

        def check(done: dict[str, Any], loop=loop) -> None:
            loop.check(done["loop"])

        series = in_turns(routes, chosen["repeats"], check=check)
        context = chosen["context"] + (steps + 1) / 2
        moved = steps * decode_bytes(model.config.decoder, rows, context, FLOAT32)
        share = series["stream"].over(series["loop"]).scaled(moved / stream.nbytes)
        found.append(
            figure(
                f"decode of the stream, width {width}, batch {rows}",
                share,
                goals.get(rows) if judged else None,
                at_most=False,
                step_ms=milliseconds(series["loop"].seconds, steps),
                **{"stream_GB/s": stream.nbytes / np.median(series["stream"].seconds) / 1e9},
            )
        )
    return found


def prefill_shares(model: Bare, chosen: dict[str, Any], judged: bool) -> list[dict[str, Any]]:
    """Operations a second over the matrix product's."""
    size, found = chosen["square"], []
    square = jnp.ones((size, size), jnp.float32)
    product = jax.jit(lambda x: x @ x)
    for length in chosen["lengths"]:
        run = compiled(model, model.put(prompts(model.config, 1, length)), None)
        expected = run()
        if not np.all(np.isfinite(expected)):
            raise RuntimeError("Prefill has logits that are not finite.")

        def check(done: dict[str, Any], expected=expected) -> None:
            np.testing.assert_array_equal(done["prefill"], expected)

        routes = {
            "product": Route(lambda: product(square).block_until_ready()),
            "prefill": Route(run),
        }
        series = in_turns(routes, chosen["repeats"], check=check)
        work = prefill_flops(model.config.decoder, length)
        share = series["product"].over(series["prefill"]).scaled(work / (2 * size**3))
        found.append(
            figure(
                f"prefill of the product, {length} tokens",
                share,
                PREFILL_GOAL if judged else None,
                at_most=False,
                prefill_ms=milliseconds(series["prefill"].seconds),
                **{"product_GFLOP/s": 2 * size**3 / np.median(series["product"].seconds) / 1e9},
            )
        )
    return found
