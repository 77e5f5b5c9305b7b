"""Reports as files: a page, Markdown, or tables and figures for a paper."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from vlm_jax.files import replace_file, slug
from vlm_jax.report.charts import Chart
from vlm_jax.report.run import Report
from vlm_jax.report.sheet import Sheet, bound, sheets
from vlm_jax.report.tables import markdown
from vlm_jax.settings import one_of, plain, read, setting, whole

FORMATS = ("html", "md", "pdf", "png", "svg", "tex")
FIGURES, TABLES = "figures", "tables"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """What `config.report` says.

    Attributes:
        format: "html" is a page, with its tables in Markdown beside it; "md" the tables with
            links to the charts; "pdf", "png" and "svg" each chart and each table as a file, for a
            paper, and "pdf" all of them as the pages of one more; "tex" the tables for LaTeX's
            \\input, and the charts as "pdf" does.
        attention: captions of each benchmark whose object words show where the model looked when
            it chose them; 0 reads none.
        maps: at most so many layers, and so many heads, of these pictures.
    """

    format: str = setting("html", one_of, known=FORMATS)
    attention: int = setting(0, whole, low=0, high=300)
    maps: int = setting(8, whole, low=1, high=64)


def read_settings(config: Any) -> ReportSettings:
    """Returns what a config says of reports.

    Raises:
        ConfigError: a key is unknown or a value cannot be.
    """
    return read(ReportSettings, plain(config.get("report", {})), "config.report")


def write_report(
    report: Report, folder: pathlib.Path, settings: ReportSettings, name: str = "report"
) -> list[pathlib.Path]:
    """Writes a report in the format that is wanted; returns its files."""
    words = folder / f"{name}.md"
    files: list[tuple[pathlib.Path, str | bytes]] = []
    if settings.format == "html":
        files.append((folder / f"{name}.html", report.text))
        files.append((words, markdown(report.title, report.tables)))
    elif settings.format == "md":
        figures = _drawn(FIGURES, _charts(report), "svg")
        shown = [f"![{path.stem}]({path.as_posix()})\n" for path, _ in figures]
        files.append((words, markdown(report.title, report.tables, shown)))
        files += [(folder / path, content) for path, content in figures]
    elif settings.format == "tex":
        named = enumerate(report.tables, 1)
        texts = [(_name(TABLES, n, table.title, "tex"), table.latex()) for n, table in named]
        figures = _drawn(FIGURES, _charts(report), "pdf")
        files += [(folder / path, content) for path, content in (*texts, *figures)]
    else:
        parts = [(table.title, part) for table in report.tables for part in sheets(table)]
        drawn = _drawn(FIGURES, _charts(report), settings.format)
        drawn += _drawn(TABLES, parts, settings.format)
        if settings.format == "pdf":
            files.append((folder / f"{name}.pdf", bound([content for _, content in drawn])))
        files += [(folder / path, content) for path, content in drawn]
    for path, content in files:
        replace_file(path, content)
    return [path for path, _ in files]


def _charts(report: Report) -> list[tuple[str, Chart | Sheet]]:
    return [(one.heading, one.body) for one in report.sections if isinstance(one.body, Chart)]


def _drawn(
    where: str, drawings: Sequence[tuple[str, Chart | Sheet]], kind: str
) -> list[tuple[pathlib.PurePosixPath, bytes]]:
    """Drawings with their headings as files, numbered in their order."""
    return [
        (_name(where, number, heading, kind), drawing.image(kind))
        for number, (heading, drawing) in enumerate(drawings, 1)
    ]


def _name(where: str, number: int, heading: str, kind: str) -> pathlib.PurePosixPath:
    """The file of a table or a chart."""
    return pathlib.PurePosixPath(where, f"{number:02d}_{slug(heading)[:80]}.{kind}")
