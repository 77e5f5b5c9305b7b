"""The page of a file of answers that someone else made: its score, and what that is worth."""

from collections.abc import Mapping, Sequence

from vlm_jax.evals import pope
from vlm_jax.evals.audit import Audit, curve_of
from vlm_jax.evals.chair import METRICS
from vlm_jax.evals.comparison import statistics_of
from vlm_jax.evals.frontier import OUT_OF_RANGE, Gap
from vlm_jax.evals.results import Results
from vlm_jax.evals.statistics import DRAWS, bootstrap_all
from vlm_jax.evals.tallies import TallyTable
from vlm_jax.report.charts import COLOURS, INK, Mark, Series, scatter
from vlm_jax.report.page import page
from vlm_jax.report.run import Report
from vlm_jax.report.tables import NONE, Section, Table, interval, number
from vlm_jax.report.verdict import Verdict

_NOTE = (
    "Each line is the {whose} captions cut in one way, without a model: what saying less gives for "
    "free. A file below all lines hallucinates less than they do at the same recall."
)


def score_table(results: Results) -> Table:
    """A metric a row: value with interval, and change from a baseline."""
    rows = []
    for name, entry in results.metrics.items():
        if name in results.hidden:
            continue
        plain = name in results.units
        unit = f" ({results.units[name]})" if plain else ""
        change = results.differences.get(name)
        rows.append([name + unit, interval(entry, plain=plain)])
        if results.differences:
            rows[-1].append(interval(change, plain=plain, signed=True))
    headers = ["metric", "value", *(["change from the baseline"] if results.differences else [])]
    notes = [
        f"{results.n:,} answers; percent unless a unit is named; 95 % bootstrap intervals over "
        "items, of changes paired; * excludes 0.",
        *(f"{name}: exact McNemar p {p:.2g}." for name, p in results.tests.items()),
        *results.notes,
    ]
    return Table(f"{results.benchmark}: score", headers, rows, notes)


def parser_table(
    tallies: Mapping[str, TallyTable], used: str, draws: int = DRAWS, seed: int = 0
) -> Table:
    """The same answers under every parser.

    Args:
        tallies: parser -> tallies by image.
        used: the parser of the score.
        draws, seed: of the bootstrap.
    """
    rows, names = [], ("accuracy", "F1", "precision", "recall", "predicted_yes")
    for parser, table in tallies.items():
        metrics = statistics_of(pope.metrics(parser))
        found = bootstrap_all(metrics, table, draws=draws, seed=seed)
        marked = f"> {parser}" if pope.PARSERS[parser] is pope.PARSERS[used] else parser
        rows.append([marked, *(interval(found[name]) for name in names)])
    notes = [
        "> is the parser of the score. An answer that says neither yes nor no is yes to rucaibox "
        "and wrong to the others."
    ]
    return Table("The same answers, by parser", ["parser", *names], rows, notes)


def revised_table(results: Results, revised: Results) -> Table:
    """A score beside that by revised labels."""
    rows = [
        [name, interval(entry), interval(revised.metrics.get(name))]
        for name, entry in results.metrics.items()
        if name not in results.hidden and name not in results.units
    ]
    headers = ["metric", f"labels as given, {results.n:,}", f"revised labels, {revised.n:,}"]
    return Table("By revised labels", headers, rows, [*revised.notes])


def audit_tables(found: Audit) -> list[Table]:
    """A file against every way of saying less, and the captions as they are cut."""
    tables = []
    if found.against:
        rows = [
            [one.way, *(_gap(gaps[m]) for gaps in (one.at_recall, one.at_length) for m in gaps)]
            for one in found.against
        ]
        headers = ["the baseline's captions, cut to", *_heads("recall"), *_heads("length")]
        notes = [
            "Points: the file minus the cut captions [paired interval over images]; * excludes 0; "
            "negative is better than saying less."
        ]
        tables.append(Table("Against saying less", headers, rows, notes))
    rows = []
    for way, curve in found.curves.items():
        for amount, table in curve.items():
            rows.append([f"{way}: {_amount(way, amount)}", *_values(table)])
    headers = ["cut to", "C_S", "C_I", "recall", "length (words)"]
    return [*tables, Table("Saying less without a model", headers, rows)]


def audit_plot(found: Audit, arm: TallyTable | None) -> Section:
    """The curves of saying less, with the file on them."""
    series = []
    for number_, (way, curve) in enumerate(found.curves.items()):
        points = curve_of(curve, "C_S").points()
        marks = [Mark(100 * p.recall, 100 * p.metric, text=f"{way}: {p.bias:g}") for p in points]
        series.append(Series(way, marks, COLOURS[number_ % len(COLOURS)], line=True))
    whose = "file's own" if arm is None else "baseline's"
    series.append(Series("whole captions", [_mark(found.whole)], INK, shape="square"))
    if arm is not None:
        series.append(Series("the file", [_mark(arm)], INK, shape="diamond"))
    chart = scatter(series, "recall, %", "C_S, %", title="Hallucinated captions against recall")
    return Section("Saying less", chart, _NOTE.format(whose=whose))


def audit_verdict(found: Audit, results: Results) -> list[Verdict]:
    """One sentence on whether a file is better than saying less; none without a baseline."""
    if not found.against:
        return []
    one = found.closest
    gap = one.at_recall["C_S"].gap
    if found.better is None or gap is None:
        more = results.differences["recall"]
        less = results.differences["C_S"]
        if more.low > 0 and less.high < 0:
            text = "names more objects than the baseline and hallucinates less."
            return [Verdict("The file", text, "better")]
        text = "cannot be held against saying less: no cut of the baseline has its recall."
        return [Verdict("The file", text)]
    shown = f"{interval(gap, signed=True)} points of C_S at the same recall"
    if found.better:
        text = f"is better than saying less: {shown} against the nearest way ({one.way})."
        return [Verdict("The file", text, "better")]
    text = f"is no better than saying less: {shown} against the baseline cut to {one.way}."
    return [Verdict("The file", text, "worse" if gap.low > 0 else "")]


def score_report(
    title: str, results: Results, tables: Sequence[Table], found: Audit | None, arm: TallyTable
) -> Report:
    """The report of a scored file.

    Args:
        title: of the page.
        results: of the file.
        tables: all of them are printed.
        found: the audit of captions, if the file holds such.
        arm: tallies of the file.
    """
    plots = [] if found is None else [audit_plot(found, arm if found.against else None)]
    verdicts = [] if found is None else audit_verdict(found, results)
    sections = [*plots, *(table.section() for table in tables)]
    return Report(title, tables, sections, page(title, sections, results, verdicts))


def _heads(over: str) -> list[str]:
    return [f"{metric} at equal {over}" for metric in ("C_S", "C_I")]


def _gap(gap: Gap) -> str:
    return OUT_OF_RANGE if gap.gap is None else interval(gap.gap, signed=True)


def _amount(way: str, amount: float) -> str:
    if amount == float("inf"):
        return "all"
    return f"{100 * amount:.0f} %" if way.startswith("a share") else f"{amount:.0f}"


def _values(table: TallyTable) -> list[str]:
    totals = table.totals()
    shares = [number(METRICS[name].of(totals)) for name in ("C_S", "C_I", "recall")]
    return [*shares, number(METRICS["length"].of(totals), plain=True) or NONE]


def _mark(table: TallyTable) -> Mark:
    totals = table.totals()
    recall, c_s = (100 * METRICS[name].of(totals) for name in ("recall", "C_S"))
    return Mark(recall, c_s, text=f"recall {recall:.1f} %, C_S {c_s:.1f} %")
