"""Reports of runs on disk: what a run keeps for them, and the report of what it kept."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_jax.api import VLM
from vlm_jax.evals.base import Suite
from vlm_jax.files import replace_file, slug
from vlm_jax.report.examples import gallery_of
from vlm_jax.report.run import report_of
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
from vlm_jax.report.written import ReportSettings, write_report
from vlm_jax.study.arms import Arm, Planned
from vlm_jax.study.looking import look


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


def _json(document: Any) -> str:
    return json.dumps(document, separators=(",", ":"), allow_nan=False) + "\n"
