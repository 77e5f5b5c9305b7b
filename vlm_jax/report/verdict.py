"""A sentence an arm: what it changed, against saying less, against its control."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vlm_jax.evals.comparison import ArmResult, Comparison, Contrast
from vlm_jax.evals.statistics import Interval
from vlm_jax.report.comparison import gap_cell
from vlm_jax.report.tables import interval

_SMALL_P = 0.05
_BESIDE = ("yes_ratio", "unparsable_rate", "truncated_rate")
_MOVED = 0.01  # less is not worth a word


@dataclass(frozen=True)
class Verdict:
    """What was found of an arm.

    Attributes:
        arm: its name.
        text: the sentence after the name.
        tone: "better", "worse" or "" for neither, by what was told apart from nothing.
        facts: name -> the numbers that it rests on.
    """

    arm: str
    text: str
    tone: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)


def verdicts(comparison: Comparison) -> list[Verdict]:
    """A verdict on every arm that is no control.

    An arm is called better only if its change of the first benchmark's metric excludes nothing
    happening, it does not lie behind saying less, and no control of it does as well.

    Example:
        "-3.3 points of C_S on broken (not told apart from 0); 1.4 points worse than saying less at
        the same recall; not told apart from its control R1 (too few draws to tell)."
    """
    controls = {contrast.control for contrast in comparison.contrasts}
    return [_verdict(comparison, a) for a in comparison.arms[1:] if a.name not in controls]


def _verdict(comparison: Comparison, arm: ArmResult) -> Verdict:
    benchmark = next(iter(comparison.items))
    metric = comparison.primary(benchmark)
    lower = comparison.metrics[benchmark][metric].better == "low"
    change = arm.changes[benchmark][metric]
    if math.isnan(change.value):
        return Verdict(arm.name, f"{metric} on {benchmark} could not be measured.")
    sign = -1 if lower else 1
    parts = [_change(comparison, change, metric, benchmark)]
    good, bad = (change.excludes_zero and sign * change.value > 0), False
    bad |= change.excludes_zero and sign * change.value < 0
    if arm.gaps:
        gap = arm.gaps[0].gap if len(arm.gaps) == 1 else None
        text, ahead, behind = _gap(arm, gap)
        parts.append(text)
        good, bad = good and not behind, bad or behind
        good &= ahead or not behind
    beside = _beside(comparison, arm, benchmark)
    if beside:
        parts.append(f"with it {_and(beside)} points")
    own = [c for c in comparison.contrasts if c.edit == arm.name]
    told = [_told_apart(c, benchmark, metric, lower) for c in own]
    if own:
        same = [c.control for c, apart in zip(own, told) if not apart]
        if same:
            good = False
            few = any(_too_few(c, benchmark) for c, apart in zip(own, told) if not apart)
            text = f"not told apart from its control{'s' * (len(same) > 1)} {_and(same)}"
            parts.append(text + " (too few draws to tell)" * few)
        else:
            parts.append(f"told apart from its control{'s' * (len(own) > 1)}")
    else:
        parts.append("no control stands beside it")
        good = False
    tone = "worse" if bad else "better" if good else ""
    return Verdict(arm.name, f"{'; '.join(parts)}.", tone, _facts(comparison, arm))


def _facts(comparison: Comparison, arm: ArmResult) -> dict[str, str]:
    """The change of every benchmark's metric, and the gap to saying less."""
    found = {}
    for benchmark in comparison.items:
        metric = comparison.primary(benchmark)
        plain = comparison.plain(benchmark, metric)
        change = interval(arm.changes[benchmark][metric], plain=plain, signed=True)
        found[f"{metric}, {benchmark}"] = change
    if arm.gaps:
        found["against saying less"] = gap_cell(arm)
    return found


def _change(comparison: Comparison, change: Interval, metric: str, benchmark: str) -> str:
    unit = comparison.unit(benchmark, metric)
    scale = 1 if comparison.plain(benchmark, metric) else 100
    apart = "" if change.excludes_zero else " (not told apart from 0)"
    return f"{scale * change.value:+.1f} {unit} of {metric} on {benchmark}{apart}"


def _beside(comparison: Comparison, arm: ArmResult, benchmark: str) -> list[str]:
    """What else moved that moves a score: ["yes_ratio +21.1", "unparsable_rate +14.1"]."""
    moved = {name: arm.changes[benchmark].get(name) for name in _BESIDE}
    return [
        f"{name} {100 * change.value:+.1f}"
        for name, change in moved.items()
        if change is not None and change.excludes_zero and abs(change.value) >= _MOVED
    ]


def _gap(arm: ArmResult, gap: Interval | None) -> tuple[str, bool, bool]:
    """The sentence, whether the arm is told to be ahead of saying less, and behind it."""
    if arm.mean_gap is None:
        return "its recall lies outside what saying less was measured at", False, False
    size = 100 * abs(arm.mean_gap)
    word = "better" if arm.mean_gap < 0 else "worse"
    if f"{size:.1f}" == "0.0":
        return "as good as saying less at the same recall", False, False
    sure = gap is not None and gap.excludes_zero
    text = f"{size:.1f} points {word} than saying less at the same recall"
    text += "" if sure else " (not told apart from it)"
    return text, sure and arm.mean_gap < 0, sure and arm.mean_gap > 0


def _told_apart(contrast: Contrast, benchmark: str, metric: str, lower: bool) -> bool:
    """Whether an arm does better than a control: ranked among random draws, else by interval."""
    if benchmark in contrast.ranks:
        return contrast.ranks[benchmark].p <= _SMALL_P
    difference = contrast.differences[benchmark][metric]
    better = difference.value < 0 if lower else difference.value > 0
    return difference.excludes_zero and better


def _too_few(contrast: Contrast, benchmark: str) -> bool:
    """Whether a control was drawn so few times that no rank among them tells an arm apart."""
    return benchmark in contrast.ranks and contrast.ranks[benchmark].smallest > _SMALL_P


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
