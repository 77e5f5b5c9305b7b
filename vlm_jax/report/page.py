"""One self-contained HTML page of a comparison: the verdict, charts, examples, then every table.

The page opens from disk, without a network or a server: its style, its script and the Vega-Lite
that draws its charts are inside. Every text of a model or a file is escaped.
"""

import functools
import importlib.resources
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import jinja2
from markupsafe import Markup

from vlm_jax.evals.comparison import Comparison
from vlm_jax.evals.frontier import FrontierPoint
from vlm_jax.evals.results import Results
from vlm_jax.report.charts import COLOURS, INK, SHAPES, SOFT, Mark, Series, forest, scatter
from vlm_jax.report.comparison import baseline_name
from vlm_jax.report.tables import Section, Table, interval
from vlm_jax.report.verdict import Verdict, verdicts

_LEGEND = 24  # arms that have room for their names
_BEYOND = 2  # points of the frontier drawn on either side of the arms
FRONTIER_NOTE = (
    "The line is what a plain end-of-caption bias gives for free, its biases written beside it; "
    "here is the part near the arms, a table below has all of it. "
    "Arms below the line hallucinate less than saying less would at the same recall. Outlined "
    "marks are controls, in the colour of their arm; small dots are single draws of random ones. "
    "Click a name to hide it."
)


def comparison_page(
    title: str,
    comparison: Comparison,
    tables: Sequence[Table],
    about: Results,
    examples: Sequence[Section] = (),
) -> str:
    """The page of a comparison.

    Args:
        title: of the page.
        comparison: what the charts show.
        tables: all of them are printed.
        about: the result whose versions, seeds and device the page names.
        examples: sections of `vlm_jax.report.examples`, after the charts.
    """
    sections = []
    if comparison.points:
        sections.append(Section("The say-less frontier", frontier_plot(comparison), FRONTIER_NOTE))
    if len(comparison.arms) > 1:
        for name in comparison.items:
            metric = comparison.primary(name)
            heading = f"{name}: change of {metric} from {baseline_name(comparison)}"
            sections.append(Section(heading, _forest(comparison, name, metric)))
    everything = [*sections, *examples, *(table.section() for table in tables)]
    return page(title, everything, about, verdicts(comparison))


def page(
    title: str, sections: Sequence[Section], about: Results, found: Sequence[Verdict] = ()
) -> str:
    """A whole HTML document around some sections.

    Args:
        title: of the page.
        sections: in order.
        about: the result whose config, versions, seeds and device the page names.
        found: a sentence an arm, on the first screen.
    """
    shown = [_Shown.of(number, one) for number, one in enumerate(sections)]
    charts = any("<figure class=chart" in one.body for one in sections)
    return _template().render(
        title=title,
        about=about_lines(about),
        verdicts=found,
        sections=shown,
        repeat=_repeat(about),
        style=Markup(_web("page.css")),
        script=Markup(_web("page.js")),
        library=Markup(vega_lite()) if charts else "",
    )


def about_lines(about: Results) -> list[str]:
    """The device, seeds and versions of a result, a line each."""
    versions = ", ".join(f"{name} {version}" for name, version in about.versions.items())
    seeds = ", ".join(f"{name} {seed}" for name, seed in about.seeds.items())
    return [f"{about.device}. Seeds: {seeds}.", f"{versions}."]


@functools.cache
def vega_lite() -> str:
    """Vega-Lite, Vega and vega-embed as one script, made for a page without a network."""
    import vl_convert

    bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle.replace("</script", "<\\/script")


@dataclass(frozen=True)
class _Shown:
    """A section as the template reads it."""

    id: str
    short: str
    heading: str
    body: Markup
    note: str

    @classmethod
    def of(cls, number: int, one: Section) -> "_Shown":
        short = one.heading if len(one.heading) <= 40 else f"{one.heading[:38].rstrip()}…"
        slug = re.sub(r"[^a-z0-9]+", "-", one.heading.lower()).strip("-")[:40]
        return cls(f"s{number}-{slug}", short, one.heading, Markup(one.body), one.note)


@functools.cache
def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("vlm_jax.report", "web")
    return jinja2.Environment(loader=loader, autoescape=True).get_template("page.html.jinja")


def _web(name: str) -> str:
    return (importlib.resources.files("vlm_jax.report") / "web" / name).read_text("utf-8")


def _repeat(about: Results) -> Mapping[str, str]:
    """What a reader needs to make the page again."""
    listed: dict[str, Any] = {
        "Protocol hash": about.protocol,
        "Seeds": json.dumps(dict(about.seeds)) if about.seeds else "",
        "Versions": "\n".join(f"{name} {version}" for name, version in about.versions.items()),
        "Config": json.dumps(about.config, indent=1, default=str) if about.config else "",
    }
    return {name: value for name, value in listed.items() if value}


def frontier_plot(comparison: Comparison, named: Collection[str] = ()) -> str:
    """The frontier's curve with every arm on it, by pooled recall and C_S.

    Args:
        comparison: what is drawn.
        named: the arms that are named and coloured, where there are many; all by default.
    """
    everyone = [arm.name for arm in comparison.arms]
    named = named or (everyone if len(everyone) <= _LEGEND else ())
    curve = [
        Mark(100 * p.recall, 100 * p.metric, text=f"{p.bias:+g}" if p.bias else "")
        for p in _near(comparison)
    ]
    series = [Series("say less (bias)", curve, SOFT, line=True, labels=True)]
    styles = _styles(comparison)
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


def _styles(comparison: Comparison) -> dict[str, tuple[str, str, bool]]:
    """Colour, shape and whether hollow, by arm.

    A control has the colour of the first arm that it is a control of, and a shape that no other
    control of that arm has.
    """
    own = {contrast.control: contrast.edit for contrast in reversed(comparison.contrasts)}
    found = {comparison.arms[0].name: (INK, "circle", False)}
    leads = [arm.name for arm in comparison.arms[1:] if arm.name not in own]
    for number, name in enumerate(leads):
        found[name] = (COLOURS[number % len(COLOURS)], "circle", False)
    seen: dict[str, int] = {}
    for arm in comparison.arms:
        if arm.name in own:
            edit = own[arm.name]
            number = seen[edit] = seen.get(edit, -1) + 1
            colour = found[edit][0] if edit in found else SOFT
            found[arm.name] = (colour, SHAPES[number % len(SHAPES)], True)
    return found


def _near(comparison: Comparison) -> Sequence[FrontierPoint]:
    """The part of the curve around the arms, which would be a speck on the whole of it."""
    recalls = [recall for arm in comparison.arms for recall in arm.pooled["recall"]]
    points = comparison.points
    below = sum(point.recall < min(recalls) for point in points)
    above = sum(point.recall > max(recalls) for point in points)
    first, last = max(below - _BEYOND, 0), len(points) - max(above - _BEYOND, 0)
    return points[first:last]


def _forest(comparison: Comparison, benchmark: str, metric: str) -> str:
    scale = 1 if comparison.plain(benchmark, metric) else 100
    rows = []
    styles = _styles(comparison)
    for arm in comparison.arms[1:]:
        change = arm.changes[benchmark][metric]
        text = f"{arm.name}: {interval(change, plain=scale == 1, signed=True)}"
        mark = Mark(scale * change.value, 0.0, scale * change.low, scale * change.high, text)
        colour, shape, hollow = styles[arm.name]
        rows.append(Series(arm.name, [mark], colour, hollow=hollow, shape=shape))
    unit = comparison.unit(benchmark, metric)
    return forest(rows, f"change of {metric}, {unit}", title=f"{benchmark}, change of {metric}")
