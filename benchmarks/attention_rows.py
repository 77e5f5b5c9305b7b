"""R17: reading where heads look at the steps of an answer, against transformers' whole maps.

    python -m benchmarks R17

Both sides read the same sequence by the same weights and give every head's masses on the image, on
text and on what is before, at the rows that chose the answer's tokens. transformers gives them by
eager attention with `output_attentions=True`; its memory is counted as the maps that it returns
alone, ours as all that the compiled program needs beside its arguments.
"""

from __future__ import annotations

import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.protocol import Route, in_turns
from benchmarks.record import figure, milliseconds, record
from benchmarks.small import folder_model, prompts, text_of
from vlm_jax.analysis.rows import KINDS, RowReader
from vlm_jax.batch import Kind

QUANTITY = "transformers, eager with output_attentions / ours"
MEMORY_GOAL, TIME_GOAL = 5.0, 1.0


def settings(quick: bool) -> dict[str, Any]:
    """The sequence, how many of its last rows are an answer, and runs of each side."""
    if quick:
        return dict(text=text_of(True), length=96, answer=16, repeats=2)
    return dict(text=text_of(False), length=2048, answer=64, repeats=5)


def measure(quick: bool = False) -> dict[str, Any]:
    """Measures the row."""
    chosen = settings(quick)

    def figures() -> list[dict[str, Any]]:
        with tempfile.TemporaryDirectory() as scratch:
            return both_sides(pathlib.Path(scratch) / "model", chosen, judged=not quick)

    return record("R17", QUANTITY, chosen, figures)


def both_sides(folder: pathlib.Path, chosen: dict[str, Any], judged: bool) -> list[dict[str, Any]]:
    """Memory and time of both sides, whose masses must agree."""
    import torch

    from tests import tiny

    model = folder_model(folder, chosen["text"])
    batch = prompts(model.config, 1, chosen["length"])
    query_q = np.arange(chosen["length"] - chosen["answer"], chosen["length"], dtype=np.int32)
    reader = RowReader(model.config)
    program = reader.lower(model.params, batch, query_q).compile()
    ours = program.memory_analysis().temp_size_in_bytes
    torch.set_num_threads(len(jax.devices()))
    decoder = tiny.reference(folder, "eager").model.language_model
    ids = torch.tensor(batch.tokens_bt).long()
    kinds_s = jnp.asarray(batch.kinds_bt[0])
    on = np.stack([kinds_s == kind for kind in (Kind.IMAGE, Kind.TEXT, Kind.SYSTEM)], axis=1)
    on_sc = torch.tensor(on, dtype=torch.float32)
    sizes: list[int] = []

    def whole_maps() -> np.ndarray:
        with torch.inference_mode():
            maps = decoder(input_ids=ids, output_attentions=True, use_cache=False).attentions
            sizes.append(sum(one.numel() * one.element_size() for one in maps))
            rows = torch.stack([one[0, :, query_q[0] :] @ on_sc for one in maps])  # [L, N, q, 3]
        return rows.permute(2, 0, 1, 3).numpy()

    routes = {
        "transformers": Route(whole_maps),
        "ours": Route(lambda: reader(model.params, batch, query_q).masses_qlnc),
    }

    def check(done: dict[str, Any]) -> None:
        np.testing.assert_allclose(done["ours"], done["transformers"], atol=2e-4)

    series = in_turns(routes, chosen["repeats"], check=check)
    of = f"{chosen['answer']} rows of {chosen['length']}, {len(KINDS)} masses"
    goal = lambda wanted: wanted if judged else None
    return [
        figure(
            f"memory, {of}", sizes[0] / ours, goal(MEMORY_GOAL), at_most=False,
            ours_MB=ours / 1e6, maps_MB=sizes[0] / 1e6,
        ),
        figure(
            f"time, {of}", series["transformers"].over(series["ours"]), goal(TIME_GOAL),
            at_most=False, ours_ms=milliseconds(series["ours"].seconds),
        ),
    ]  # fmt: skip
