"""The tables of a comparison, what matters first."""

from collections.abc import Mapping, Sequence
from typing import Any

from vlm_jax.evals.comparison import ArmResult, Comparison, Contrast
from vlm_jax.evals.frontier import OUT_OF_RANGE
from vlm_jax.evals.statistics import RankTest
from vlm_jax.report.charts import COLOURS, INK, SHAPES, SOFT
from vlm_jax.report.tables import NONE, Table, interval, number, p_value

_SMALL_P = 0.05


def comparison_tables(
    comparison: Comparison,
    sizes: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    acted: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> list[Table]:
    """All tables of a comparison.

    Args:
        comparison: what was measured.
        sizes: arm -> the certificate's summary, one a draw; makes the table of matched quantities.
        acted: arm -> what its attention methods did, one a draw; makes the table of that.
    """
    tables = [summary_table(comparison)]
    if comparison.contrasts:
        tables.append(control_table(comparison))
    if sizes:
        tables.append(size_table(sizes))
    if acted:
        tables.append(method_table(acted))
    tables += [benchmark_table(comparison, name) for name in comparison.items]
    if comparison.points:
        tables.append(frontier_table(comparison))
    return tables


def summary_table(comparison: Comparison) -> Table:
    """An arm a row: its gap to the frontier and its change of each benchmark's primary metric."""
    metrics = {name: comparison.primary(name) for name in comparison.items}
    headers = ["arm"]
    if comparison.points:
        headers.append("gap to say-less frontier")
    headers += [f"{metric} {name}" for name, metric in metrics.items()]
    rows = []
    for arm in comparison.arms[1:]:
        row = [_arm_name(arm)]
        if comparison.points:
            row.append(gap_cell(arm))
        for name, metric in metrics.items():
            plain = comparison.plain(name, metric)
            change = interval(arm.changes[name][metric], plain=plain, signed=True)
            row.append(change)
        rows.append(row)
    level = f"{100 * comparison.level:g} %"
    notes = [
        f"Points; [paired {level} bootstrap interval over images]; * it excludes 0.",
    ]
    if comparison.points:
        pooled = " + ".join(comparison.pooled)
        notes.append(
            f"Gap: C_S minus what a plain end-of-caption bias gives at the same recall ({pooled} "
            "pooled); negative is better than saying less."
        )
        notes += _resample_notes(comparison)
    if any(arm.draws > 1 for arm in comparison.arms):
        notes.append("Random controls: mean over draws; gaps with the range over draws.")
    return Table(f"Change from {baseline_name(comparison)}", headers, rows, notes)


def baseline_name(comparison: Comparison) -> str:
    """What texts call the arm that others are compared with."""
    name = comparison.baseline.name
    return f"the model {name}" if name == "as edited" else f"the {name} model"


def styles_of(comparison: Comparison) -> dict[str, tuple[str, str, bool]]:
    """Colour, shape and whether hollow, by arm.

    A control has the colour of the first arm that it is a control of, and a shape that no other
    control of that arm has.
    """
    own = {contrast.control: contrast.edit for contrast in reversed(comparison.contrasts)}
    found = {comparison.arms[0].name: (INK, "circle", False)}
    leads = [arm.name for arm in comparison.arms[1:] if arm.name not in own]
    for place, name in enumerate(leads):
        found[name] = (COLOURS[place % len(COLOURS)], "circle", False)
    seen: dict[str, int] = {}
    for arm in comparison.arms:
        if arm.name in own:
            edit = own[arm.name]
            place = seen[edit] = seen.get(edit, -1) + 1
            colour = found[edit][0] if edit in found else SOFT
            found[arm.name] = (colour, SHAPES[place % len(SHAPES)], True)
    return found


def gap_cell(arm: ArmResult) -> str:
    """An arm's gap with its interval; with the range over draws where there are several."""
    if not arm.gaps:
        return NONE
    if arm.mean_gap is None:
        outside = sum(gap.gap is None for gap in arm.gaps)
        many = len(arm.gaps)
        return OUT_OF_RANGE if many == 1 else f"{OUT_OF_RANGE} ({outside} of {many})"
    if len(arm.gaps) == 1:
        return interval(arm.gaps[0].gap, signed=True)
    values = [gap.gap.value for gap in arm.gaps if gap.gap is not None]
    return f"{number(arm.mean_gap, signed=True)} {_range(min(values), max(values), signed=True)}"


def benchmark_table(comparison: Comparison, benchmark: str) -> Table:
    """An arm a row, a metric a column: values, with changes from the unedited model."""
    names = [name for name, metric in comparison.metrics[benchmark].items() if metric.shown]
    headers = ["arm", *(comparison.named(benchmark, name) for name in names)]
    rows = []
    for arm in comparison.arms:
        cells = [_arm_name(arm)]
        for name in names:
            plain = comparison.plain(benchmark, name)
            level = arm.levels[benchmark][name]
            change = arm.changes.get(benchmark, {}).get(name)
            spread = arm.spread.get(benchmark, {}).get(name)
            if change is None:
                cells.append(interval(level, plain=plain))
            elif spread is not None:
                cells.append(f"{number(level.value, plain=plain)} {_range(*spread, plain=plain)}")
            else:
                moved = interval(change, plain=plain, signed=True)
                cells.append(f"{number(level.value, plain=plain)} ({moved})")
        rows.append(cells)
    level = f"{100 * comparison.level:g} %"
    notes = [
        f"Percent unless a unit is named; [{level} interval]; (change [paired interval]; * it "
        "excludes 0)."
    ]
    if any(arm.draws > 1 for arm in comparison.arms):
        notes.append("Random controls: mean over draws {least to greatest}.")
    return Table(f"{benchmark}, {comparison.items[benchmark]} items", headers, rows, notes)


def published_table(comparison: Comparison, published: Mapping[str, Any]) -> Table | None:
    """What a paper reports, beside ours; None where nothing is published.

    Args:
        comparison: what was measured.
        published: `source`, and `values`: benchmark -> arm -> metric -> percent, or the metric's
            own unit.
    """
    arms = {arm.name: arm for arm in comparison.arms}
    rows = []
    for benchmark, by_arm in (published.get("values") or {}).items():
        for arm, values in by_arm.items():
            levels = arms[arm].levels.get(benchmark, {}) if arm in arms else {}
            for metric, value in values.items():
                known = metric in levels
                plain = known and comparison.plain(benchmark, metric)
                ours = interval(levels[metric], plain=plain) if known else NONE
                away = (1 if plain else 100) * levels[metric].value - value if known else None
                moved = number(away, plain=True, signed=True)
                rows.append([f"{benchmark}, {arm}: {metric}", f"{value:g}", ours, moved])
    if not rows:
        return None
    notes = [str(published.get("source", "")), "-: not run here."]
    headers = ["", "published", "ours", "ours - published"]
    return Table("Published beside ours", headers, rows, notes)


def failure_tables(failures: Mapping[str, Mapping[str, str]]) -> list[Table]:
    """The items that could not be read, if any; they are left out of all arms."""
    rows = [[name, key, why] for name, found in failures.items() for key, why in found.items()]
    notes = ["Left out of every arm, so that all arms answer the same items."]
    headers = ["benchmark", "item", "reason"]
    return [Table("Items that could not be read", headers, rows, notes)] if rows else []


def control_table(comparison: Comparison) -> Table:
    """An arm and a control a row: the difference, and the arm's rank among the draws."""
    metrics = {name: comparison.primary(name) for name in comparison.items}
    headers = ["arm - control"]
    for name, metric in metrics.items():
        headers += [f"{metric} {name}", "rank p"]
    if comparison.points:
        headers += ["gap", "rank p"]
    rows = []
    arms = {arm.name: arm for arm in comparison.arms}
    for contrast in comparison.contrasts:
        row = [f"{contrast.edit} - {contrast.control}{_draws(contrast)}"]
        for name, metric in metrics.items():
            plain = comparison.plain(name, metric)
            row.append(interval(contrast.differences[name][metric], plain=plain, signed=True))
            row.append(_rank(contrast.ranks.get(name)))
        if comparison.points:
            ours, theirs = arms[contrast.edit].mean_gap, arms[contrast.control].mean_gap
            if ours is None or theirs is None:
                row.append(OUT_OF_RANGE)
            else:
                row.append(number(ours - theirs, signed=True))
            row.append(_rank(contrast.gap_rank))
        rows.append(row)
    few = sorted(
        {c.draws for c in comparison.contrasts if c.ranks and 1 / (1 + c.draws) > _SMALL_P}
    )
    notes = [
        f"{count} draw{'s' if count > 1 else ''}: rank p can not be below {1 / (1 + count):.2g} "
        "(19 draws are needed for .05)."
        for count in few
    ]
    if any(contrast.ranks for contrast in comparison.contrasts):
        notes.append("rank p: (1 + draws at least as good as the arm) / (1 + draws), one-sided.")
    return Table("Arms beside their controls", headers, rows, notes)


def size_table(sizes: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    """The quantities that controls are matched in, each beside those of the edit itself."""
    columns = {
        "rank": ("rank", 1),
        "energy touched %": ("energy_touched", 100),
        "energy removed %": ("energy_removed", 100),
        "||dW||": ("dw_norm", 1),
        "||dW||/||W|| %": ("dw_relative", 100),
        "||dM||": ("dm_norm", 1),
    }
    rows = []
    for name, summaries in sizes.items():
        layers = summaries[0].get("layers", [])
        row = [name, _layers(layers), str(summaries[0]["heads"])]
        for key, scale in columns.values():
            own = _mean([summary["edit"].get(key) for summary in summaries], scale)
            theirs = _mean([summary.get("reference", {}).get(key) for summary in summaries], scale)
            row.append(own or NONE if theirs is None else f"{own} ({theirs})")
        matched = [summary.get("matched") for summary in summaries]
        row.append(NONE if matched[0] is None else "yes" if all(matched) else "not all heads")
        rows.append(row)
    return Table(
        "What was changed",
        ["arm", "layers", "heads", *columns, "matched"],
        rows,
        [
            "Medians over heads, norms over all heads, means over draws; (of the edit that the "
            "control stands for).",
            "matched: whether the control's promise held in every head.",
            *_behind_norms(sizes),
        ],
    )


def _behind_norms(sizes: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """A note for each edit of a model that normalises its queries; none of others."""
    return [
        f"{name}: the norm of queries scales the rest up by {one['norm']['reinflation']:.3g}, so "
        f"that modes are weighed anew, not suppressed; behind it energy removed is "
        f"{100 * one['norm']['energy_removed']:.1f} %."
        for name, (one, *_) in sizes.items()
        if "norm" in one
    ]


def method_table(acted: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    """What the attention methods of every arm did; see `vlm_jax.study.acted.acted`."""
    rows = []
    for name, draws in acted.items():
        counts = [draw["heads"] for draw in draws]
        few, many = min(counts), max(counts)
        heads = str(few) if few == many else f"{few} to {many}"
        row = [name, _layers(draws[0]["layers"]), heads]
        for key, scale in (("trigger_rate", 100), ("perception", 1), ("reasoning", 1)):
            row.append(_mean([draw[key] for draw in draws], scale, "{:.1f}") or NONE)
        row.append(_mean([draw["selected"] for draw in draws], 100, "{:.1f}") or NONE)
        rows.append(row)
    headers = ["arm", "layers", "heads", "rows reallocated %", "perception heads"]
    notes = [
        "Means over decode rows, answers of all benchmarks, and draws. heads: that the method may "
        "act on; rows reallocated: of reallocating heads; selected: of all heads.",
    ]
    limits = {name: draws[0]["regime"] for name, draws in acted.items()}
    beyond = [
        name
        for name, draws in acted.items()
        if any((draw["selected"] or 0) > limits[name] for draw in draws)
    ]
    if beyond:
        notes.append(
            f"warning: {', '.join(beyond)}: more than {100 * limits[beyond[0]]:.0f} % of all heads "
            "are selected, outside the regime of the functional heads' paper."
        )
    return Table("What the methods did", [*headers, "reasoning heads", "selected %"], rows, notes)


def frontier_table(comparison: Comparison) -> Table:
    """The say-less frontier, a bias a row."""
    rows = [
        [f"{p.bias:+g}", number(p.recall), number(p.metric), number(p.length, plain=True)]
        for p in comparison.points
    ]
    pooled = " + ".join(comparison.pooled)
    notes = ["A plain bias on the logits that end a caption; 0 is the model without it."]
    if len({(p.recall, p.metric, p.length) for p in comparison.points}) == 1 < len(rows):
        notes.append(
            "No bias changed a caption, so nothing is known of saying less: name words that end "
            "or lengthen this model's captions by config.frontier.tokens."
        )
    return Table(
        f"Say-less frontier of {baseline_name(comparison)} ({pooled})",
        ["bias", "recall", "C_S", "length (words)"],
        rows,
        notes,
    )


def _resample_notes(comparison: Comparison) -> list[str]:
    lost = {a.name: max(g.outside for g in a.gaps) for a in comparison.arms[1:] if len(a.gaps) == 1}
    return [
        f"{name}: {100 * share:.0f} % of resamples fell outside the frontier and are left out."
        for name, share in lost.items()
        if share > 0.05
    ]


def _arm_name(arm: ArmResult) -> str:
    return f"{arm.name} ({arm.draws} draws)" if arm.draws > 1 else arm.name


def _draws(contrast: Contrast) -> str:
    return f" ({contrast.draws} draws)" if contrast.draws > 1 else ""


def _rank(test: RankTest | None) -> str:
    return NONE if test is None else p_value(test.p)


def _range(low: float, high: float, **style: bool) -> str:
    return f"{{{number(low, **style)} to {number(high, **style)}}}"


def _layers(layers: Sequence[int]) -> str:
    if not layers:
        return NONE
    whole = len(layers) > 1 and list(layers) == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]}-{layers[-1]}" if whole else ", ".join(map(str, layers))


def _mean(values: Sequence[float | None], scale: float, form: str = "{:.4g}") -> str | None:
    known = [value for value in values if value is not None]
    return form.format(scale * sum(known) / len(known)) if known else None
