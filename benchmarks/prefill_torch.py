"""R20: reading a prompt against transformers on torch: plain, with q/k norms, latent with experts.

    python -m benchmarks R20

Both sides have the same random float32 weights and read the same words into a cache, up to the
logits of the first token, which must be the same. The decoders are those of R4 (4 layers of them)
and R16. torch runs as fast as its settings allow: attention, experts and number of threads are
tried before.
"""

from __future__ import annotations

import itertools
import math
import os
import pathlib
import tempfile
import time
from typing import Any

import numpy as np
import torch

from benchmarks import decode_experts, torch_decoding
from benchmarks.prefill_steered import compiled
from benchmarks.protocol import Route, in_turns
from benchmarks.record import figure, milliseconds, record
from benchmarks.small import Bare, folder_model, prompts, text_of
from tests import tiny

QUANTITY = "transformers on torch, its best setting / ours, time of prefill"
GOAL = 1.0
KINDS = {"plain": "llama", "q/k norms": "qwen3"}
EXPERTS = "latent attention and experts"
TOLERANCE = 2e-3
"""Of logits about as large as 4: float32, sums in another order."""


def settings(quick: bool) -> dict[str, Any]:
    """The decoders, and prompts: rows x tokens."""
    experts = decode_experts.settings(quick)["text"]
    if quick:
        return dict(text=text_of(True), experts=experts, prompts=[(2, 48)], repeats=2)
    text = text_of(False, num_hidden_layers=4)
    return dict(text=text, experts=experts, prompts=[(1, 640), (1, 1500), (8, 64)], repeats=7)


def measure(quick: bool = False) -> dict[str, Any]:
    """Measures the row."""
    chosen = settings(quick)

    def figures() -> list[dict[str, Any]]:
        found = []
        for name in (*KINDS, EXPERTS):
            sides = sides_of(name, chosen)
            for rows, length in chosen["prompts"]:
                found.append(one_case(name, *sides, rows, length, chosen["repeats"], not quick))
        return found

    return record("R20", QUANTITY, chosen, figures)


def sides_of(name: str, chosen: dict[str, Any]) -> tuple[Bare, Any, torch.Tensor]:
    """Returns our decoder, and torch's with its head."""
    if name == EXPERTS:
        return decode_experts.sides(chosen["experts"])
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch) / "model"
        vlm = folder_model(folder, chosen["text"] | {"model_type": KINDS[name]})
        theirs = tiny.reference(folder)
    ours = Bare(vlm.config, vlm.params, vlm.generator)
    return ours, theirs.model.language_model, theirs.lm_head.weight.detach()


def one_case(
    name: str,
    ours: Bare,
    model: Any,
    head: torch.Tensor,
    rows: int,
    length: int,
    repeats: int,
    judged: bool,
) -> dict[str, Any]:
    """Times both sides of a decoder on prompts of one length."""
    batch = prompts(ours.config, rows, length)
    theirs = _Torch(model, head, np.asarray(batch.tokens_bt))
    routes = {"torch": Route(theirs.run), "ours": Route(compiled(ours, ours.put(batch), None))}
    expected = routes["ours"].run()

    def check(done: dict[str, Any]) -> None:
        for logits_bv in done.values():
            np.testing.assert_allclose(logits_bv, expected, atol=TOLERANCE)

    best, tried = theirs.best()
    series = in_turns(routes, repeats, check=check)
    found = figure(
        f"{name}, {rows} x {length} tokens",
        series["torch"].over(series["ours"]),
        GOAL if judged else None,
        at_most=False,
        torch_ms=milliseconds(series["torch"].seconds),
        ours_ms=milliseconds(series["ours"].seconds),
        torch_is=best,
    )
    return found | {"tried": tried}


class _Torch:
    """Prefill by a decoder of transformers'."""

    def __init__(self, model: Any, head: torch.Tensor, ids_bt: np.ndarray):
        self._model, self._head = model, head
        self._ids_bt = torch.from_numpy(ids_bt).long()

    @torch.inference_mode()
    def run(self) -> np.ndarray:
        """Reads the prompts into a cache; returns the logits of the first token [B, V]."""
        hidden_btd = self._model(input_ids=self._ids_bt, use_cache=True).last_hidden_state
        return (hidden_btd[:, -1] @ self._head.T).numpy()

    def best(self) -> tuple[str, list[dict[str, Any]]]:
        """Sets the fastest of all settings; returns its name, and every time.

        What takes over three times as long as the fastest before it is tried once.
        """
        experts = ("eager", "grouped_mm") if hasattr(self._model.config, "n_routed_experts") else ()
        threads = sorted({1, os.cpu_count() or 1})
        seconds: dict[tuple[str, int, str], float] = {}
        for each in itertools.product(("sdpa", "eager"), threads, experts or ("",)):
            torch_decoding.use(self._model, *each)
            limit, taken = 3 * min(seconds.values(), default=math.inf), []
            while len(taken) < 3 and not (taken and taken[0] > limit):
                start = time.perf_counter()
                self.run()
                taken.append(time.perf_counter() - start)
            seconds[each] = min(taken)
        name = lambda a, t, e: f"{a} attention, {f'{e} experts, ' if e else ''}{t} threads"
        best = min(seconds, key=seconds.__getitem__)
        torch_decoding.use(self._model, *best)
        return name(*best), [{"setting": name(*e), "ms": 1e3 * s} for e, s in seconds.items()]
