"""Every row runs on a tiny model, asserts its work, and leaves a record for the tables.

The row of fresh processes is left to its parts: its start-up is tested with the compile cache.
"""

import importlib
import json

import pytest

pytest.importorskip("torch")

from benchmarks import record, start_up, tables
from benchmarks.__main__ import ON_REQUEST, ROWS

QUICK = {row: module for row, module in ROWS.items() if row not in ("R12", *ON_REQUEST)}
QUICK["7B"] = "seven_b"
FAST = ("R4",)
"""Rows that `make test` runs: decoding of both engines."""


@pytest.fixture(autouse=True)
def _one_torch_thread():
    """Threads of torch that wait for a busy core take seconds a step."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "row", [row if row in FAST else pytest.param(row, marks=pytest.mark.slow) for row in QUICK]
)
def test_a_row_runs(row, tmp_path):
    try:
        result = importlib.import_module(f"benchmarks.{QUICK[row]}").measure(quick=True)
    except record.Unavailable as reason:
        pytest.skip(str(reason))
    assert result["row"] == row
    assert result["figures"]
    assert all(found["verdict"] == "" for found in result["figures"])
    # A CPU has no fused kernel, and 7B says so.
    assert all(found["low"] > 0 or "yes is 1" in found["name"] for found in result["figures"])
    path = record.write(result, tmp_path)
    table = tables.figures(json.loads(path.read_text()))
    assert all(found["name"] in table for found in result["figures"])
    assert record.missed(result) == []


def starts(compile_seconds, again=0, answers=("a",)):
    return [
        {
            "answers": list(answers), "compile": seconds, "process": seconds + 1, "programs": 4,
            "buckets": 2, "programs_again": again,
        }
        for seconds in compile_seconds
    ]  # fmt: skip


def test_a_warm_start_is_judged_by_what_it_compiles():
    figures = start_up.judge(starts([10, 11, 12]), starts([2, 2, 2]), judged=True)
    assert [found["verdict"] for found in figures] == ["met", "", "met"]
    late = start_up.judge(starts([10, 11, 12]), starts([9, 9, 9], again=1), judged=True)
    assert [found["verdict"] for found in late] == ["missed", "", "missed"]


def test_starts_that_answer_differently_are_no_measurement():
    with pytest.raises(RuntimeError, match="same answers"):
        start_up.judge(starts([1, 1]), starts([1, 1], answers=("b",)), judged=True)
