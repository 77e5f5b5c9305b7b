"""Plots as inline SVG: points with intervals, bars, maps. No script, no font, no file."""

import html
import math
from collections.abc import Mapping, Sequence
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


def bars(
    labels: Sequence[str], stacks: Mapping[str, Sequence[float]], y_label: str, *, title: str = ""
) -> str:
    """Draws stacked bars, what is positive above the line y = 0 and what is negative below.

    Args:
        labels: of the bars.
        stacks: name -> a value a bar; one colour each.
        y_label: of the axis.
        title: what the plot shows, for readers who do not see it.
    """
    ends = [0.0]
    for part in zip(*stacks.values()):
        ends += [sum(v for v in part if v > 0), sum(v for v in part if v < 0)]
    below, height = _BOTTOM + 40, HEIGHT - 60
    y = _Scale.over(ends, height - below, _TOP)
    right = WIDTH - _RIGHT + 110
    pitch = min((right - _LEFT) / max(len(labels), 1), 48.0)
    parts = [_rules(y, _LEFT, right, y_label)]
    for number, label in enumerate(labels):
        left, tops = round(_LEFT + pitch * (number + 0.1), 2), {True: 0.0, False: 0.0}
        for colour, (name, values) in zip(COLOURS, stacks.items()):
            value = values[number]
            start, end = tops[value > 0], tops[value > 0] + value
            top, bottom = sorted((y(start), y(end)))
            parts.append(
                f"<rect x={left} y={top} width={0.8 * pitch:.2f} height={bottom - top:.2f} "
                f'fill="{colour}">{_tip(f"{label}: {name} {value:+.3g}")}</rect>'
            )
            tops[value > 0] = end
        middle, base = round(left + 0.4 * pitch, 2), height - below + 14
        parts.append(
            f'<text transform="translate({middle} {base}) rotate(-45)" text-anchor=end>'
            f"{html.escape(label)}</text>"
        )
    parts.append(f'<path class=zero d="M{_LEFT} {y(0)}H{right}"/>')
    named = [Series(name, [], colour) for colour, name in zip(COLOURS, stacks)]
    parts.append(_legend(named, right + 18))
    return _svg(parts, height, title)


def maps(
    panels: Mapping[str, Sequence[Sequence[float]]], x_label: str, y_label: str, *, title: str = ""
) -> str:
    """Draws tables of signed values side by side: dark above zero, amber below, deep far from it.

    Args:
        panels: name -> rows of values, all of one shape; one scale of colours for all.
        x_label, y_label: what columns and rows are.
        title: what the plot shows, for readers who do not see it.
    """
    shapes = [(len(rows), len(rows[0])) for rows in panels.values()]
    deep, wide = shapes[0]
    largest = max((abs(v) for rows in panels.values() for row in rows for v in row), default=0.0)
    room = (WIDTH - _LEFT - 20) / len(panels)
    cell = min((room - 20) / wide, 360 / deep, 40.0)
    parts = [_text(14, _TOP + 14, y_label, "start")]
    for number, (name, rows) in enumerate(panels.items()):
        left, top = _LEFT + room * number, _TOP + 26.0
        parts.append(_text(left, top - 8, name, "start"))
        for i, row in enumerate(rows):
            if number == 0 and (deep <= 16 or i % 4 == 0):
                parts.append(_text(left - 8, top + cell * (i + 0.5) + 4, str(i), "end"))
            for j, value in enumerate(row):
                share = abs(value) / largest if largest else 0.0
                at = f"x={left + cell * j:.2f} y={top + cell * i:.2f}"
                size = f"width={cell:.2f} height={cell:.2f}"
                colour = "var(--ink)" if value >= 0 else COLOURS[4]
                tip = _tip(f"{name}: {y_label} {i}, {x_label} {j}: {value:+.3g}")
                parts.append(
                    f'<rect {at} {size} fill="{colour}" fill-opacity={share:.3f}>{tip}</rect>'
                )
        edge = f"width={cell * wide:.2f} height={cell * deep:.2f}"
        parts.append(f"<rect class=grid x={left} y={top} {edge} fill=none />")
        for j in range(0, wide, 1 if wide <= 16 else 4):
            parts.append(_text(left + cell * (j + 0.5), top + cell * deep + 16, str(j), "middle"))
    base = _TOP + 26.0 + cell * deep
    parts.append(_text(_LEFT, base + 36, f"{x_label}; deepest colour {largest:.3g}", "start"))
    return _svg(parts, base + 48, title)


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
    parts.append(_text((x.start + x.end) / 2, y.start + 40, x_label, "middle"))
    return "".join([*parts, _rules(y, x.start, x.end, y_label)])


def _rules(y: _Scale, left: float, right: float, label: str) -> str:
    """The lines and numbers of a vertical axis."""
    parts = []
    for tick in y.ticks:
        parts.append(f'<path class=grid d="M{left} {y(tick)}H{right}"/>')
        parts.append(_text(left - 8, y(tick) + 4, _tick(tick), "end"))
    middle = (y.start + y.end) / 2
    parts.append(
        f'<text transform="translate(16 {middle}) rotate(-90)" text-anchor=middle>'
        f"{html.escape(label)}</text>"
    )
    return "".join(parts)


def _legend(series: Sequence[Series], at: float = WIDTH - _RIGHT + 18) -> str:
    parts = []
    for number, one in enumerate(series):
        y = _TOP + 8 + _LEGEND_PITCH * number
        parts.append(_dot(at, y, one.colour, one.name, hollow=one.hollow))
        parts.append(_text(at + 11, y + 4, one.name, "start"))
    return "".join(parts)


def _dot(
    x: float, y: float, colour: str, text: str, radius: float = 4.5, *, hollow: bool = False
) -> str:
    tip = _tip(text) if text else ""
    paint = (
        f'fill="var(--paper)" stroke="{colour}" stroke-width=2' if hollow else f'fill="{colour}"'
    )
    return f"<circle cx={x} cy={y} r={radius} {paint}>{tip}</circle>"


def _tip(text: str) -> str:
    return f"<title>{html.escape(text)}</title>"


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
