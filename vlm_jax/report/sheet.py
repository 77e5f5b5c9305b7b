"""Tables as drawings, and drawings bound as pages, for a paper's appendix."""

import io
import textwrap
from collections.abc import Sequence
from xml.sax.saxutils import escape

from vlm_jax.report.tables import Table

ROWS = 48
"""Rows of a page; longer tables go on on the next."""
_SIZE, _LINE, _GAP, _MARGIN = 11, 15, 18, 14  # font, line, between columns and around, in points
_CELL = 44  # characters after which a cell is broken
_NARROW, _WIDE = "iIjl.,:;|'!()[]{}ft /-", "mwMW%@\u2212"


class Sheet:
    """A table that can be drawn, its columns as wide as they need.

    Args:
        table: what is drawn: title, rules above and below the headers, rows, notes.
    """

    def __init__(self, table: Table):
        self.table = table

    def image(self, kind: str) -> bytes:
        """Returns it as a file of kind "png", "pdf" or "svg"."""
        import vl_convert

        drawn = self.svg()
        if kind == "svg":
            return drawn.encode()
        if kind == "png":
            return vl_convert.svg_to_png(drawn, scale=2)
        return vl_convert.svg_to_pdf(drawn)

    def svg(self) -> str:
        """Returns it as SVG: numbers aligned to the right, names to the left."""
        table = self.table
        cells = [[_broken(cell) for cell in row] for row in (table.headers, *table.rows)]
        widths = [max(_width(line) for cell in column for line in cell) for column in zip(*cells)]
        wide = max(sum(widths) + _GAP * (len(widths) - 1), 420)
        fit = lambda text, size=_SIZE: textwrap.wrap(text, int(wide / (0.52 * size))) or [""]
        parts, y = [], float(_MARGIN)
        for line in fit(table.title, 13):
            y += 17
            parts.append(_text(_MARGIN, y, line, 'font-size="13" font-weight="bold"'))
        y += 10
        for number, row in enumerate(cells):
            if number < 2:  # above the headers and below them
                parts.append(_rule(y, wide))
                y += 4
            x = float(_MARGIN)
            for n, (cell, width) in enumerate(zip(row, widths)):
                style = 'font-weight="bold"' if number == 0 else ""
                style += ' text-anchor="end"' if n else ""
                at = x + width if n else x
                parts += [_text(at, y + _LINE * (k + 1) - 3, c, style) for k, c in enumerate(cell)]
                x += width + _GAP
            y += _LINE * max(len(cell) for cell in row) + 2
        parts.append(_rule(y, wide))
        y += 4
        for line in (line for note in table.notes for line in fit(note)):
            y += 14
            parts.append(_text(_MARGIN, y, line, 'font-size="10" fill="#5b6570"'))
        size = f'width="{wide + 2 * _MARGIN:.0f}" height="{y + _MARGIN:.0f}"'
        font = f'font-family="Helvetica, Arial, Liberation Sans, sans-serif" font-size="{_SIZE}"'
        body = "\n".join(parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} {font} fill="#1b1f24">\n'
            f'<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
        )


def sheets(table: Table) -> list[Sheet]:
    """Returns a table as sheets of at most `ROWS` rows, the notes on the last."""
    parts = [table.rows[n : n + ROWS] for n in range(0, max(len(table.rows), 1), ROWS)]
    last = len(parts) - 1
    return [
        Sheet(
            Table(
                table.title + (f" ({n + 1} of {last + 1})" if last else ""),
                table.headers,
                rows,
                table.notes if n == last else (),
            )
        )
        for n, rows in enumerate(parts)
    ]


def bound(pages: Sequence[bytes]) -> bytes:
    """Returns one PDF of several, one behind the other."""
    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter()
    for page in pages:
        for one in PdfReader(io.BytesIO(page)).pages:
            writer.add_page(one)
    made = io.BytesIO()
    writer.write(made)
    return made.getvalue()


def _broken(cell: str) -> list[str]:
    return textwrap.wrap(cell, _CELL) or [""]


def _width(text: str) -> float:
    """About how wide a line is, in points: a font's letters in three widths."""
    share = lambda letter: 0.33 if letter in _NARROW else 0.9 if letter in _WIDE else 0.6
    return _SIZE * sum(map(share, text))


def _text(x: float, y: float, text: str, style: str) -> str:
    shown = escape("".join(letter if letter.isprintable() else "\ufffd" for letter in text))
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{shown}</text>'


def _rule(y: float, width: float) -> str:
    ends = f'x1="{_MARGIN}" x2="{_MARGIN + width:.1f}" y1="{y:.1f}" y2="{y:.1f}"'
    return f'<line {ends} stroke="#1b1f24" stroke-width="0.8"/>'
