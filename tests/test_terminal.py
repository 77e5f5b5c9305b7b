"""A table on a terminal is no wider than it; elsewhere it is plain text in full width."""

import io
import sys

import pytest
from rich.cells import cell_len

from vlm_jax import terminal
from vlm_jax.report.tables import Table

HEADERS = ["arm", "recall", "precision", "length"]
ROWS = [["unedited", "90.0", "65.7", "12.0"], ["edited", "89.4 (-0.6*)", "65.7 (+0.0)", "11.8"]]


def on_terminal(monkeypatch, columns):
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", str(columns))


def widest(text):
    return max(map(cell_len, text.splitlines()))


def test_columns_without_room_are_a_further_table():
    assert terminal.drawn(HEADERS, ROWS, room=36).splitlines() == [
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


@pytest.mark.parametrize("room", [20, 36, 80, 200])
def test_every_figure_is_shown_and_none_is_cut(room):
    shown = terminal.drawn(HEADERS, ROWS, room=room)
    assert all(cell in shown for row in [HEADERS, *ROWS] for cell in row[1:])
    assert widest(shown) <= room


@pytest.mark.parametrize("room", [1, 12, 19])
def test_a_terminal_narrower_than_a_figure_breaks_lines_instead_of_figures(room):
    shown = terminal.drawn(HEADERS, ROWS, room=room)
    assert all(cell in shown for row in [HEADERS, *ROWS] for cell in row)


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_that_knows_no_codes_gets_none(name, value, monkeypatch):
    on_terminal(monkeypatch, 80)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b" in terminal.shown(HEADERS, ROWS)
    monkeypatch.setenv(name, value)
    assert "\x1b" not in terminal.shown(HEADERS, ROWS)


def test_only_a_terminal_limits_a_table_and_has_bold_headers(monkeypatch):
    table = Table("t" * 50, HEADERS, ROWS, ["a note " * 9])
    whole = table.text()
    assert widest(whole) > 36
    assert "\x1b" not in whole
    on_terminal(monkeypatch, 36)
    shown = table.text()
    assert "\x1b[1marm" in shown
    assert widest(shown.replace("\x1b[1m", "").replace("\x1b[0m", "")) <= 36


def test_texts_fold_in_their_cells_by_the_width_of_their_letters(monkeypatch):
    rows = [["plain", "a cup"], ["air", "a cup, a fork and a spoon"], ["wide", "\u65e5" * 9]]
    assert terminal.written(["model", "answer"], rows, longest=14).splitlines() == [
        "model  answer",
        "---------------------",
        "plain  a cup",
        "air    a cup, a fork",
        "       and a spoon",
        "wide   " + "\u65e5" * 7,
        "       " + "\u65e5" * 2,
    ]
    on_terminal(monkeypatch, 12)
    assert widest(terminal.written(["model", "answer"], rows)) <= 12


def test_what_a_model_says_is_neither_markup_nor_obeyed():
    said = "[red]a :smile:\x1b[2J\r cup[/]"
    shown = terminal.written(["answer"], [[said]])
    assert shown.splitlines()[-1] == r"[red]a :smile:\x1b[2J\r cup[/]"


def test_an_empty_table_is_its_headers():
    assert terminal.drawn(["a", "b"], []) == "a  b\n----"


def test_long_words_fold_where_figures_do_not():
    rows = [["a.jpg", "it is too large for the limit of this run", "1"]]
    assert terminal.drawn(["item", "reason", "n"], rows).splitlines()[0].startswith("item   reason")
    shown = terminal.drawn(["item", "reason", "n"], rows, room=30)
    assert widest(shown) <= 30
    assert "limit of this" in shown


def test_a_notebook_gets_the_table_as_text(monkeypatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert terminal.drawn(["arm", "recall"], [["plain", "90.0"]]).endswith("90.0")
