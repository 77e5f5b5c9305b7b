"""The report of a run, or of several side by side: its tables, and the sections of its page."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean

from vlm_jax.evals.comparison import Comparison
from vlm_jax.evals.frontier import FrontierPoint
from vlm_jax.evals.statistics import Interval
from vlm_jax.report.across import across_tables
from vlm_jax.report.charts import (
    COLOURS,
    PAIR,
    SOFT,
    Chart,
    Mark,
    Series,
    multiples,
    scatter,
)
from vlm_jax.report.comparison import (
    baseline_name,
    benchmark_table,
    comparison_tables,
    failure_tables,
    published_table,
    styles_of,
)
from vlm_jax.report.examples import Browser, shown_of
from vlm_jax.report.heads import head_sections
from vlm_jax.report.page import page
from vlm_jax.report.stored import ATTENTION, CHOSEN, GALLERY, Run, StoredRuns
from vlm_jax.report.sweep import chosen_table, dose_sections, dose_table
from vlm_jax.report.tables import Section, Table, interval
from vlm_jax.report.verdict import Verdict, verdicts

_LEGEND = 24  # arms that have room for their names
_BEYOND = 2  # points of the frontier drawn on either side of the arms
FRONTIER, ARMS, BENCHMARKS, DOSES, EXAMPLES, HEADS, TABLES = (
    "Frontier", "Arms and controls", "Benchmarks", "Dose and response", "Examples", "Heads",
    "Tables",
)  # fmt: skip
FRONTIER_NOTE = (
    "The line is what a plain end-of-caption bias gives for free, its biases written beside it; "
    "here is the part near the arms, a table below has all of it. "
    "Arms below the line hallucinate less than saying less would at the same recall. Outlined "
    "marks are controls, in the colour of their arm; small dots are single draws of random ones. "
    "Click a name to hide it."
)


@dataclass(frozen=True)
class Report:
    """What a reader sees of a run.

    Attributes:
        title: of it.
        tables: all of them.
        sections: of the page.
        text: the page.
    """

    title: str
    tables: Sequence[Table]
    sections: Sequence[Section]
    text: str


def report_of(found: Run | StoredRuns) -> Report:
    """The report of what a folder holds."""
    return side_by_side(found) if isinstance(found, StoredRuns) else run_report(found)


def run_report(run: Run) -> Report:
    """The report of one run."""
    comparison, tables = run.comparison, run_tables(run)
    sections, what = comparison_sections(comparison, _named(run)), "arms and their controls"
    chosen = run.document(CHOSEN)
    if chosen is not None:
        what = f"{chosen.get('setting')}, chosen on dev, on the test split"
    if run.sweep is not None:
        what = "sweep"
        sections = [*_sweep_sections(run), *(s for s in sections if s.part != BENCHMARKS)]
    sections += _examples(run) + head_sections(run, HEADS)
    sections += [table.section(TABLES, folded=True) for table in tables]
    title = f"{run.model}: {what}"
    found = _sweep_verdicts(run) if run.sweep is not None else verdicts(comparison)
    return Report(
        title, tables, sections, page(title, sections, run.about, found, _lead(run, comparison))
    )


def run_tables(run: Run) -> list[Table]:
    """All tables of a run, what matters first."""
    comparison = run.comparison
    tables = comparison_tables(comparison, run.sizes, run.acted)
    published = published_table(comparison, run.about.config.get("published") or {})
    tables += [published] if published is not None else []
    tables += failure_tables(run.failures)
    if run.sweep is None:
        return tables
    sweep = run.sweep
    doses = dose_table(sweep.doses, comparison, sweep.metric, sweep.benchmarks, sweep.chosen)
    return [*_both_splits(run), doses, *tables]


def _normed(run: Run) -> bool:
    """Whether queries are normalised behind the edits of a run."""
    return any("norm" in one for draws in run.sizes.values() for one in draws)


def side_by_side(found: StoredRuns) -> Report:
    """The report of several runs: what each found, and all of them in common tables."""
    runs = found.runs
    tables = []
    if found.compared is not None:
        first = next(iter(runs))
        tables += [
            replace(
                table,
                title=f"{table.title}: models, and changes from {first}",
                headers=("model", *table.headers[1:]),
            )
            for table in (benchmark_table(found.compared, n) for n in found.compared.items)
        ]
    full = {name: run.comparison for name, run in runs.items() if len(run.comparison.arms) > 1}
    alike = {tuple(arm.name for arm in one.arms) for one in full.values()}
    same = {tuple(one.items) for one in full.values()}
    if len(full) > 1 and len(alike) == len(same) == 1:
        # An edit in front of a norm of queries weighs modes anew: its effects are another thing's.
        for normed in (False, True):
            pooled = {name: one for name, one in full.items() if _normed(runs[name]) == normed}
            tables += across_tables(pooled) if len(pooled) > 1 else []
    tables += [_levels_table(runs)]
    sections = _across_sections(runs)
    for name, run in runs.items():
        comparison = run.comparison
        if comparison.points:
            chart = frontier_plot(comparison)
            sections.append(Section(name, chart, part=FRONTIER))
    sections += [table.section(TABLES, folded=True) for table in tables]
    title = f"{len(runs)} runs side by side"
    every = [
        replace(one, arm=f"{name}: {one.arm}")
        for name, run in runs.items()
        for one in verdicts(run.comparison)
    ]
    about = next(iter(runs.values())).about
    protocols = {run.about.protocol for run in runs.values()}
    lead = f"{_and(list(runs))}, each against its own unedited model."
    if len(protocols) > 1:
        lead += " They were not asked alike (their protocol hashes differ)."
    return Report(title, tables, sections, page(title, sections, about, every, lead))


def comparison_sections(comparison: Comparison, named: Collection[str] = ()) -> list[Section]:
    """The charts of a comparison: the frontier, changes, controls, every metric."""
    found = []
    if comparison.points:
        plot = frontier_plot(comparison, named)
        found.append(Section("The say-less frontier", plot, FRONTIER_NOTE, FRONTIER))
    if len(comparison.arms) == 1:
        return found
    base = baseline_name(comparison)
    note = f"Points; {100 * comparison.level:g} % paired bootstrap intervals over items."
    found.append(Section(f"Change from {base}", _changes(comparison), note, ARMS))
    if comparison.contrasts:
        note = (
            "An arm minus its control, on the same items: what the arm does that a change of the "
            "same size elsewhere does not. An interval that holds 0 tells nothing apart."
        )
        found.append(Section("Arms minus their controls", _contrasts(comparison), note, ARMS))
    for name, count in comparison.items.items():
        heading = f"{name}, {count:,} items: all metrics"
        found.append(Section(heading, _levels(comparison, name), part=BENCHMARKS))
    return found


def frontier_plot(comparison: Comparison, named: Collection[str] = ()) -> Chart:
    """The frontier's curve with every arm on it, by pooled recall and C_S.

    Args:
        comparison: what is drawn.
        named: the arms that are named and coloured, where there are many; all by default.
    """
    everyone = [arm.name for arm in comparison.arms]
    named = named or (everyone if len(everyone) <= _LEGEND else ())
    curve = [
        Mark(
            100 * p.recall,
            100 * p.metric,
            text=f"saying less, bias {p.bias:+g}: recall {100 * p.recall:.1f} %, "
            f"C_S {100 * p.metric:.1f} %",
            label=f"{p.bias:+g}" if p.bias else "",
        )
        for p in _near(comparison)
    ]
    series = [Series("say less (bias)", curve, SOFT, line=True, labels=True)]
    styles = styles_of(comparison)
    for arm in sorted(comparison.arms, key=lambda arm: arm.name in named):
        known = arm.name in named
        colour, shape, hollow = styles[arm.name]
        colour = colour if known or not named else SOFT
        draws = [
            Mark(100 * recall, 100 * c_s, text=f"{arm.name}, draw {draw + 1}")
            for draw, (recall, c_s) in enumerate(zip(arm.pooled["recall"], arm.pooled["C_S"]))
        ]
        if len(draws) > 1:
            series.append(Series("", draws, colour, faint=True, of=arm.name))
        middle = Mark(mean([m.x for m in draws]), mean([m.y for m in draws]))
        text = f"{arm.name}: recall {middle.x:.1f} %, C_S {middle.y:.1f} %"
        mark = Mark(middle.x, middle.y, text=text)
        name, faint = arm.name if known else "", bool(named) and not known
        series.append(
            Series(name, [mark], colour, hollow=hollow, faint=faint, shape=shape, of=arm.name)
        )
    where = " + ".join(comparison.pooled)
    return scatter(
        series, f"recall, % ({where})", "C_S, %", title="Hallucinated captions against recall"
    )


def _named(run: Run) -> Collection[str]:
    """The arms that a chart of many names."""
    many = run.sweep is not None and len(run.comparison.arms) > 8
    return [run.comparison.baseline.name, run.sweep.chosen or ""] if many and run.sweep else ()


def _near(comparison: Comparison) -> Sequence[FrontierPoint]:
    """The part of the curve around the arms, which would be a speck on the whole of it."""
    recalls = [recall for arm in comparison.arms for recall in arm.pooled["recall"]]
    points = comparison.points
    below = sum(point.recall < min(recalls) for point in points)
    above = sum(point.recall > max(recalls) for point in points)
    first, last = max(below - _BEYOND, 0), len(points) - max(above - _BEYOND, 0)
    return points[first:last]


def _row(name: str, entry: Interval, plain: bool, style: tuple, *, signed: bool) -> Series:
    """A row of small multiples."""
    scale = 1 if plain else 100
    colour, shape, hollow = style
    text = f"{name}: {interval(entry, plain=plain, signed=signed)}"
    mark = Mark(scale * entry.value, 0.0, scale * entry.low, scale * entry.high, text)
    return Series(name, [mark], colour, hollow=hollow, shape=shape)


def _changes(comparison: Comparison) -> Chart:
    styles, panels = styles_of(comparison), {}
    for benchmark in comparison.items:
        metric = comparison.primary(benchmark)
        plain = comparison.plain(benchmark, metric)
        panels[_panel(comparison, benchmark, metric)] = [
            _row(arm.name, arm.changes[benchmark][metric], plain, styles[arm.name], signed=True)
            for arm in comparison.arms[1:]
        ]
    return multiples(panels, title=f"Change from {baseline_name(comparison)}")


def _contrasts(comparison: Comparison) -> Chart:
    styles, panels = styles_of(comparison), {}
    for benchmark in comparison.items:
        metric = comparison.primary(benchmark)
        plain = comparison.plain(benchmark, metric)
        panels[_panel(comparison, benchmark, metric)] = [
            _row(
                f"{one.edit}{PAIR}{one.control}",
                one.differences[benchmark][metric],
                plain,
                (styles[one.edit][0], styles[one.control][1], False),
                signed=True,
            )
            for one in comparison.contrasts
            if benchmark in one.differences
        ]
    return multiples(panels, title="Arms minus their controls")


def _levels(comparison: Comparison, benchmark: str) -> Chart:
    styles, panels = styles_of(comparison), {}
    for metric, kind in comparison.metrics[benchmark].items():
        if not kind.shown or metric.endswith("_rate") or "/" in metric:
            continue  # rates of failures, and parts of other metrics
        panels[f"{metric}, {kind.unit}"] = [
            _row(
                arm.name, arm.levels[benchmark][metric], kind.plain, styles[arm.name], signed=False
            )
            for arm in comparison.arms
        ]
    return multiples(panels, zero=False, title=f"{benchmark}: all metrics")


def _panel(comparison: Comparison, benchmark: str, metric: str) -> str:
    """A metric, its benchmark, and which direction is better."""
    better = {"low": "\u2190 better", "high": "better \u2192"}
    way = better.get(comparison.metrics[benchmark][metric].better, "")
    return f"{metric}, {benchmark}" + (f" ({way})" if way else "")


def _sweep_sections(run: Run) -> list[Section]:
    assert run.sweep is not None
    sweep = run.sweep
    plain = run.comparison.plain(sweep.benchmarks[0], sweep.metric)
    return dose_sections(sweep.doses, sweep.settings, sweep.metric, plain, DOSES)


def _sweep_verdicts(run: Run) -> list[Verdict]:
    """What is said of the chosen setting: on the test split, if it was measured there."""
    assert run.sweep is not None
    if run.sweep.test is not None:
        found = verdicts(run.sweep.test[1].comparison)
        chosen = run.sweep.chosen
        return [replace(one, arm=f"{chosen}, on the test split") for one in found]
    return [one for one in verdicts(run.comparison) if one.arm == run.sweep.chosen]


def _both_splits(run: Run) -> list[Table]:
    sweep = run.sweep
    if sweep is None or sweep.test is None or sweep.chosen is None:
        return []
    dose = next(dose for dose in sweep.doses if dose.name == sweep.chosen)
    test, other = sweep.test
    splits = {"dev": (dose, run.comparison), "test": (test, other.comparison)}
    tested = sum(dose.p is not None for dose in sweep.doses)
    return [chosen_table(sweep.chosen, splits, sweep.metric, tested)]


def _lead(run: Run, comparison: Comparison) -> str:
    """What was compared, in a sentence."""
    controls = {contrast.control for contrast in comparison.contrasts}
    arms = [arm.name for arm in comparison.arms[1:] if arm.name not in controls]
    where = _and([f"{name} ({count:,} items)" for name, count in comparison.items.items()])
    if not arms:
        return f"{run.model} as it is, on {where}."
    if run.sweep is not None:
        return f"{len(arms)} settings on {run.model}, on {where} of the development split."
    beside = f", beside {len(controls)} control{'s' * (len(controls) > 1)}" if controls else ""
    return f"{run.model} as it is against {_and(arms)}{beside}, on {where}."


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _examples(run: Run) -> list[Section]:
    """The example browser over all benchmarks with pictures or words to look at."""
    found = {}
    for benchmark in run.comparison.items:
        gallery = run.document(GALLERY, benchmark)
        if gallery is not None:
            found[benchmark] = (gallery, run.rows(benchmark), run.document(ATTENTION, benchmark))
    if not found:
        return []
    browser = Browser.of(found, styles_of(run.comparison))
    note = "Keys: j and k or the arrows go from example to example, / searches."
    sampled = [f"{name}: {shown_of(g)}" for name, (g, _, _) in found.items() if shown_of(g)]
    return [Section("Examples", browser, " ".join([*sampled, note]), EXAMPLES)]


def _across_sections(runs: Mapping[str, Run]) -> list[Section]:
    """Changes of every run's arms, a panel a benchmark that all runs have."""
    first = next(iter(runs.values())).comparison
    shared = [
        name for name in first.items if all(name in run.comparison.items for run in runs.values())
    ]
    panels = {}
    for benchmark in shared:
        metric = first.primary(benchmark)
        rows = []
        for number, (name, run) in enumerate(runs.items()):
            comparison = run.comparison
            plain = comparison.plain(benchmark, metric)
            styles = styles_of(comparison)
            for arm in comparison.arms[1:]:
                _, shape, hollow = styles[arm.name]
                style = (COLOURS[number % len(COLOURS)], shape, hollow)
                entry = arm.changes[benchmark][metric]
                rows.append(_row(f"{name}: {arm.name}", entry, plain, style, signed=True))
        if rows:
            panels[_panel(first, benchmark, metric)] = rows
    note = "Each run's change from its own unedited model, a colour a run."
    return [Section("Change in every run", multiples(panels), note, ARMS)] if panels else []


def _levels_table(runs: Mapping[str, Run]) -> Table:
    """Every run's arms, and their value of each benchmark's own metric."""
    heads: dict[tuple[str, str], None] = {}
    for run in runs.values():
        heads |= dict.fromkeys((b, run.comparison.primary(b)) for b in run.comparison.items)
    rows = []
    for name, run in runs.items():
        comparison = run.comparison
        for arm in comparison.arms:
            cells = [f"{name}: {arm.name}"]
            for benchmark, metric in heads:
                known = arm.levels.get(benchmark, {}).get(metric)
                plain = known is not None and comparison.plain(benchmark, metric)
                cells.append(interval(known, plain=plain))
            rows.append(cells)
    headers = ["run: arm", *(f"{metric} {benchmark}" for benchmark, metric in heads)]
    return Table("Every arm of every run", headers, rows, ["Percent; bootstrap intervals."])
