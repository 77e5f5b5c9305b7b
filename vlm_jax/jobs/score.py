"""Scores answers that someone else generated. Needs no model."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from vlm_jax import terminal
from vlm_jax.evals.answers import Keys
from vlm_jax.evals.audit import audit, by_parser
from vlm_jax.evals.base import paths
from vlm_jax.evals.exports import export
from vlm_jax.evals.results import Results
from vlm_jax.evals.score import MAX_UNPARSABLE, ScoredFile, score
from vlm_jax.evals.suites import kinds
from vlm_jax.evals.suites.chair import Chair
from vlm_jax.evals.suites.pope import Pope
from vlm_jax.made import made
from vlm_jax.report.audit import (
    audit_tables,
    audit_verdict,
    parser_table,
    revised_table,
    score_report,
    score_table,
)
from vlm_jax.report.written import ReportSettings, read_settings, write_report
from vlm_jax.settings import number, plain, read, refuse_unknown, setting, switch, text
from vlm_jax.study.request import Request, several


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreSettings:
    """What `config.score` says of any benchmark; it takes the benchmark's own settings besides.

    Attributes:
        suite: kind of benchmark; "" tells it by the form of the truth.
        image_key: field of the answers that names the image or question; "" is a usual name.
        text_key: field that holds the answer; "" is a usual name.
        allow_missing: whether questions may be unanswered.
        allow_extra: whether answers may have no truth; they are left out.
        revised: files of revised truth, such as RePOPE's labels, to score by besides.
        max_unparsable: share of answers without a verdict, or of captions that name no object, from
            which on they are refused.
    """

    suite: str = setting("", text)
    image_key: str = setting("", text)
    text_key: str = setting("", text)
    allow_missing: bool = setting(False, switch)
    allow_extra: bool = setting(False, switch)
    revised: tuple[str, ...] = setting((), paths)
    max_unparsable: float = setting(MAX_UNPARSABLE, number, low=0, high=1)


def run(request: Request) -> None:
    """Scores `--answers` against `--truth`: a table, and files in `--workdir`.

    These are `results.json`, `items.jsonl` with what was found in each answer, and `report.html`,
    one page with what the score is worth: captions beside the same captions said shorter, answers
    to POPE by every parser and by revised labels. `config.score` says by which rules, and
    `config.report` in which format.
    """
    chosen, rules = split_section(request.config.get("score", {}))
    settings = read_settings(request.config)
    resampling = {"draws": request.config.bootstrap_draws, "seed": request.config.seed}
    options: dict[str, Any] = {
        "rules": rules,
        "keys": Keys(chosen.image_key, chosen.text_key),
        "max_unparsable": chosen.max_unparsable,
        **resampling,
    }
    answers = several(request.need("answers"))
    scored = score(
        answers,
        list(request.need("truth")),
        chosen.suite,
        baseline=None if request.baseline is None else several(request.baseline),
        allow_missing=chosen.allow_missing,
        allow_extra=chosen.allow_extra,
        **options,
    )
    scored = dataclasses.replace(scored, results=dataclasses.replace(scored.results, made=made()))
    said, revised = [scored.results.table()], None
    if chosen.revised:
        kind = scored.suite.name
        revised = score(answers, chosen.revised, kind, allow_extra=True, **options).results
        said.append(revised_table(scored.results, revised).text())
    if request.workdir is None:
        print("\n\n".join(said))
        return
    path = scored.results.write(request.workdir / "results.json")
    items = scored.write_items(request.workdir / "items.jsonl")
    values = {name: one.value for name, one in scored.results.metrics.items()}
    name = answers[0].name.split(".")[0]
    export(request.workdir, scored.suite, scored.texts, values, request.exports, name)
    title = f"Score of {answers[0].name}"
    found, files = write_audit(scored, revised, request.workdir, title, settings, **resampling)
    said += found
    # Behind the files, which are there if nobody reads this to its end (`| head`).
    print("\n\n".join(said))
    print(f"Results: {path}, {items}, {files[0]}")


def write_audit(
    scored: ScoredFile,
    revised: Results | None,
    workdir: pathlib.Path,
    title: str,
    settings: ReportSettings,
    *,
    draws: int,
    seed: int,
) -> tuple[list[str], list[pathlib.Path]]:
    """Writes the report of a scored file.

    Args:
        scored: the file.
        revised: the same answers by revised labels.
        workdir: where the page goes.
        title: of it.
        settings: of the report.
        draws, seed: of the bootstrap.

    Returns:
        What it found, to be printed, and the files, the one to open first.
    """
    suite, found, tables = scored.suite, None, [score_table(scored.results)]
    if isinstance(suite, Chair):
        found = audit(suite, scored.table, scored.texts, scored.baseline, draws=draws, seed=seed)
        tables += audit_tables(found)
    if isinstance(suite, Pope):
        tables.append(parser_table(by_parser(suite, scored.texts), suite.parser, draws, seed))
    if revised is not None:
        tables.append(revised_table(scored.results, revised))
    report = score_report(title, scored.results, tables, found, scored.table)
    files = write_report(report, workdir, settings)
    verdicts = [] if found is None else audit_verdict(found, scored.results)
    lines = [terminal.folded(f"{verdict.arm}: {verdict.text}", "  ") for verdict in verdicts]
    return [*(table.text() for table in tables[1:2]), *lines], files


def split_section(section: Mapping[str, Any]) -> tuple[ScoreSettings, dict[str, Any]]:
    """The settings of any benchmark, and the benchmark's own."""
    own = {field.name for field in dataclasses.fields(ScoreSettings)}
    theirs = {f.name for kind in kinds().values() for f in dataclasses.fields(kind.Settings)}
    values = {key: plain(value) for key, value in section.items()}
    refuse_unknown(values, [*own, *sorted(theirs - own)], "config.score")
    general = {key: value for key, value in values.items() if key in own}
    rules = {key: value for key, value in values.items() if key not in own and value != ""}
    return read(ScoreSettings, general, "config.score"), rules
