"""Tables as data: plain text for a terminal, Markdown or LaTeX for a document, HTML for a page."""

import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlm_jax.evals.statistics import Interval
from vlm_jax.listing import html_table
from vlm_jax.report.web import render
from vlm_jax.terminal import folded, shown

NONE = "-"
_OF_LATEX = {letter: f"\\{letter}" for letter in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "*": "$^{*}$",
    "<": "$<$",
    ">": "$>$",
    "\N{MINUS SIGN}": "$-$",
    "\N{RIGHTWARDS ARROW}": r"$\rightarrow$",
}


@dataclass(frozen=True)
class Section:
    """A part of an HTML page.

    Attributes:
        heading: plain text.
        body: a table, a chart, or another thing that says by `__html__` what it is in a page.
        note: plain text under it.
        part: of the page, by which its sections are grouped; its own heading by default.
        folded: whether it is opened by a click.
    """

    heading: str
    body: Any
    note: str = ""
    part: str = ""
    folded: bool = False


@dataclass(frozen=True, repr=False)
class Table:
    """Cells of text; the first column names the rows.

    Attributes:
        title: one line.
        headers: of the columns.
        rows: cells by row.
        notes: what a reader must know to read it, one sentence each.
    """

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def text(self) -> str:
        """Aligned columns under a rule; on a terminal no wider than it."""
        lines = [folded(self.title), shown(self.headers, self.rows)]
        return "\n".join([*lines, *(folded(f"  {note}", "  ") for note in self.notes)])

    def markdown(self) -> str:
        """A Markdown section with a pipe table."""
        row = lambda cells: f"| {' | '.join(_escaped(cell) for cell in cells)} |"
        rule = ["---", *["---:"] * (len(self.headers) - 1)]
        lines = [f"### {self.title}", "", row(self.headers), f"|{'|'.join(rule)}|"]
        lines += [row(cells) for cells in self.rows]
        return "\n".join([*lines, *(f"\n{_escaped(note)}" for note in self.notes), ""])

    def latex(self) -> str:
        r"""A tabular with booktabs' rules, for LaTeX's \input; title and notes are comments."""
        # A bracket behind the end of a row would be an option of it.
        guarded = lambda line: f"{{}}{line}" if line.startswith("[") else line
        row = lambda cells: guarded(" & ".join(_latex(cell) for cell in cells)) + r" \\"
        columns = "l" + "r" * (len(self.headers) - 1)
        head = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", row(self.headers), r"\midrule"]
        foot = [r"\bottomrule", r"\end{tabular}"]
        said = [f"% {' '.join(line.split())}" for line in (self.title, *self.notes)]
        return "\n".join([said[0], *head, *map(row, self.rows), *foot, *said[1:], ""])

    def section(self, part: str = "", *, folded: bool = False) -> "Section":
        """The table as a section of a page."""
        return Section(self.title, self, " ".join(self.notes), part, folded)

    def __html__(self) -> str:
        return render("table.html.jinja", table=self)

    def __repr__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return html_table(self.headers, self.rows, self.title) + notes


def markdown(title: str, tables: Sequence[Table], before: Sequence[str] = ()) -> str:
    """Tables under a title, as Markdown, behind other parts of it."""
    return "\n".join([f"# {title}", "", *before, *(table.markdown() for table in tables)])


def number(value: float | None, *, plain: bool = False, signed: bool = False) -> str:
    """A value to one decimal, fractions in percent unless `plain`."""
    if value is None or math.isnan(value):
        return NONE
    shown = value if plain else 100 * value
    text = f"{shown:{'+' if signed else ''}.1f}"
    return text.replace("-0.0", "+0.0" if signed else "0.0") if float(text) == 0 else text


def interval(entry: Interval | None, *, plain: bool = False, signed: bool = False) -> str:
    """ "value [low, high]", with a star where a signed one excludes 0."""
    if entry is None or math.isnan(entry.value):
        return NONE
    text = number(entry.value, plain=plain, signed=signed)
    if math.isnan(entry.low) or math.isnan(entry.high):
        return text
    star = "*" if signed and entry.excludes_zero else ""
    ends = (number(end, plain=plain, signed=signed) for end in (entry.low, entry.high))
    return f"{text}{star} [{', '.join(ends)}]"


def p_value(p: float | None) -> str:
    """A p-value to two digits."""
    if p is None or math.isnan(p):
        return NONE
    return "<.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def _latex(cell: str) -> str:
    r"""Returns a cell as LaTeX writes it: "-1.5*" -> "$-$1.5$^{*}$", "a_b" -> r"a\_b"."""
    minus = re.sub(r"(?<!\w)-(?=[\d.])", "\N{MINUS SIGN}", cell)
    return "".join(_OF_LATEX.get(letter, letter) for letter in minus)


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("*", "\\*")
