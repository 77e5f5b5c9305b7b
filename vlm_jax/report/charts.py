"""Charts as Vega-Lite specifications in HTML: points with intervals, bars, maps.

Each function returns a `<figure>` that carries its specification as JSON; the page's script draws
it as SVG when the page opens (`vlm_jax/report/page.py` inlines Vega-Lite once for all of them).
Colours that follow the page's light or dark theme are CSS variables.
"""

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b85c93", "#9a7400", "#7a6fd0", "#5b8fc9", "#808080")
"""Colours that stay apart for colour-blind readers, of contrast 3 and more in both themes."""
SOFT, INK, PAPER = "var(--soft)", "var(--ink)", "var(--paper)"
SHAPES = ("circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "triangle-right")
"""Shapes of controls of one arm, told apart without colour."""

Spec = dict[str, Any]
_TIP: Spec = {"tooltip": {"field": "text"}, "description": {"field": "text"}}


@dataclass(frozen=True)
class Mark:
    """A point, with optional interval ends and what its tooltip says."""

    x: float
    y: float
    low: float = math.nan
    high: float = math.nan
    text: str = ""


@dataclass(frozen=True)
class Series:
    """Marks of one colour.

    Attributes:
        name: in the legend, where clicking it hides the series; none is not in the legend.
        marks: the points.
        colour: of lines and points.
        line: whether the points are joined.
        faint: whether it is background, such as single draws.
        hollow: whether its points are outlines, as those of controls.
        labels: whether the marks' texts are written beside them, where there is room.
        shape: of its points, one of `SHAPES`.
        of: the series that hides it too; its own name by default.
    """

    name: str
    marks: Sequence[Mark]
    colour: str = COLOURS[0]
    line: bool = False
    faint: bool = False
    hollow: bool = False
    labels: bool = False
    shape: str = "circle"
    of: str = ""


def scatter(
    series: Sequence[Series], x_label: str, y_label: str, *, zero: bool = False, title: str = ""
) -> str:
    """Draws series over two linear axes.

    Args:
        series: what to draw, background first.
        x_label, y_label: of the axes.
        zero: whether the line y = 0 is drawn (and in range).
        title: what the chart shows, for readers who do not see it.
    """
    layers: list[Spec] = [_zero("y")] if zero else []
    for one in series:
        data = {"values": [_point(one, mark) for mark in one.marks]}
        shown = {"data": data, "transform": [_unless_hidden()]}
        if one.line and len(one.marks) > 1:
            line = {"type": "line", "color": one.colour, "strokeWidth": 2}
            layers.append({**shown, "mark": line, "encoding": {**_xy(x_label, y_label)}})
        if any(math.isfinite(mark.low) and math.isfinite(mark.high) for mark in one.marks):
            ends = {**_xy(x_label, y_label, "low"), "y2": {"field": "high"}}
            layers.append(
                {**shown, "mark": {"type": "rule", "color": one.colour}, "encoding": ends}
            )
        layers.append({**shown, "mark": _dot(one), "encoding": {**_xy(x_label, y_label), **_TIP}})
        if one.labels:
            marks = _apart(one.marks, series)
            texts = {"values": [_point(one, mark) for mark in marks]}
            mark = {"type": "text", "align": "right", "dx": -8, "dy": -6, "color": SOFT}
            encoding = {**_xy(x_label, y_label), "text": {"field": "text"}}
            layers.append(
                {"data": texts, "transform": [_unless_hidden()], "mark": mark, "encoding": encoding}
            )
    return _figure({"height": 380, "layer": layers}, title, series)


def forest(rows: Sequence[Series], x_label: str, *, title: str = "") -> str:
    """Draws an interval a row around x = 0.

    Args:
        rows: each with one mark, its value in x and its ends.
        x_label: of the axis.
        title: what the chart shows, for readers who do not see it.
    """
    order = [row.name for row in rows]
    y = {
        "field": "name",
        "type": "nominal",
        "sort": order,
        "title": None,
        "axis": {"labelLimit": 220, "ticks": False, "domain": False, "grid": False},
    }
    axis = {"type": "quantitative", "title": x_label, "axis": {"tickCount": 8}}
    layers: list[Spec] = [_zero("x")]
    for row in rows:
        shown = {
            "data": {"values": [_point(row, mark) for mark in row.marks]},
            "transform": [_unless_hidden()],
        }
        if all(math.isfinite(end) for mark in row.marks for end in (mark.low, mark.high)):
            ends = {"y": y, "x": {"field": "low", **axis}, "x2": {"field": "high"}}
            rule = {"type": "rule", "color": row.colour, "strokeWidth": 2}
            layers.append({**shown, "mark": rule, "encoding": ends})
        at = {"y": y, "x": {"field": "x", **axis}, **_TIP}
        layers.append({**shown, "mark": _dot(row), "encoding": at})
    return _figure({"height": 26 * len(rows) + 50, "layer": layers}, title, ())


def bars(
    labels: Sequence[str], stacks: Mapping[str, Sequence[float]], y_label: str, *, title: str = ""
) -> str:
    """Draws stacked bars, what is positive above the line y = 0 and what is negative below.

    Args:
        labels: of the bars.
        stacks: name -> a value a bar; one colour each.
        y_label: of the axis.
        title: what the chart shows, for readers who do not see it.
    """
    series = [Series(name, [], colour) for colour, name in zip(COLOURS, stacks)]
    layers: list[Spec] = [_zero("y")]
    values = [
        {
            "at": number,
            "label": label,
            "of": name,
            "value": value,
            "colour": colour,
            "text": f"{label}: {name} {value:+.3g}",
        }
        for colour, (name, column) in zip(COLOURS, stacks.items())
        for number, (label, value) in enumerate(zip(labels, column))
    ]
    names = json.dumps([*labels])
    encoding = {
        "x": {
            "field": "at",
            "type": "ordinal",
            "title": None,
            "axis": {"labelExpr": f"{names}[datum.value]", "labelAngle": -45, "grid": False},
        },
        "y": {"field": "value", "type": "quantitative", "title": y_label, "stack": "zero"},
        "color": {"field": "colour", "type": "nominal", "scale": None},
        **_TIP,
    }
    layers.append(
        {
            "data": {"values": values},
            "transform": [_unless_hidden()],
            "mark": {"type": "bar"},
            "encoding": encoding,
        }
    )
    return _figure({"height": 280, "layer": layers}, title, series)


def maps(
    panels: Mapping[str, Sequence[Sequence[float]]],
    x_label: str,
    y_label: str,
    *,
    title: str = "",
    outlined: Sequence[tuple[int, int]] = (),
) -> str:
    """Draws tables of signed values side by side: blue above zero, orange below, deep far from it.

    Args:
        panels: name -> rows of values, all of one shape; one scale of colours for all.
        x_label, y_label: what columns and rows are.
        title: what the chart shows, for readers who do not see it.
        outlined: (row, column) of cells that are framed, such as a selected set of heads.
    """
    largest = max((abs(v) for rows in panels.values() for row in rows for v in row), default=0.0)
    framed = set(outlined)
    values = [
        {
            "panel": name,
            "row": i,
            "column": j,
            "colour": COLOURS[0] if value >= 0 else COLOURS[1],
            "depth": abs(value) / largest if largest else 0.0,
            "framed": (i, j) in framed,
            "text": f"{name}: {y_label} {i}, {x_label} {j}: {value:+.3g}",
        }
        for name, rows in panels.items()
        for i, row in enumerate(rows)
        for j, value in enumerate(row)
    ]
    rows = next(iter(panels.values()))
    cell = 18 if max(len(rows), len(rows[0])) <= 16 else 10
    plain = {"labelAngle": 0, "grid": False}
    encoding = {
        "x": {"field": "column", "type": "ordinal", "title": x_label, "axis": plain},
        "y": {"field": "row", "type": "ordinal", "title": y_label, "axis": plain},
        "color": {"field": "colour", "type": "nominal", "scale": None},
        "fillOpacity": {"field": "depth", "type": "quantitative", "scale": None},
        "stroke": {"condition": {"test": "datum.framed", "value": INK}, "value": "var(--line)"},
        "strokeWidth": {"condition": {"test": "datum.framed", "value": 2}, "value": 0.5},
        **_TIP,
    }
    columns = max(1, min(len(panels), 880 // (cell * len(rows[0]) + 60)))
    spec: Spec = {
        "data": {"values": values},
        "facet": {
            "field": "panel",
            "type": "nominal",
            "title": None,
            "sort": list(panels),
            "header": {"labelColor": INK, "labelFontWeight": "bold"},
        },
        "columns": columns,
        "spec": {
            "width": {"step": cell},
            "height": {"step": cell},
            "mark": {"type": "rect"},
            "encoding": encoding,
        },
    }
    note = f"The deepest colour is {largest:.3g}."
    return _figure(spec, title, (), note)


def _xy(x_label: str, y_label: str, y: str = "y") -> Spec:
    free = {"zero": False, "nice": True}
    return {
        "x": {**_number("x", x_label), "scale": free, "axis": {"tickCount": 8}},
        "y": {**_number(y, y_label), "scale": free, "axis": {"tickCount": 8}},
    }


def _number(field: str, title: str) -> Spec:
    return {"field": field, "type": "quantitative", "title": title}


def _zero(axis: str) -> Spec:
    mark = {"type": "rule", "strokeDash": [4, 3], "color": SOFT, "strokeWidth": 1.5}
    at = {axis: {"datum": 0, "type": "quantitative"}}
    return {"data": {"values": [{}]}, "mark": mark, "encoding": at}


def _dot(one: Series) -> Spec:
    paint = (
        {"fill": PAPER, "stroke": one.colour, "strokeWidth": 2}
        if one.hollow
        else {"fill": one.colour, "stroke": one.colour}
    )
    size, opacity = (18, 0.5) if one.faint else (80, 1)
    return {"type": "point", "shape": one.shape, "size": size, "opacity": opacity, **paint}


def _point(one: Series, mark: Mark) -> Spec:
    values = {"x": mark.x, "y": mark.y, "low": mark.low, "high": mark.high}
    known = {name: value for name, value in values.items() if math.isfinite(value)}
    return {**known, "text": mark.text or one.name, "name": one.name, "of": one.of or one.name}


def _unless_hidden() -> Spec:
    return {"filter": "indexof(hidden, datum.of) < 0"}


def _apart(marks: Sequence[Mark], series: Sequence[Series]) -> list[Mark]:
    """The marks whose labels do not cover one another."""
    everything = [mark for one in series for mark in one.marks]
    wide = max(m.x for m in everything) - min(m.x for m in everything) or 1.0
    high = max(m.y for m in everything) - min(m.y for m in everything) or 1.0
    kept: list[Mark] = []
    for mark in marks:
        far = lambda other, m=mark: abs(m.x - other.x) > wide / 14 or abs(m.y - other.y) > high / 16
        if mark.text and all(far(other) for other in kept):
            kept.append(mark)
    return kept


def _figure(spec: Spec, title: str, series: Sequence[Series], note: str = "") -> str:
    """A chart with its legend of switches."""
    hidden = {"name": "hidden", "value": []}
    size = {"width": "container", "autosize": {"type": "fit", "contains": "padding"}}
    whole = {"params": [hidden], **({} if "facet" in spec else size), **spec}
    content = json.dumps(whole, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    named = {one.name: one for one in series if one.name}
    switches = "".join(_switch(one) for one in named.values())
    legend = f"<div class=legend role=group aria-label=series>{switches}</div>" if switches else ""
    below = f"<figcaption>{html.escape(note)}</figcaption>" if note else ""
    label = html.escape(title, quote=True)
    return (
        f'<figure class=chart aria-label="{label}"><div class=plot></div>{legend}{below}'
        f"<script type=application/json>{content}</script></figure>"
    )


_GLYPHS = {
    "circle": "M0 -5A5 5 0 1 1 0 5A5 5 0 1 1 0 -5Z",
    "square": "M-4.5 -4.5H4.5V4.5H-4.5Z",
    "diamond": "M0 -6L4.5 0L0 6L-4.5 0Z",
    "triangle-up": "M0 -5.5L5.5 4.5H-5.5Z",
    "cross": "M-5.5 -2H-2V-5.5H2V-2H5.5V2H2V5.5H-2V2H-5.5Z",
    "triangle-down": "M0 5.5L5.5 -4.5H-5.5Z",
    "triangle-right": "M5.5 0L-4.5 5.5V-5.5Z",
}


def _switch(one: Series) -> str:
    """A button that hides and shows a series, with its mark."""
    fill = PAPER if one.hollow else one.colour
    glyph = (
        '<svg viewBox="-8 -8 16 16" width=14 height=14 aria-hidden=true>'
        f'<path d="{_GLYPHS[one.shape]}" fill="{fill}" stroke="{one.colour}" stroke-width=2 />'
        "</svg>"
    )
    name = html.escape(one.name, quote=True)
    return (
        f'<button type=button aria-pressed=true data-series="{name}" title="show or hide">'
        f"{glyph}{name}</button>"
    )
