"""Plots as inline SVG: axes, lines, points with intervals. No script, no font, no file."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT = 900, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 290, 20, 48
_LEGEND_PITCH = 20
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#666666")
"""Colours that stay apart for colour-blind readers."""


@dataclass(frozen=True)
class Mark:
    """A point, with optional interval ends and a tooltip."""

    x: float
    y: float
    low: float = math.nan
    high: float = math.nan
    text: str = ""


@dataclass(frozen=True)
class Series:
    """Marks of one colour.

    Attributes:
        name: in the legend.
        marks: the points.
        colour: of lines and points.
        line: whether the points are joined.
        faint: whether it is background, such as single draws.
        hollow: whether its points are rings, as those of controls.
        labels: whether the marks' texts are written beside them, where there is room.
    """

    name: str
    marks: Sequence[Mark]
    colour: str = COLOURS[0]
    line: bool = False
    faint: bool = False
    hollow: bool = False
    labels: bool = False


@dataclass
class _Scale:
    """A linear axis from data to pixels."""

    low: float
    high: float
    start: float
    end: float
    ticks: list[float] = field(default_factory=list)

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> "_Scale":
        known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        low, high = min(known), max(known)
        margin = 0.06 * (high - low) or 0.5
        low, high = low - margin, high + margin
        step = _step((high - low) / 6)
        first = math.ceil(low / step)
        ticks = [step * n for n in range(first, math.floor(high / step) + 1)]
        return cls(low, high, start, end, ticks)

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)


def scatter(
    series: Sequence[Series], x_label: str, y_label: str, *, zero: bool = False, title: str = ""
) -> str:
    """Draws series over two linear axes.

    Args:
        series: what to draw, background first.
        x_label, y_label: of the axes.
        zero: whether the line y = 0 is drawn (and in range).
        title: what the plot shows, for readers who do not see it.
    """
    marks = [mark for one in series for mark in one.marks]
    ys = [value for mark in marks for value in (mark.y, mark.low, mark.high)]
    named = [one for one in series if one.name]
    height = max(HEIGHT, _TOP + _LEGEND_PITCH * len(named) + _BOTTOM)
    x = _Scale.over([mark.x for mark in marks], _LEFT, WIDTH - _RIGHT)
    y = _Scale.over([*ys, 0.0] if zero else ys, height - _BOTTOM, _TOP)
    parts = [_axes(x, y, x_label, y_label)]
    if zero:
        parts.append(f'<path class=zero d="M{x.start} {y(0)}H{x.end}"/>')
    parts += [_draw(one, x, y) for one in series]
    parts.append(_legend(named))
    return _svg(parts, height, title)


def forest(rows: Sequence[Series], x_label: str, *, title: str = "") -> str:
    """Draws an interval a row around x = 0.

    Args:
        rows: each with one mark, its value in x and its ends.
        x_label: of the axis.
        title: what the plot shows, for readers who do not see it.
    """
    left, pitch = 230, 26
    height = _TOP + pitch * len(rows) + _BOTTOM
    marks = [row.marks[0] for row in rows]
    ends = [value for mark in marks for value in (mark.x, mark.low, mark.high)]
    x = _Scale.over([*ends, 0.0], left, WIDTH - 24)
    bottom = height - _BOTTOM
    parts = [
        f'<path class=grid d="M{x(t)} {_TOP}V{bottom}"/>'
        f"<text x={x(t)} y={bottom + 18} text-anchor=middle>{_tick(t)}</text>"
        for t in x.ticks
    ]
    parts.append(f'<path class=zero d="M{x(0)} {_TOP}V{bottom}"/>')
    parts.append(_text((left + WIDTH - 24) / 2, height - 8, x_label, "middle"))
    for number, (row, mark) in enumerate(zip(rows, marks)):
        y = _TOP + pitch * (number + 0.5)
        parts.append(_text(left - 12, y + 4, row.name, "end"))
        if math.isfinite(mark.low) and math.isfinite(mark.high):
            ends = f"M{x(mark.low)} {y}H{x(mark.high)}"
            parts.append(f'<path stroke="{row.colour}" stroke-width=2 d="{ends}"/>')
        parts.append(_dot(x(mark.x), y, row.colour, mark.text, hollow=row.hollow))
    return _svg(parts, height, title)


def _draw(one: Series, x: _Scale, y: _Scale) -> str:
    parts = []
    labelled: list[tuple[float, float]] = []
    if one.line and len(one.marks) > 1:
        path = "L".join(f"{x(mark.x)} {y(mark.y)}" for mark in one.marks)
        parts.append(f'<path fill=none stroke="{one.colour}" stroke-width=2 d="M{path}"/>')
    for mark in one.marks:
        if math.isfinite(mark.low) and math.isfinite(mark.high):
            parts.append(
                f'<path stroke="{one.colour}" d="M{x(mark.x)} {y(mark.low)}V{y(mark.high)}"/>'
            )
        at = x(mark.x), y(mark.y)
        radius = 2.5 if one.faint else 4.5
        parts.append(_dot(*at, one.colour, mark.text, radius, hollow=one.hollow))
        if one.labels and all(abs(at[0] - u) > 40 or abs(at[1] - v) > 14 for u, v in labelled):
            parts.append(_text(at[0] - 8, at[1] - 6, mark.text, "end"))
            labelled.append(at)
    opacity = " opacity=.45" if one.faint else ""
    return f"<g{opacity}>{''.join(parts)}</g>"


def _axes(x: _Scale, y: _Scale, x_label: str, y_label: str) -> str:
    parts = []
    for tick in x.ticks:
        parts.append(f'<path class=grid d="M{x(tick)} {y.start}V{y.end}"/>')
        parts.append(_text(x(tick), y.start + 18, _tick(tick), "middle"))
    for tick in y.ticks:
        parts.append(f'<path class=grid d="M{x.start} {y(tick)}H{x.end}"/>')
        parts.append(_text(x.start - 8, y(tick) + 4, _tick(tick), "end"))
    parts.append(_text((x.start + x.end) / 2, y.start + 40, x_label, "middle"))
    middle = (y.start + y.end) / 2
    parts.append(
        f'<text transform="translate(16 {middle}) rotate(-90)" text-anchor=middle>'
        f"{html.escape(y_label)}</text>"
    )
    return "".join(parts)


def _legend(series: Sequence[Series]) -> str:
    at = WIDTH - _RIGHT + 18
    parts = []
    for number, one in enumerate(series):
        y = _TOP + 8 + _LEGEND_PITCH * number
        parts.append(_dot(at, y, one.colour, one.name, hollow=one.hollow))
        parts.append(_text(at + 11, y + 4, one.name, "start"))
    return "".join(parts)


def _dot(
    x: float, y: float, colour: str, text: str, radius: float = 4.5, *, hollow: bool = False
) -> str:
    tip = f"<title>{html.escape(text)}</title>" if text else ""
    paint = (
        f'fill="var(--paper)" stroke="{colour}" stroke-width=2' if hollow else f'fill="{colour}"'
    )
    return f"<circle cx={x} cy={y} r={radius} {paint}>{tip}</circle>"


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f"<text x={x} y={y} text-anchor={anchor}>{html.escape(text)}</text>"


def _svg(parts: Sequence[str], height: float, title: str) -> str:
    label = html.escape(title, quote=True)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role=img aria-label="{label}">{"".join(parts)}</svg>'
    )


def _step(raw: float) -> float:
    size = 10 ** math.floor(math.log10(raw))
    return next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw)


def _tick(value: float) -> str:
    return f"{value:.4g}" if abs(value) > 1e-9 else "0"
