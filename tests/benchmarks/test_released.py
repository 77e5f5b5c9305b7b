"""The tables of what was compiled, from records; compiling is tested with plans."""

import dataclasses

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
    assert slices("Qwen2.5-VL-72B", "v5e") == [("v5e:4x8", 32)], "eight hosts already"
    assert [chips for _, chips in slices("Qwen2.5-VL-72B", "v6e")] == [8, 8]
    everything = list(released.cases(["Qwen2.5-VL-3B"], ["v5e"], ["decode", "prefill"]))
    assert (
        len({(case.path, case.name) for case in everything})
        == len(everything)
        == 2 * 2 * len(released.METHODS)
    )
    assert [case.method for case in everything[:2]] == ["vanilla", "vanilla"]


@pytest.mark.parametrize(
    ("more", "verdict"), [(1.01, "met"), (1.03, "missed: functional heads, AIR")]
)
def test_steering_is_judged_by_operations_and_bytes_moved(more, verdict, tmp_path, monkeypatch):
    monkeypatch.setattr(released, "RECORDS", tmp_path)
    monkeypatch.setattr(released, "CONFIGS", {"Qwen2.5-VL-7B": CONFIGS["Qwen2.5-VL-7B"]})
    tables = {name: make for name, make in released.TABLES.items() if "meshes" not in name}
    assert {make() for make in tables.values()} == {"Not compiled yet."}
    base = CompiledProgram(
        True, argument_bytes=int(8e9), temp_bytes=int(5e7), peak_bytes=int(8.05e9),
        memory_bytes=int(16.9e9), flops=3e10, bytes_accessed=9e9, moved_bytes=int(7.7e9),
        compiler_seconds=0.013, collectives={"all-reduce": 58},
    )  # fmt: skip
    steered = dataclasses.replace(
        base, moved_bytes=int(more * 7.7e9), bytes_accessed=9.9e9, collectives={"all-reduce": 87}
    )
    for layers, method, program in [
        (0, "vanilla", base), (2, "vanilla", base), (2, "AIR", steered),
        (2, "functional heads", steered),
    ]:  # fmt: skip
        case = Case("Qwen2.5-VL-7B", "v5e", "v5e:2x2", 2, method, "decode", layers)
        assert case.record() is None
        record = {
            "case": dataclasses.asdict(case), "slice_chips": 4, "rows": 16, "length": 512,
            "mesh": {"data": 2, "model": 2}, "unread_bytes": 5e8, "commit": "0123456789",
            "named_collectives": {"all-reduce": 28} if method == "AIR" else {},
            "processor_seconds": 41.6, "program": dataclasses.asdict(program),
        }  # fmt: skip
        case.keep(record)
        assert case.record() == record
    moved = "7.70 | 1.027 | 9.0"
    assert f"| yes | 8.00 | 0.05 | 30 | {moved} | 13.0 | 58 all-reduce | 42 | 0123456 |" in (
        tables["released decode"]()
    )
    assert f"| 2 x 2 | 8.00 | 30 | {moved} | 0123456 |" in tables["released layers"]()
    assert "| 2 | 1 | 1 | v5e:2x2 | 2 x 2 | 8.1 of 16.9 | not compiled |" in (
        released.TABLES["tpu meshes"]()
    )
    ratios = f"1.000 / {more:.3f} / 1.100"
    assert tables["steered decode"]().splitlines()[2:] == [
        f"| Qwen2.5-VL-7B | v5e:2x2 | {ratios} | {ratios} | - | - | {verdict} | "
        "functional heads: 29 all-reduce; AIR: 1 all-reduce | 0123456 |"
    ]
    assert tables["steered prefill"]() == tables["strategies decode"]() == "Not compiled yet."
