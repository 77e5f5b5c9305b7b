"""Charts as Vega-Lite specifications: points with intervals, small multiples, bars, maps, lines.

In a page a chart is a `<figure>` that carries its specification as JSON; the page's script draws
it as SVG when the page opens (`vlm_jax/report/page.py` inlines Vega-Lite once for all of them).
Colours that follow the page's light or dark theme are CSS variables. `Chart.image` draws it
without a page.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from vlm_jax.report.web import island, render

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b85c93", "#9a7400", "#7a6fd0", "#5b8fc9", "#808080")
"""Colours that stay apart for colour-blind readers, of contrast 3 and more in both themes."""
SOFT, INK, PAPER = "var(--soft)", "var(--ink)", "var(--paper)"
PAIR = " \u2212 "
"""What stands between two names in a name of their difference."""
SHAPES = ("circle", "square", "diamond", "triangle-up", "cross", "triangle-down", "triangle-right")
"""Shapes of controls of one arm, told apart without colour."""

Spec = dict[str, Any]
_TIP: Spec = {"tooltip": {"field": "text"}, "description": {"field": "text"}}


@dataclass(frozen=True)
class Mark:
    """A point, with optional interval ends, what its tooltip says, and what stands beside it."""

    x: float
    y: float
    low: float = math.nan
    high: float = math.nan
    text: str = ""
    label: str = ""


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
        labels: whether the marks' labels are written beside them, where there is room.
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


@dataclass(frozen=True)
class Chart:
    """A drawing; `str` of it, as in a template, is its figure in a page.

    Attributes:
        title: what it shows, for readers who do not see it.
        spec: of Vega-Lite, with the page's CSS variables for colours of its theme.
        series: those that a switch hides.
        note: a line under it.
    """

    title: str
    spec: Spec
    series: tuple[Series, ...] = ()
    note: str = ""

    @property
    def content(self) -> Markup:
        """The specification as JSON that no element can be ended by."""
        return island(self.spec)

    def __html__(self) -> str:
        return render("chart.html.jinja", chart=self, glyphs=_GLYPHS, paper=PAPER)

    def __str__(self) -> str:
        return self.__html__()

    def image(self, kind: str) -> bytes:
        """Returns it as a file of kind "png", "pdf" or "svg", in the colours of paper."""
        import vl_convert

        spec = dict(self.spec)
        if "layer" in spec:
            spec |= {"width": _PAPER_WIDTH, "autosize": "pad"}
            spec["layer"] = [*spec["layer"], *_legend(self.series)]
        spec = json.loads(_on_paper(json.dumps(spec)))
        spec |= {"background": "white", "padding": 12, "config": _PAPER_CONFIG}
        if kind == "png":
            return vl_convert.vegalite_to_png(spec, scale=2)
        if kind == "svg":
            return vl_convert.vegalite_to_svg(spec).encode()
        return vl_convert.vegalite_to_pdf(spec)


_PAPER_WIDTH = 640
_PAPER_CONFIG = {"axis": {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}}
_ON_PAPER = {SOFT: "#5b6570", INK: "#1b1f24", PAPER: "#ffffff", "var(--line)": "#d9dee3"}


def _legend(series: Sequence[Series]) -> list[Spec]:
    """Layers that name series beside a drawing, where there is nothing to click."""
    layers: list[Spec] = []
    for n, one in enumerate(series):
        at = lambda x, n=n: {"x": {"value": _PAPER_WIDTH + x}, "y": {"value": 8 + 20 * n}}
        text = {"type": "text", "align": "left", "fontSize": 12, "text": one.name, "color": INK}
        layers.append({"data": {"values": [{}]}, "mark": _dot(one), "encoding": at(24)})
        layers.append({"data": {"values": [{}]}, "mark": text, "encoding": at(36)})
    return layers


def _on_paper(text: str) -> str:
    for variable, colour in _ON_PAPER.items():
        text = text.replace(variable, colour)
    return text


def scatter(
    series: Sequence[Series], x_label: str, y_label: str, *, zero: bool = False, title: str = ""
) -> Chart:
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
            encoding = {**_xy(x_label, y_label), "text": {"field": "label"}}
            layers.append(
                {"data": texts, "transform": [_unless_hidden()], "mark": mark, "encoding": encoding}
            )
    return _chart({"height": 340, "layer": layers}, title, series)


def multiples(
    panels: Mapping[str, Sequence[Series]], *, zero: bool = True, title: str = ""
) -> Chart:
    """Draws an interval a row, panels side by side that have the rows in common.

    Args:
        panels: what its axis says -> rows, each with one mark, its value in x and its ends.
        zero: whether a line at 0 is drawn (and in range).
        title: what the chart shows, for readers who do not see it.
    """
    order = list(dict.fromkeys(row.name for rows in panels.values() for row in rows))
    values = [
        {
            **_point(row, mark),
            "panel": panel,
            "colour": row.colour,
            "fill": PAPER if row.hollow else row.colour,
            "shape": row.shape,
        }
        for panel, rows in panels.items()
        for row in rows
        for mark in row.marks
        if math.isfinite(mark.x)
    ]
    as_it_is = lambda field: {"field": field, "type": "nominal", "scale": None}
    # Names of two that are compared stand on two lines: a phone has no room for both.
    pairs = [name for name in order if PAIR in name]
    two_lines = {
        "labelExpr": f"split(replace(datum.label, '{PAIR}', '\\n{PAIR.lstrip()}'), '\\n')",
        "labelOffset": -7,
    }
    y = {
        "field": "name",
        "type": "nominal",
        "sort": order,
        "title": None,
        "axis": {"labelLimit": 190, "ticks": False, "domain": False, "grid": True}
        | (two_lines if pairs else {}),
    }
    axis = {"type": "quantitative", "title": None, "axis": {"tickCount": 5, "grid": False}}
    free = {"scale": {"zero": False, "nice": True}}
    rule = {
        "mark": {"type": "rule", "strokeWidth": 2},
        "transform": [{"filter": "isValid(datum.low)"}],
    }
    ends = {"y": y, "x": {"field": "low", **axis, **free}, "x2": {"field": "high"}}
    dot = {"y": y, "x": {"field": "x", **axis, **free}, **_TIP, "shape": as_it_is("shape")}
    dot |= {"fill": as_it_is("fill"), "stroke": as_it_is("colour")}
    layers: list[Spec] = [
        {**rule, "encoding": {**ends, "color": as_it_is("colour")}},
        {"mark": {"type": "point", "size": 75, "strokeWidth": 2, "opacity": 1}, "encoding": dot},
    ]
    if zero:
        line = {"type": "rule", "strokeDash": [4, 3], "color": SOFT, "strokeWidth": 1.5}
        layers.insert(0, {"mark": line, "encoding": {"x": {"datum": 0, "type": "quantitative"}}})
    spec = _panels(list(panels), values, layers, {"step": 36 if pairs else 24})
    return _chart({**spec, "resolve": {"scale": {"x": "independent"}}}, title, ())


def lines(
    panels: Mapping[str, Sequence[Series]], x_label: str, y_label: str, *, title: str = ""
) -> Chart:
    """Draws lines, a panel beside the other.

    Args:
        panels: name -> lines; the ends of a mark make a band about its line.
        x_label, y_label: of the axes.
        title: what the chart shows, for readers who do not see it.
    """
    values = [
        {**_point(one, mark), "panel": panel, "colour": one.colour}
        for panel, found in panels.items()
        for one in found
        for mark in one.marks
    ]
    colour = {"field": "colour", "type": "nominal", "scale": None}
    x = {**_number("x", x_label), "axis": {"tickMinStep": 1}, "scale": {"zero": False}}
    y = _number("y", y_label)
    band = {"x": x, "y": {**y, "field": "low"}, "y2": {"field": "high"}, "color": colour}
    layers = [
        {"mark": {"type": "area", "opacity": 0.15}, "encoding": band},
        {"mark": {"type": "line", "strokeWidth": 2}, "encoding": {"x": x, "y": y, "color": colour}},
        {
            "mark": {"type": "point", "filled": True, "size": 30, "opacity": 1},
            "encoding": {"x": x, "y": y, "color": colour, **_TIP},
        },
    ]
    spec = _panels(list(panels), values, layers, 160)
    return _chart(spec, title, next(iter(panels.values()), ()))


def bars(
    labels: Sequence[str], stacks: Mapping[str, Sequence[float]], y_label: str, *, title: str = ""
) -> Chart:
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
    return _chart({"height": 280, "layer": layers}, title, series)


def maps(
    panels: Mapping[str, Sequence[Sequence[float]]],
    x_label: str,
    y_label: str,
    *,
    title: str = "",
    outlined: Mapping[str, Sequence[tuple[int, int]]] = {},
    alike: bool = True,
) -> Chart:
    """Draws heat maps of signed values side by side: blue above zero, orange below.

    Args:
        panels: name -> rows of values, all of one shape; one scale of colours for all.
        x_label, y_label: what columns and rows are.
        title: what the chart shows, for readers who do not see it.
        outlined: name -> (row, column) of cells that are framed, such as a selected set of heads:
            the first ones by a line, the others by a ring in them.
        alike: whether the panels have one scale of colours, or each its own.
    """
    own = {n: max((abs(v) for row in rows for v in row), default=0.0) for n, rows in panels.items()}
    largest = dict.fromkeys(own, max(own.values())) if alike else own
    rows = next(iter(panels.values()))
    cell = 22 if max(len(rows), len(rows[0])) <= 16 else 10
    plain = {"labelAngle": 0, "grid": False}
    places = {
        "x": {"field": "column", "type": "ordinal", "title": x_label, "axis": plain},
        "y": {"field": "row", "type": "ordinal", "title": y_label, "axis": plain},
    }
    encoding = {
        **places,
        "color": {"field": "colour", "type": "nominal", "scale": None},
        "fillOpacity": {"field": "depth", "type": "quantitative", "scale": None},
        "stroke": {"condition": {"test": "datum.framed", "value": INK}, "value": "var(--line)"},
        "strokeWidth": {"condition": {"test": "datum.framed", "value": 2}, "value": 0.5},
        **_TIP,
    }
    ring = {
        "transform": [{"filter": "datum.ringed"}],
        "mark": {"type": "point", "shape": "circle", "size": 40, "strokeWidth": 1.5, "stroke": INK},
        "encoding": {**places, **_TIP},
    }
    fit = max(1, min(len(panels), 880 // (cell * len(rows[0]) + 60)))
    columns = -(-len(panels) // -(-len(panels) // fit))  # as many rows, filled: four are 2 x 2
    spec: Spec = {
        "data": {"values": _cells(panels, largest, (y_label, x_label), outlined)},
        "facet": _facet(list(panels)),
        "columns": columns,
        "spec": {
            "width": {"step": cell},
            "height": {"step": cell},
            "layer": [{"mark": {"type": "rect"}, "encoding": encoding}, ring],
        },
    }
    depths = [f"{largest[name]:.3g} of {name}" for name in panels]
    depth = f"{max(own.values()):.3g}" if alike else ", ".join(depths)
    words = [f"; {'a ring' if n else 'a frame'}: {name} heads" for n, name in enumerate(outlined)]
    note = f"The deepest colour is {depth}{''.join(words)}."
    return _chart(spec, title, (), note)


def _cells(
    panels: Mapping[str, Sequence[Sequence[float]]],
    largest: Mapping[str, float],
    labels: tuple[str, str],
    outlined: Mapping[str, Sequence[tuple[int, int]]],
) -> list[Spec]:
    """Returns the cells of heat maps: place, colour, depth from 0 to 1, outline, tooltip.

    Args:
        panels, outlined: see `maps`.
        largest: name -> the value of depth 1.
        labels: what rows and columns are.
    """
    framed = {cell: name for name, cells in [*outlined.items()][::-1] for cell in cells}
    first = next(iter(outlined), None)
    return [
        {
            "panel": name,
            "row": i,
            "column": j,
            "colour": COLOURS[0] if value >= 0 else COLOURS[1],
            "depth": abs(value) / largest[name] if largest[name] else 0.0,
            "framed": framed.get((i, j), "") == first,
            "ringed": framed.get((i, j), first) != first,
            "text": f"{name}: {labels[0]} {i}, {labels[1]} {j}: {value:+.3g}"
            + (f" ({framed[i, j]})" if (i, j) in framed else ""),
        }
        for name, rows in panels.items()
        for i, row in enumerate(rows)
        for j, value in enumerate(row)
    ]


_PANEL = 200
"""Width of a small multiple where nothing else says so; a page fits them to its own."""


def _panels(
    names: Sequence[str], values: Sequence[Spec], layers: Sequence[Spec], height: Any
) -> Spec:
    """Small multiples: the same layers for the values of each panel, three in a row at most."""
    return {
        "data": {"values": values},
        "transform": [_unless_hidden()],
        "facet": _facet(names, labelFontSize=12),
        "columns": min(3, len(names)),
        "spec": {"width": _PANEL, "height": height, "layer": layers},
    }


def _facet(names: Sequence[str], **header: Any) -> Spec:
    """A panel for each value of the field `panel`, its name above it."""
    header = {"labelColor": INK, "labelFontWeight": "bold", **header}
    return {
        "field": "panel",
        "type": "nominal",
        "title": None,
        "sort": names,
        "header": header,
    }


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
    texts = {"text": mark.text or one.name, "name": one.name, "of": one.of or one.name}
    return {**known, **texts, **({"label": mark.label} if mark.label else {})}


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
        if mark.label and all(far(other) for other in kept):
            kept.append(mark)
    return kept


_GLYPHS = {
    "circle": "M0 -5A5 5 0 1 1 0 5A5 5 0 1 1 0 -5Z",
    "square": "M-4.5 -4.5H4.5V4.5H-4.5Z",
    "diamond": "M0 -6L4.5 0L0 6L-4.5 0Z",
    "triangle-up": "M0 -5.5L5.5 4.5H-5.5Z",
    "cross": "M-5.5 -2H-2V-5.5H2V-2H5.5V2H2V5.5H-2V2H-5.5Z",
    "triangle-down": "M0 5.5L5.5 -4.5H-5.5Z",
    "triangle-right": "M5.5 0L-4.5 5.5V-5.5Z",
}


def _chart(spec: Spec, title: str, series: Sequence[Series], note: str = "") -> Chart:
    """A chart with switches for its named series."""
    hidden = {"name": "hidden", "value": []}
    size = {"width": "container", "autosize": {"type": "fit", "contains": "padding"}}
    whole = {"params": [hidden], **({} if "facet" in spec else size), **spec}
    named = {one.name: one for one in series if one.name}
    return Chart(title, whole, tuple(named.values()), note)
