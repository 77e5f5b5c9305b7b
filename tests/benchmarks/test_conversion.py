"""The row of conversions: what is judged against what, and that it runs at all."""

import json

import pytest

from benchmarks import conversion, record


def runs(work, flush=0.0, peak=0):
    return [{"work": work, "flush": flush, "peak": peak}] * 3


def test_time_is_judged_against_the_copy_and_memory_against_its_bound():
    bound = 2.5 * 1000 + (300 << 20)
    found = conversion.judge(
        {
            "copy": runs(1.0, flush=2.0),
            "import": runs(3.0, flush=2.0, peak=int(bound) + 1),
            "export": runs(2.0, flush=5.0, peak=int(bound)),
        },
        total=4000,
        largest=1000,
        judged=True,
    )
    figures = {figure["name"]: figure for figure in found}
    assert len(figures) == 6
    assert figures["import / copy, until on the disk"]["median"] == pytest.approx(5 / 3)
    assert figures["import / copy, until returned"]["median"] == 3.0
    assert figures["export / copy, until on the disk"]["verdict"] == "missed"
    assert figures["export / copy, until returned"]["verdict"] == "met"
    assert figures["import, peak memory / bound"]["verdict"] == "missed"
    assert figures["export, peak memory / bound"]["verdict"] == "met"


@pytest.mark.slow
def test_the_row_runs(tmp_path):
    result = conversion.measure(quick=True)
    assert {figure["verdict"] for figure in result["figures"]} == {""}
    path = record.write(result, tmp_path)
    written = json.loads(path.read_text())
    for found in written["figures"]:
        assert found["median"] > 0
        if "memory" in found["name"]:
            assert found["median"] < 1, "memory needs no quiet machine"
    assert all(len(samples) > 2 for samples in written["resident_MB_over_seconds"].values())


def test_folders_that_differ_are_no_measurement(tmp_path):
    for name, content in (("a", b"1"), ("b", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(content)
    with pytest.raises(RuntimeError, match="'file'"):
        conversion.check_same(tmp_path / "a", tmp_path / "b")
