"""The tables of what was compiled, from records; compiling is tested with plans."""

import dataclasses
import json

import pytest

from benchmarks import released
from benchmarks.released import Case, slices
from tests.released import CONFIGS
from vlm_jax.planning.compiled import CompiledProgram


def test_a_model_is_compiled_for_the_smallest_slice_and_for_several_hosts():
    assert slices("Qwen2.5-VL-3B", "v5e") == [("v5e:1x1", 1), ("v5e:4x4", 1)]
    assert slices("Qwen2.5-VL-7B", "v5e") == [("v5e:2x2", 2)], "each host of 4x4 runs the same"
    assert slices("Qwen2.5-VL-32B", "v5e") == [("v5e:2x4", 8), ("v5e:4x4", 8)]
    assert slices("Qwen2.5-VL-72B", "h100") == [("h100:4", 4)]
    assert slices("Qwen2.5-VL-72B", "v5e")[0] == ("v5e:4x8", 32)
    assert [chips for _, chips in slices("Qwen2.5-VL-72B", "v6e")] == [8, 8]
    everything = list(released.cases(["Qwen2.5-VL-3B"], ["v5e"], ["decode", "prefill"]))
    assert (
        len({case.path for case in everything}) == len(everything) == 2 * 2 * len(released.METHODS)
    )
    assert [case.method for case in everything[:2]] == ["vanilla", "vanilla"]


@pytest.mark.parametrize(("more", "verdict"), [(1.01, "met"), (1.03, "missed")])
def test_steering_is_judged_by_flops_and_bytes(more, verdict, tmp_path, monkeypatch):
    monkeypatch.setattr(released, "RECORDS", tmp_path)
    monkeypatch.setattr(released, "CONFIGS", {"Qwen2.5-VL-7B": CONFIGS["Qwen2.5-VL-7B"]})
    assert released.released_table() == released.steered_table() == "Not compiled yet."
    base = CompiledProgram(
        True, int(8e9), int(5e7), int(8.05e9), int(16.9e9), flops=3e10, bytes_accessed=9e9,
        compiler_seconds=0.013, collectives={"all-reduce": 58},
    )  # fmt: skip
    steered = dataclasses.replace(
        base, bytes_accessed=more * base.bytes_accessed, collectives={"all-reduce": 59}
    )
    for method, program in (("vanilla", base), ("AIR", steered)):
        case = Case("Qwen2.5-VL-7B", "v5e", "v5e:2x2", 2, method, "decode")
        assert case.record() is None
        case.path.write_text(
            json.dumps(
                {
                    "case": dataclasses.asdict(case), "slice_chips": 4, "rows": 16, "length": 512,
                    "mesh": {"data": 2, "model": 2}, "held_bytes": 8e9, "jax": "0",
                    "commit": "0123456789",
                    "program": dataclasses.asdict(program),
                }
            )
        )  # fmt: skip
        assert case.record() is not None
    assert "| yes | 8.00 | 0.05 | 30 | 9.0 | 1.12 | 13.0 | 58 all-reduce |" in (
        released.released_table()
    )
    assert "| 2 | 1 | 1 | v5e:2x2 | 2 x 2 | 8.1 of 16.9 | not compiled |" in (
        released.TABLES["tpu meshes"]()
    )
    assert f"| 1.000 | {more:.3f} | 1.000 | <= 1.02 | {verdict} | +1 all-reduce | 0123456 |" in (
        released.steered_table()
    )
