"""R5: the QK edit against the naive dense route, and on every head of a 7B-shaped model.

    python -m benchmarks R5

The naive route forms the D x D product of a head, takes its SVD and maps the edited product back
through a pseudo-inverse of the keys. It is timed on single heads; its time for a layer is that of
one head times the heads. Ratios are for the edit alone, which is all the naive route makes; the
whole model is timed with the certificate's numbers of every head too, in seconds.
"""

from __future__ import annotations

import time
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks.protocol import Route, in_turns, ratio_of
from benchmarks.record import figure, milliseconds, record
from vlm_jax.edits.qk import QKEdit, edit_layers

QUANTITY = "naive / ours, time of an edit"
HEAD_DIM = 128
SEVEN_B: dict[str, int] = {"dims": 3584, "heads": 28, "kv_heads": 4}
MODES, STRENGTH = 4, 0.5
ONE_HEAD_GOALS = {1024: 30.0, 2048: 80.0}
LAYER_GOALS = {2048: 500.0}
MODEL_GOAL_SECONDS = 15.0


def settings(quick: bool) -> dict[str, Any]:
    """Widths, layers of the 7B shape, and repeats of each."""
    if quick:
        return dict(dims=(192,), layers=0, repeats=2, model_repeats=2)
    return dict(dims=(512, 1024, 2048), layers=28, repeats=5, model_repeats=2)


def measure(quick: bool = False) -> dict[str, Any]:
    """Measures the row."""
    chosen = settings(quick)

    def figures() -> list[dict[str, Any]]:
        found = []
        for dims in chosen["dims"]:
            found += against_naive(dims, chosen["repeats"])
        if chosen["layers"]:
            found.append(whole_model(chosen["layers"], chosen["model_repeats"]))
        return found

    return record("R5", QUANTITY, chosen, figures)


def random_layer(seed: int, dims: int, heads: int, kv_heads: int, dtype: Any = ml_dtypes.bfloat16):
    rng = np.random.default_rng(seed)

    def weight(count):
        draw = rng.standard_normal((dims, count, HEAD_DIM), dtype=np.float32)
        # Modes of different strength: a flat spectrum would have no modes to speak of.
        fall = np.arange(1, HEAD_DIM + 1, dtype=np.float32) ** -0.5
        return (draw * fall / np.sqrt(dims)).astype(dtype)

    return {"wq_dnh": weight(heads), "wk_dkh": weight(kv_heads)}


def fast(layer, certify: bool = False) -> np.ndarray:
    spec = QKEdit(band=(0, 0), k=MODES, strength=STRENGTH)
    (edited,) = edit_layers(lambda _: layer, 1, spec, undo=False, certify=certify)
    return edited.arrays["wq_dnh"]


def naive(layer) -> np.ndarray:
    q, k = layer["wq_dnh"][:, 0].T.astype(np.float64), layer["wk_dkh"][:, 0].T.astype(np.float64)
    m = q.T @ k
    u, s, vt = np.linalg.svd(m)
    target = m - STRENGTH * (u[:, :MODES] * s[:MODES]) @ vt[:MODES]
    return (target @ np.linalg.pinv(k)).T


def against_naive(dims: int, repeats: int) -> list[dict[str, Any]]:
    """One head, and a layer of 16 heads on 2 key heads."""
    single = random_layer(0, dims, 1, 1, np.float64)
    layer = random_layer(1, dims, 16, 2)
    heads = layer["wq_dnh"].shape[1]
    ours = fast(single)[:, 0].T
    difference = np.linalg.norm(ours - naive(single)) / np.linalg.norm(ours)
    if not difference < 1e-11:
        raise RuntimeError(f"fast and naive edits differ by {difference:.2g}; nothing to time.")
    series = in_turns(
        {
            "naive": Route(lambda: naive(single)),
            "head": Route(lambda: fast(single)),
            "layer": Route(lambda: fast(layer)),
            "certified": Route(lambda: fast(layer, certify=True)),
        },
        repeats,
    )
    return [
        figure(
            f"one head, D {dims}",
            series["naive"].over(series["head"]),
            ONE_HEAD_GOALS.get(dims),
            at_most=False,
            naive_ms=milliseconds(series["naive"].seconds),
            ours_ms=milliseconds(series["head"].seconds),
        ),
        figure(
            f"a layer of {heads} heads, D {dims}",
            series["naive"].over(series["layer"]).scaled(heads),
            LAYER_GOALS.get(dims),
            at_most=False,
            naive=f"one head, times {heads}",
            ours_ms=milliseconds(series["layer"].seconds),
            with_certificate_ms=milliseconds(series["certified"].seconds),
        ),
    ]


def whole_model(
    num_layers: int, repeats: int, goal: float | None = MODEL_GOAL_SECONDS
) -> dict[str, Any]:
    """Seconds of editing every head of a 7B-shaped model, without making its random weights."""
    spec = QKEdit(band=(0, num_layers - 1), k=MODES, strength=STRENGTH)
    runs = []
    for repeat in range(repeats + 1):
        made = 0.0

        def read(n):
            nonlocal made
            start = time.perf_counter()
            layer = random_layer(n, SEVEN_B["dims"], SEVEN_B["heads"], SEVEN_B["kv_heads"])
            made += time.perf_counter() - start
            return layer

        heads = 0
        start = time.perf_counter()
        # The first, short run compiles.
        layers = num_layers if repeat else 1
        which = spec if repeat else QKEdit(band=(0, 0))
        for edited in edit_layers(read, layers, which, undo=False):
            heads += len(edited.heads)
        if repeat:
            runs.append(time.perf_counter() - start - made)
            if heads != num_layers * SEVEN_B["heads"]:
                raise RuntimeError(f"{heads} heads were edited, not all.")
    return figure(
        f"seconds for the {heads} heads of a 7B shape, D {SEVEN_B['dims']}, certified",
        ratio_of(runs, [1.0] * len(runs)),
        goal if num_layers == 28 else None,
        a_head_ms=1e3 * min(runs) / heads,
    )
