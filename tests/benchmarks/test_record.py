"""Figures, records and the pages that are made of them."""

import json

import pytest

from benchmarks import record, tables
from benchmarks.protocol import ratio_of
from benchmarks.record import figure


@pytest.fixture
def result():
    return {
        "row": "R1",
        "quantity": "steered / vanilla",
        "machine": {"devices": ["cpu"], "cores": 2, "cpu": "Some CPU", "load_average": [0.1, 0, 0],
                    "commit": "0123456789abcdef"},
        "peaks_before": {"gemm_gflops": 100.0, "stream_gbs": 10.0},
        "peaks_after": {"gemm_gflops": 101.0, "stream_gbs": 11.0},
        "load_average_after": [0.2, 0, 0],
        "figures": [
            figure("AIR", ratio_of([1.02, 1.03, 1.04], [1.0] * 3), 1.05, steered_ms=1.03),
            figure("slow", ratio_of([2.0, 2.1, 2.2], [1.0] * 3), 1.05),
            figure("open", ratio_of([1.0, 1.05, 1.2], [1.0] * 3), 1.05),
            figure("beside", ratio_of([3.0] * 3, [1.0] * 3)),
            figure("bytes", 5.0, 4.0, at_most=False),
        ],
        "seconds": 1.0,
    }  # fmt: skip


def test_only_a_whole_interval_on_the_wrong_side_fails_a_run(result):
    assert record.missed(result) == ["slow"]
    verdicts = [found["verdict"] for found in result["figures"]]
    assert verdicts == ["met", "missed", "unclear", "", "met"]


def test_a_table_says_what_the_record_says(result):
    lines = tables.figures(result).splitlines()
    assert lines[2] == "| AIR | 1.03 [1.02, 1.04] | <= 1.05 | met | steered 1.03 ms |"
    assert lines[5] == "| beside | 3.00 |  |  |  |"
    assert lines[6] == "| bytes | 5.00 | >= 4 | met |  |"


def test_a_page_is_filled_and_filled_again_to_the_same(result, tmp_path, monkeypatch):
    docs, results = tmp_path / "docs", tmp_path / "results"
    docs.mkdir()
    monkeypatch.setattr(tables, "DOCS", docs)
    monkeypatch.setattr(tables, "PAGES", ("page.md",))
    monkeypatch.setattr(record, "RESULTS", results)
    page = docs / "page.md"
    page.write_text(
        "Prose.\n\n<!-- table: R1 -->\n<!-- end -->\n\n"
        "<!-- table: R2 -->\nold\n<!-- end -->\nEnd.\n"
    )
    path = record.write(result, results)
    assert path.name == "r1_some-cpu.json"
    assert json.loads(path.read_text())["row"] == "R1"
    assert tables.fill(check=True) == ["page.md"]
    assert "old" in page.read_text()
    assert tables.fill() == ["page.md"]
    text = page.read_text()
    assert "| AIR | 1.03 [1.02, 1.04] |" in text
    assert "2 cores of Some CPU" in text
    assert "Not measured yet." in text
    assert text.startswith("Prose.")
    assert text.endswith("End.\n")
    assert tables.fill() == []
