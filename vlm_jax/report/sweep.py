"""Dose-response tables and plots of a sweep."""

from collections.abc import Mapping, Sequence
from typing import Any

from vlm_jax.evals.comparison import Comparison
from vlm_jax.evals.sweeps import Dose
from vlm_jax.report.comparison import gap_cell
from vlm_jax.report.plots import COLOURS, Mark, Series, scatter
from vlm_jax.report.tables import NONE, Table, interval, number, p_value


def dose_table(
    doses: Sequence[Dose],
    comparison: Comparison,
    metric: str,
    benchmarks: Sequence[str],
    chosen: str | None,
) -> Table:
    """A setting a row, controls among them, the chosen one marked."""
    plain = metric in comparison.units
    headers = ["setting", metric, "change", "at once", "p", "p Holm", "p max-T", "detectable"]
    with_items = any(dose.items is not None for dose in doses)
    headers += ["items needed"] * with_items
    with_recall = any(dose.recall is not None for dose in doses)
    headers += ["recall"] * with_recall + ["gap to frontier"] * bool(comparison.points)
    arms = {arm.name: arm for arm in comparison.arms}
    rows = []
    for dose in doses:
        name = f"{dose.name} ({dose.draws} draws)" if dose.draws > 1 else dose.name
        row = [
            f"> {name}" if dose.name == chosen else name,
            number(dose.value, plain=plain),
            interval(dose.change, plain=plain, signed=True),
            NONE if dose.simultaneous is None else _ends(dose.simultaneous, plain),
            p_value(dose.p),
            p_value(dose.p_holm),
            p_value(dose.p_max_t),
            number(dose.detectable, plain=plain),
        ]
        if with_items:
            row.append(NONE if dose.items is None else f"{dose.items:,}")
        if with_recall:
            row.append(interval(dose.recall, signed=True))
        if comparison.points:
            row.append(gap_cell(arms[dose.name]))
        rows.append(row)
    tested = sum(dose.p is not None for dose in doses)
    level = f"{100 * comparison.level:g} %"
    before = number(doses[0].value - doses[0].change.value, plain=plain)
    notes = [
        f"change: from the unedited model's {before}, [paired {level} bootstrap interval]; * it "
        "excludes 0.",
        f"at once: intervals that hold for all {tested} settings together (max-T). p: "
        f"{'exact McNemar' if metric == 'C_S' else 'from the bootstrap error'}, two-sided.",
        "detectable: least true change found with 80 % power. Controls are not tested.",
    ]
    if with_items:
        notes.append(
            "items needed: to find the change that was seen with 80 % power, were it true."
        )
    if chosen is not None:
        notes.append("> is the chosen setting.")
    return Table(f"Dose and response of {metric} ({' + '.join(benchmarks)})", headers, rows, notes)


def dose_plot(
    doses: Sequence[Dose],
    settings: Mapping[str, Mapping[str, Any]],
    axis: str,
    metric: str,
    plain: bool,
) -> str:
    """The change against one swept field; a line for each combination of the others.

    Args:
        doses: what is drawn.
        settings: setting -> swept field -> value.
        axis: the field that is the horizontal axis; its values are numbers.
        metric: what changes.
        plain: whether it is no fraction.
    """
    scale = 1 if plain else 100
    lines: dict[str, list[Mark]] = {}
    for dose in doses:
        values = dict(settings[dose.name])
        x = float(values.pop(axis))
        name = setting_name(values) or "edit"
        change = dose.change
        text = f"{dose.name}: {interval(change, plain=plain, signed=True)}"
        mark = Mark(x, scale * change.value, scale * change.low, scale * change.high, text)
        lines.setdefault(name, []).append(mark)
    series = [
        Series(name, sorted(marks, key=lambda m: m.x), COLOURS[n % len(COLOURS)], line=True)
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
