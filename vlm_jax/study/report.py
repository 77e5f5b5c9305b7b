"""Reports of runs on disk: what a run keeps for them, and how they are written."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_jax.api import VLM
from vlm_jax.evals.base import Suite
from vlm_jax.files import replace_file, slug
from vlm_jax.report.charts import Chart
from vlm_jax.report.examples import gallery_of
from vlm_jax.report.run import Report, report_of
from vlm_jax.report.sheet import Sheet, bound, sheets
from vlm_jax.report.stored import (
    ATTENTION,
    EDITS,
    GALLERY,
    HEADS,
    ITEMS,
    Run,
    StoredRuns,
    read_items,
    read_run,
)
from vlm_jax.report.tables import markdown
from vlm_jax.settings import one_of, plain, read, setting, whole
from vlm_jax.study.arms import Arm, Planned
from vlm_jax.study.looking import look

FORMATS = ("html", "md", "pdf", "png", "svg")
FIGURES, TABLES = "figures", "tables"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """What `config.report` says.

    Attributes:
        format: "html" is a page, with its tables in Markdown beside it; "md" the tables with
            links to the charts; "pdf", "png" and "svg" each chart and each table as a file, for a
            paper, and "pdf" all of them as the pages of one more.
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


def keep(
    workdir: pathlib.Path,
    benchmarks: Mapping[str, Suite],
    arms: Sequence[Arm],
    edits: Mapping[Any, Planned],
    heads: pathlib.Path,
) -> None:
    """Writes what a report shows besides answers: pictures, spectra of edits, sets of heads.

    Args:
        workdir: the run's.
        benchmarks: whose examples were answered.
        arms: of the run.
        edits: what every edit of weights is.
        heads: the file of head sets that its methods were given; it need not exist.
    """
    for name, suite in benchmarks.items():
        folder = workdir / slug(name)
        rows = [read_items(folder / arm.folders()[0] / ITEMS) for arm in arms]
        gallery = gallery_of(suite, list(dict.fromkeys(key for one in rows for key in one)))
        if gallery is not None:
            replace_file(folder / GALLERY, _json(gallery))
    spectra = {
        arm.name: edits[arm.edits[0]].spectra
        for arm in arms
        if arm.edits and not arm.is_control and edits[arm.edits[0]].spectra
    }
    if spectra:
        replace_file(workdir / EDITS, _json(spectra))
    if heads.is_file() and heads.resolve() != (workdir / HEADS).resolve():
        replace_file(workdir / HEADS, heads.read_bytes())


def keep_attention(
    workdir: pathlib.Path,
    benchmarks: Mapping[str, Suite],
    models: Mapping[str, VLM],
    settings: ReportSettings,
) -> None:
    """Writes where models looked when they chose the object words of the captions that are shown.

    Args:
        workdir: of a run, with its galleries.
        benchmarks: that were asked.
        models: arm -> its model.
        settings: how many captions.
    """
    run = read_run(workdir)
    assert isinstance(run, Run)
    sets = (run.document(HEADS) or {}).get("sets", {})
    heads = [(int(n), int(m)) for n, m in sets.get("sensitive", ())[: sets.get("count", 0)]]
    for name, suite in benchmarks.items():
        gallery = run.document(GALLERY, name)
        if gallery is None:
            continue
        shown = [one["id"] for one in gallery["examples"]]
        rows = {arm: found for arm, found in run.rows(name).items() if arm in models}
        found = look(models, suite, rows, shown, settings.attention, settings.maps, heads)
        if found is not None:
            replace_file(workdir / slug(name) / ATTENTION, _json(found))


def write(
    found: Run | StoredRuns, folder: pathlib.Path, settings: ReportSettings, name: str = "report"
) -> list[pathlib.Path]:
    """Writes the report of a run, or of runs side by side.

    Returns:
        The files, the one to open first.
    """
    return write_report(report_of(found), folder, settings, name)


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
        (
            pathlib.PurePosixPath(where, f"{number:02d}_{slug(heading)[:80]}.{kind}"),
            drawing.image(kind),
        )
        for number, (heading, drawing) in enumerate(drawings, 1)
    ]


def _json(document: Any) -> str:
    return json.dumps(document, separators=(",", ":"), allow_nan=False) + "\n"
