"""Dose-response tables and plots of a sweep."""

import dataclasses
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from vlm_jax.evals.comparison import Comparison
from vlm_jax.evals.sweeps import Dose
from vlm_jax.report.charts import COLOURS, Chart, Mark, Series, scatter
from vlm_jax.report.comparison import baseline_name, gap_cell
from vlm_jax.report.tables import NONE, Section, Table, interval, number, p_value


def dose_table(
    doses: Sequence[Dose],
    comparison: Comparison,
    metric: str,
    benchmarks: Sequence[str],
    chosen: str | None,
) -> Table:
    """A setting a row, controls among them, the chosen one marked."""
    plain = comparison.plain(benchmarks[0], metric)
    with_items = any(dose.items is not None for dose in doses)
    with_recall = any(dose.recall is not None for dose in doses)
    headers = ["setting", metric, "change"]
    headers += ["recall"] * with_recall + ["gap to frontier"] * bool(comparison.points)
    headers += ["at once", "p", "p Holm", "p max-T", "detectable", *["items needed"] * with_items]
    arms = {arm.name: arm for arm in comparison.arms}
    rows = []
    for dose in doses:
        name = f"{dose.name} ({dose.draws} draws)" if dose.draws > 1 else dose.name
        row = [
            f"> {name}" if dose.name == chosen else name,
            number(dose.value, plain=plain),
            interval(dose.change, plain=plain, signed=True),
        ]
        if with_recall:
            row.append(interval(dose.recall, signed=True))
        if comparison.points:
            row.append(gap_cell(arms[dose.name]))
        row += [
            NONE if dose.simultaneous is None else _ends(dose.simultaneous, plain),
            p_value(dose.p),
            p_value(dose.p_holm),
            p_value(dose.p_max_t),
            number(dose.detectable, plain=plain),
        ]
        if with_items:
            row.append(NONE if dose.items is None else f"{dose.items:,}")
        rows.append(row)
    notes = _dose_notes(doses, comparison, metric, benchmarks[0])
    if chosen is not None:
        notes.append("> is the chosen setting.")
    return Table(f"Dose and response of {metric} ({' + '.join(benchmarks)})", headers, rows, notes)


def _dose_notes(
    doses: Sequence[Dose], comparison: Comparison, metric: str, benchmark: str
) -> list[str]:
    """What the columns of a dose table mean, a sentence each."""
    plain = comparison.plain(benchmark, metric)
    tested = sum(dose.p is not None for dose in doses)
    level = f"{100 * comparison.level:g} %"
    before = number(doses[0].value - doses[0].change.value, plain=plain)
    unit = comparison.unit(benchmark, metric)
    paired = comparison.metrics[benchmark][metric].outcome
    notes = [
        f"change: {unit} from {baseline_name(comparison)}, {before}, [paired {level} bootstrap "
        "interval]; * it excludes 0.",
        f"at once: intervals that hold for all {tested} settings together (max-T). p: "
        f"{'exact McNemar' if paired else 'from the bootstrap error'}, two-sided.",
        "detectable: least true change found with 80 % power. Controls are not tested.",
    ]
    if paired:
        notes.append(
            "Where few items changed, a bootstrap interval is too narrow and can exclude 0 "
            "beside a large p: p counts."
        )
    if any(dose.items is not None for dose in doses):
        notes.append(
            "items needed: to find the change that was seen with 80 % power, were it true."
        )
    return notes


def chosen_table(
    name: str, splits: Mapping[str, tuple[Dose, Comparison]], metric: str, settings: int
) -> Table:
    """The chosen setting on the split that it was chosen on and on the test split.

    Args:
        name: of the setting.
        splits: "dev" and "test" -> the setting's effect, and the comparison that it is from.
        metric: what is judged.
        settings: how many it was chosen from.
    """
    headers = ["split", "images", metric, "change", "recall", "gap to frontier", "p", "detectable"]
    rows = []
    for split, (dose, comparison) in splits.items():
        known = next(one for one in comparison.metrics.values() if metric in one)
        plain = known[metric].plain
        arm = next(arm for arm in comparison.arms if arm.name == dose.name)
        images = sum(comparison.items[one] for one in comparison.pooled or comparison.items)
        rows.append(
            [
                split,
                f"{images:,}",
                number(dose.value, plain=plain),
                interval(dose.change, plain=plain, signed=True),
                NONE if dose.recall is None else interval(dose.recall, signed=True),
                gap_cell(arm) if comparison.points else NONE,
                p_value(dose.p if split == "test" else None),
                number(dose.detectable, plain=plain),
            ]
        )
    notes = [
        f"The best of {settings} settings looks better on dev than it is; test is its one look at "
        "items that it was not chosen on.",
    ]
    return Table(f"Chosen: {name}", headers, rows, notes)


def dose_sections(
    doses: Sequence[Dose],
    settings: Mapping[str, Mapping[str, Any]],
    metric: str,
    plain: bool,
    part: str = "",
) -> list[Section]:
    """A dose-response plot for each swept field with several numbers for values.

    Args:
        doses, settings, metric, plain: see `dose_plots`.
        part: of the page.
    """
    found = []
    for axis in dict.fromkeys(field for one in settings.values() for field in one):
        values = [one.get(axis) for one in settings.values()]
        numeric = all(isinstance(v, Real) and not isinstance(v, bool) for v in values)
        if numeric and len(set(values)) > 1 and axis != "seed":
            for fixed, plot in dose_plots(doses, settings, axis, metric, plain).items():
                at = f", {fixed}" if fixed else ""
                found.append(Section(f"Change of {metric} against {axis}{at}", plot, part=part))
    return found


def dose_plots(
    doses: Sequence[Dose],
    settings: Mapping[str, Mapping[str, Any]],
    axis: str,
    metric: str,
    plain: bool,
) -> dict[str, Chart]:
    """The change against one swept field; a line for each combination of the others.

    Args:
        doses: what is drawn.
        settings: setting -> swept field -> value.
        axis: the field that is the horizontal axis; its values are numbers.
        metric: what changes.
        plain: whether it is no fraction.

    Returns:
        plots by what they hold fixed: one, or, where one would have more lines than there are
        colours, one for each value of another field.
    """
    others = {d.name: {k: v for k, v in settings[d.name].items() if k != axis} for d in doses}
    lines = {setting_name(values) for values in others.values()}
    split = None if len(lines) <= len(COLOURS) else _first_varied(list(others.values()))
    panels: dict[str, list[Dose]] = {}
    for dose in doses:
        fixed = {split: others[dose.name][split]} if split and split in others[dose.name] else {}
        panels.setdefault(setting_name(fixed), []).append(dose)
    return {
        fixed: _dose_plot(panel, settings, axis, metric, plain, split)
        for fixed, panel in panels.items()
    }


def _first_varied(settings: Sequence[Mapping[str, Any]]) -> str | None:
    """The first field with several values; none where it is the only one, or a control's."""
    values: dict[str, set[str]] = {}
    for one in settings:
        for field, value in one.items():
            values.setdefault(field, set()).add(str(value))
    varied = [field for field, seen in values.items() if len(seen) > 1 and field != "control"]
    return varied[0] if len(varied) > 1 else None


def _dose_plot(
    doses: Sequence[Dose],
    settings: Mapping[str, Mapping[str, Any]],
    axis: str,
    metric: str,
    plain: bool,
    fixed: str | None,
) -> Chart:
    scale = 1 if plain else 100
    lines: dict[str, list[Mark]] = {}
    for dose in doses:
        values = {k: v for k, v in settings[dose.name].items() if k != fixed}
        x = float(values.pop(axis))
        name = setting_name(values) or "edit"
        change = dose.change
        text = f"{dose.name}: {interval(change, plain=plain, signed=True)}"
        mark = Mark(x, scale * change.value, scale * change.low, scale * change.high, text)
        lines.setdefault(name, []).append(mark)
    places = [mark.x for marks in lines.values() for mark in marks]
    # Lines stand a little apart, or one interval would hide the others.
    apart = 0.008 * (max(places) - min(places))
    series = [
        Series(
            name,
            [
                dataclasses.replace(mark, x=mark.x + apart * (n - (len(lines) - 1) / 2))
                for mark in sorted(marks, key=lambda mark: mark.x)
            ],
            COLOURS[n % len(COLOURS)],
            line=True,
        )
        for n, (name, marks) in enumerate(lines.items())
    ]
    return scatter(
        series, axis, f"change of {metric}, points", zero=True, title=f"Change against {axis}"
    )


def setting_name(values: Mapping[str, Any]) -> str:
    """What a setting is called: "strength=0.5 k=4 band=0.36-0.61 R3"."""
    parts = []
    for field, value in values.items():
        if field == "control":
            parts += [value] if value else []
        elif isinstance(value, tuple | list):
            parts.append(f"{field}={'-'.join(map(str, value))}")
        else:
            parts.append(f"{field}={value}")
    return " ".join(parts)


def _ends(entry, plain: bool) -> str:
    ends = (number(end, plain=plain, signed=True) for end in (entry.low, entry.high))
    return f"[{', '.join(ends)}]"
