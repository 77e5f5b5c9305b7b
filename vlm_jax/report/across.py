"""Tables over several models: each model's effect, and on how many of them it is one."""

from collections.abc import Callable, Mapping, Sequence

from vlm_jax.evals.comparison import ArmResult, Comparison, Contrast
from vlm_jax.evals.frontier import OUT_OF_RANGE
from vlm_jax.evals.statistics import Interval
from vlm_jax.report.comparison import gap_cell
from vlm_jax.report.tables import NONE, Table, interval, number, p_value

Models = Mapping[str, Comparison]
_SMALL_P = 0.05
_NOTE = (
    "Under an arm's name: mean over models {least to greatest}, k/n: the interval of k of n models "
    "excludes 0 on the mean's side. Under it, each model with its own interval."
)


def across_tables(models: Models) -> list[Table]:
    """All tables over several models, what matters first.

    Args:
        models: name -> its comparison; all of the same arms and benchmarks.
    """
    first = _first(models)
    metrics = {name: list(levels) for name, levels in first.baseline.levels.items()}
    lead = [(name, first.primary(name)) for name in metrics]
    captions = [name for name, names in metrics.items() if "recall" in names and "C_S" in names]
    lead += [(name, "recall") for name in captions[:1]]
    tables = [change_table(models, lead, "Change from the models as they are", gaps=True)]
    if first.contrasts:
        tables.append(contrast_table(models))
    for name, names in metrics.items():
        columns = [(name, metric) for metric in names if first.metrics[name][metric].shown]
        tables.append(change_table(models, columns, f"{name}: change from the models as they are"))
    return tables


def change_table(
    models: Models, columns: Sequence[tuple[str, str]], title: str, *, gaps: bool = False
) -> Table:
    """An arm and a model a row: changes of some (benchmark, metric) pairs.

    Args:
        models: name -> its comparison.
        columns: what is shown.
        title: of the table.
        gaps: whether the gap to the say-less frontier leads.
    """
    first = _first(models)
    gaps = gaps and bool(first.points)
    headers = ["arm", *(["gap to say-less frontier"] if gaps else [])]
    headers += [f"{first.named(benchmark, metric)} {benchmark}" for benchmark, metric in columns]
    rows = []
    for arm in first.arms[1:]:
        own = {name: _arm(comparison, arm.name) for name, comparison in models.items()}
        pooled = [arm.name if arm.draws == 1 else f"{arm.name} ({arm.draws} draws)"]
        pooled += [_pooled_gap(list(own.values()))] if gaps else []
        for benchmark, metric in columns:
            plain = first.plain(benchmark, metric)
            found = [one.changes[benchmark][metric] for one in own.values()]
            pooled.append(pooled_cell(found, plain=plain))
        rows.append(pooled)
        for name, one in own.items():
            row = [f"  {name}", *([gap_cell(one)] if gaps else [])]
            for benchmark, metric in columns:
                plain = first.plain(benchmark, metric)
                row.append(interval(one.changes[benchmark][metric], plain=plain, signed=True))
            rows.append(row)
    return Table(title, headers, rows, [_NOTE])


def contrast_table(models: Models) -> Table:
    """An arm beside a control, and a model, a row: differences, and ranks among the draws."""
    first = _first(models)
    metrics = {name: first.primary(name) for name in first.items}
    headers = ["arm - control"]
    for name, metric in metrics.items():
        headers += [f"{metric} {name}", "rank p"]
    headers += ["gap", "rank p"] if first.points else []
    rows = []
    for contrast in first.contrasts:
        own = {name: _contrast(comparison, contrast) for name, comparison in models.items()}
        draws = f" ({contrast.draws} draws)" if contrast.draws > 1 else ""
        pooled = [f"{contrast.edit} - {contrast.control}{draws}"]
        for name, metric in metrics.items():
            found = [one.differences[name][metric] for one in own.values()]
            pooled.append(pooled_cell(found, plain=first.plain(name, metric)))
            pooled.append(_small([_rank(one, name) for one in own.values()]))
        if first.points:
            gaps = [_gap_difference(models[name], one) for name, one in own.items()]
            pooled.append(_pooled_values(gaps))
            pooled.append(_small([_gap_rank(one) for one in own.values()]))
        rows.append(pooled)
        for model, one in own.items():
            row = [f"  {model}"]
            for name, metric in metrics.items():
                plain = first.plain(name, metric)
                row.append(interval(one.differences[name][metric], plain=plain, signed=True))
                row.append(_p(_rank(one, name)))
            if first.points:
                gap = _gap_difference(models[model], one)
                row += [OUT_OF_RANGE if gap is None else number(gap, signed=True)]
                row += [_p(_gap_rank(one))]
            rows.append(row)
    return Table(
        "Arms beside their controls",
        headers,
        rows,
        [_NOTE, f"rank p: k/n, p is at most {_SMALL_P:g} in k of n models; each model's under it."],
    )


def pooled_cell(found: Sequence[Interval], *, plain: bool = False) -> str:
    """Mean over models, its range, and how many intervals exclude 0 on the mean's side."""
    text = _pooled_values([one.value for one in found], plain=plain)
    mean = sum(one.value for one in found) / len(found)
    agree = sum(one.excludes_zero and one.value * mean > 0 for one in found)
    return text if text == NONE else f"{text} {agree}/{len(found)}"


def _pooled_values(values: Sequence[float | None], *, plain: bool = False) -> str:
    known = [value for value in values if value is not None and value == value]
    if len(known) < len(values):
        lost = len(values) - len(known)
        return f"{OUT_OF_RANGE} ({lost} of {len(values)})"
    shown: Callable[[float], str] = lambda value: number(value, plain=plain, signed=True)
    return f"{shown(sum(known) / len(known))} {{{shown(min(known))} to {shown(max(known))}}}"


def _pooled_gap(arms: Sequence[ArmResult]) -> str:
    if all(len(arm.gaps) == 1 and arm.mean_gap is not None for arm in arms):
        return pooled_cell([arm.gaps[0].gap for arm in arms if arm.gaps[0].gap is not None])
    return _pooled_values([arm.mean_gap for arm in arms])


def _gap_difference(comparison: Comparison, contrast: Contrast) -> float | None:
    ours = _arm(comparison, contrast.edit).mean_gap
    theirs = _arm(comparison, contrast.control).mean_gap
    return None if ours is None or theirs is None else ours - theirs


def _rank(contrast: Contrast, benchmark: str) -> float | None:
    test = contrast.ranks.get(benchmark)
    return None if test is None else test.p


def _gap_rank(contrast: Contrast) -> float | None:
    return None if contrast.gap_rank is None else contrast.gap_rank.p


def _small(values: Sequence[float | None]) -> str:
    if all(value is None for value in values):
        return NONE
    return f"{sum(v is not None and v <= _SMALL_P for v in values)}/{len(values)}"


def _p(value: float | None) -> str:
    return NONE if value is None else p_value(value)


def _first(models: Models) -> Comparison:
    return next(iter(models.values()))


def _arm(comparison: Comparison, name: str) -> ArmResult:
    return next(arm for arm in comparison.arms if arm.name == name)


def _contrast(comparison: Comparison, like: Contrast) -> Contrast:
    return next(
        one for one in comparison.contrasts if (one.edit, one.control) == (like.edit, like.control)
    )
