"""How fast the QK edit is: a whole 7B-shaped model, and against the naive dense route.

    OPENBLAS_NUM_THREADS=1 NPROC=16 python -m benchmarks.qk_edit --output qk_edit.json

The naive route forms the D x D product of a head, takes its SVD and maps the edited product back
through a pseudo-inverse of the keys. It is timed on single heads; its time for a layer is that of
one head times the heads, and the output says so. Ratios are for the edit alone, which is all the
naive route makes; the whole model is timed with the certificate's numbers of every head too.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import time
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("NPROC", "16")

import ml_dtypes
import numpy as np

from benchmarks.protocol import compare, machine, peaks
from vlm_jax.steering.qk import QKEdit, edit_layers

HEAD_DIM = 128
SEVEN_B: dict[str, int] = {"dims": 3584, "heads": 28, "kv_heads": 4}
MODES, STRENGTH = 4, 0.5
ONE_HEAD_GOAL, LAYER_GOAL, MODEL_GOAL_SECONDS = 80.0, 500.0, 15.0


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


def whole_model(num_layers: int, repeats: int) -> dict:
    """Seconds of editing every head of a 7B-shaped model, without making its random weights."""
    spec = QKEdit(band=(0, num_layers - 1), k=MODES, strength=STRENGTH)
    runs, busy = [], []
    for repeat in range(repeats + 1):
        made = making = 0.0

        def read(n):
            nonlocal made, making
            start, start_busy = time.perf_counter(), time.process_time()
            layer = random_layer(n, SEVEN_B["dims"], SEVEN_B["heads"], SEVEN_B["kv_heads"])
            made += time.perf_counter() - start
            making += time.process_time() - start_busy
            return layer

        heads = 0
        start, start_busy = time.perf_counter(), time.process_time()
        # The first, short run compiles.
        layers = num_layers if repeat else 1
        for edited in edit_layers(
            read, layers, spec if repeat else QKEdit(band=(0, 0)), undo=False
        ):
            heads += len(edited.heads)
        if repeat:
            runs.append(time.perf_counter() - start - made)
            busy.append(time.process_time() - start_busy - making)
            assert heads == num_layers * SEVEN_B["heads"]
    best = min(runs)
    return {
        "layers": num_layers,
        "edited_heads": heads,
        **SEVEN_B,
        "head_dim": HEAD_DIM,
        "seconds": runs,
        "cpu_seconds": busy,
        "best_seconds": best,
        "ms_per_head": 1e3 * best / heads,
        "includes": "factors, modes, edit, rounding to bf16 and the certificate's numbers",
        "goal_seconds": MODEL_GOAL_SECONDS,
        "goal_met": best <= MODEL_GOAL_SECONDS if num_layers == 28 else None,
    }


def against_naive(dims: int, repeats: int) -> dict:
    """Ratios naive / fast, for one head and for a layer of 16 heads on 2 key heads."""
    single = random_layer(0, dims, 1, 1, np.float64)
    layer = random_layer(1, dims, 16, 2)
    ours = fast(single)[:, 0].T
    difference = np.linalg.norm(ours - naive(single)) / np.linalg.norm(ours)
    if not difference < 1e-11:
        raise RuntimeError(f"fast and naive edits differ by {difference:.2g}; nothing to time.")
    head = compare(lambda: naive(single), lambda: fast(single), repeats)
    batched = compare(lambda: naive(single), lambda: fast(layer), repeats)
    certified = compare(lambda: fast(layer, certify=True), lambda: fast(layer), repeats)
    heads = layer["wq_dnh"].shape[1]
    return {
        "dims": dims,
        "head_dim": HEAD_DIM,
        "ratio": "naive / fast; naive on the BLAS threads of the environment, fast on XLA's pool",
        "difference": float(difference),
        "one_head": {
            **head.as_dict(),
            "goal": ONE_HEAD_GOAL if dims >= 2048 else None,
            "verdict": head.verdict(ONE_HEAD_GOAL, at_most=False) if dims >= 2048 else None,
        },
        "layer": {
            "heads": heads,
            "naive": f"one head measured, times {heads}",
            "min": batched.min * heads,
            "median": batched.median * heads,
            "low": batched.low * heads,
            "high": batched.high * heads,
            "cpu_median": (batched.cpu_median or 0.0) * heads,
            "fast_seconds": batched.b_seconds,
            "certified_over_edit_alone": certified.median,
            "goal": LAYER_GOAL if dims >= 2048 else None,
            "goal_met": batched.low * heads >= LAYER_GOAL if dims >= 2048 else None,
        },
    }


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=pathlib.Path, help="write the JSON here too")
    parser.add_argument("--layers", type=int, default=28, help="layers of the 7B shape (0: skip)")
    parser.add_argument("--dims", type=int, nargs="*", default=[512, 1024, 2048])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--model-repeats", type=int, default=2)
    args = parser.parse_args()
    result = {"machine": machine(), "peaks_before": peaks("float64")}
    result["against_naive"] = [against_naive(dims, args.repeats) for dims in args.dims]
    if args.layers:
        result["whole_model"] = whole_model(args.layers, args.model_repeats)
    result["peaks_after"] = peaks("float64")
    result["load_average_after"] = list(os.getloadavg())
    text = json.dumps(result, indent=2)
    print(text)
    if args.output:
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
