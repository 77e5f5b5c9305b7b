"""A table on a terminal is no wider than it."""

import io
import sys

import pytest

from vlm_jax.evals.results import format_table
from vlm_jax.report.tables import Table

HEADERS = ["arm", "recall", "precision", "length"]
ROWS = [["unedited", "90.0", "65.7", "12.0"], ["edited", "89.4 (-0.6*)", "65.7 (+0.0)", "11.8"]]


def test_columns_without_room_are_a_further_table():
    assert format_table(HEADERS, ROWS, 36).splitlines() == [
        "arm             recall    precision",
        "-----------------------------------",
        "unedited          90.0         65.7",
        "edited    89.4 (-0.6*)  65.7 (+0.0)",
        "",
        "arm       length",
        "----------------",
        "unedited    12.0",
        "edited      11.8",
    ]


@pytest.mark.parametrize("width", [36, 80, 200])
def test_every_cell_is_shown_and_none_is_cut(width):
    shown = format_table(HEADERS, ROWS, width)
    assert all(cell in shown for row in [HEADERS, *ROWS] for cell in row)
    assert max(map(len, shown.splitlines())) <= width


def test_only_a_terminal_limits_a_table(monkeypatch):
    table = Table("t", HEADERS, ROWS)
    whole = table.text()
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "36")
    assert max(map(len, whole.splitlines())) > 36
    assert max(map(len, table.text().splitlines())) <= 36
