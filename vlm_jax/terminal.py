"""Tables and lines as a terminal shows them: the one place that draws what jobs print.

On a terminal nothing is wider than it but a figure that is by itself, and headers are bold (not
with NO_COLOR, nor where TERM is "dumb"); where the output is piped or is a
file's, it is plain text in full width, the same everywhere. Wide characters are counted as wide.
"""

import io
import os
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence

from rich.box import Box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

_UNLIMITED = 100_000  # columns of a file
_GAP = 2  # spaces between columns
_FIGURES = 40  # no figure is wider
_FOLDED, _LABEL = 5, 16  # columns of the first column, folded, and where the lines break anyway
# A rule under the headers, and nothing else (rich's eight rows of a box, four characters each).
_RULED = Box("\n".join(["    ", "    ", " -- ", *["    "] * 5]) + "\n")


def width() -> int | None:
    """Returns the columns of the terminal that is printed to; None where it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def drawn(
    headers: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    room: int | None = None,
    bold: bool = False,
) -> str:
    """Returns a table of figures: first column left, the others right, a rule under the headers.

    A column with a cell of more than forty letters is of words too, and left. Columns that have no
    room are a further table below, with the first column again:

    arm       recall  precision
    ---------------------------
    unedited    90.0       65.7

    arm       length
    ----------------
    unedited    12.0

    Args:
        headers: of the columns.
        rows: cells by row.
        room: columns of the terminal; None is without end.
        bold: whether the headers are, by codes that a terminal knows.
    """
    cells = [list(headers), *(list(row) for row in rows)]
    size = lambda column: max(cell_len(printable(row[column])) for row in cells)
    widths = [size(column) for column in range(len(headers))]
    words = {column for column, wide in enumerate(widths) if column == 0 or wide > _FIGURES}
    if room is not None:  # words fold, figures never do
        figures = [wide for column, wide in enumerate(widths) if column not in words]
        least = _GAP + max(figures, default=0)
        if room < least + min(widths[0], _FOLDED):  # no figure is cut: the terminal breaks the line
            room = least + min(widths[0], _LABEL)
        first = min(widths[0], max(room - _GAP - max(widths[1:], default=0), room // 3))
        rest = [min(w, room - _GAP - first) if c in words else w for c, w in enumerate(widths)]
        widths = [first, *rest[1:]]
    return "\n\n".join(
        _draw([[row[i] for i in some] for row in cells], [i in words for i in some], room, bold)
        for some in _side_by_side(widths, room)
    )


def written(
    headers: Sequence[str],
    rows: Iterable[Sequence[str]],
    longest: int = 48,
    room: int | None = None,
) -> str:
    """Returns a table of texts: columns left under a rule, long cells folded.

    model  answer
    ---------------------
    plain  a cup
    air    a cup, a fork

    Args:
        headers: of the columns.
        rows: cells by row.
        longest: characters of a line of a cell.
        room: columns of the terminal, by default of the one that is printed to, if it is one.
    """
    cells = [list(headers), *([str(cell) for cell in row] for row in rows)]
    words = [True] * len(headers)
    return _draw(cells, words, width() if room is None else room, False, longest)


def shown(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns `drawn`, as what is printed to can show it."""
    room = width()
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return drawn(headers, rows, room=room, bold=room is not None and not plain)


def folded(text: str, indent: str = "") -> str:
    """Returns lines no wider than the terminal, if one is printed to; continued ones indented."""
    room = width()
    lines = text.splitlines()
    if room is None or not any(cell_len(line) > room for line in lines):
        return text
    fold = lambda line: textwrap.wrap(line, max(room, 20), subsequent_indent=indent) or [""]
    return "\n".join(part for line in lines for part in fold(line))


def printable(text: str) -> str:
    r"""Returns a text whose control characters are shown, not obeyed: "\x1b[2J" is six letters."""
    if text.isprintable():
        return text
    obeyed = lambda letter: unicodedata.category(letter) in ("Cc", "Cf") and letter not in "\n\t"
    return "".join(c.encode("unicode_escape").decode() if obeyed(c) else c for c in text)


def _side_by_side(widths: Sequence[int], room: int | None) -> list[list[int]]:
    """Columns that fit beside one another, the first column in each group.

    ([5, 10, 10, 10], 30) -> [[0, 1, 2], [0, 3]]
    """
    groups, used = [[0]], widths[0]
    for column in range(1, len(widths)):
        if room is not None and len(groups[-1]) > 1 and used + _GAP + widths[column] > room:
            groups.append([0])
            used = widths[0]
        groups[-1].append(column)
        used += _GAP + widths[column]
    return groups


def _draw(
    cells: Sequence[Sequence[str]],
    words: Sequence[bool],
    room: int | None,
    bold: bool,
    longest: int | None = None,
) -> str:
    """Draws one table; columns of words are left and may fold."""
    style = "bold" if bold else ""
    table = RichTable(
        box=_RULED, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0), header_style=style
    )
    for header, folds in zip(cells[0], words):
        table.add_column(
            Text(printable(header)),
            justify="left" if folds else "right",
            no_wrap=not folds,
            overflow="fold",
            max_width=longest if folds else None,
        )
    for row in cells[1:]:
        table.add_row(*(Text(printable(cell)) for cell in row))
    said = io.StringIO()
    console = Console(
        file=said,
        width=room or _UNLIMITED,
        force_terminal=bold,
        force_jupyter=False,  # a notebook would show the table in place of writing it to the file
        color_system="standard" if bold else None,
        legacy_windows=False,
    )
    console.print(table, crop=False)
    return "\n".join(line.rstrip() for line in said.getvalue().rstrip("\n").splitlines())
