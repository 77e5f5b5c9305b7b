"""One self-contained HTML page of a comparison: plots first, then every table."""

import html
from collections.abc import Collection, Sequence
from statistics import mean

from vlm_jax.evals.comparison import Comparison, primary_metric
from vlm_jax.evals.frontier import FrontierPoint
from vlm_jax.evals.results import Results
from vlm_jax.report.plots import COLOURS, Mark, Series, forest, scatter
from vlm_jax.report.tables import Table, interval

_LEGEND = 24  # arms that have room for their names
_BEYOND = 2  # points of the frontier drawn on either side of the arms
FRONTIER_NOTE = (
    "The line is what a plain end-of-caption bias gives for free, its biases written beside it; "
    "here is the part near the arms, a table below has all of it. "
    "Arms below the line hallucinate less than saying less would at the same recall. Rings are "
    "controls, in the colour of their arm; small dots are single draws of random ones."
)
_STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#5b6570;--line:#d9dee3;--paper:#fff}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ec;--soft:#9aa4ae;--line:#39414a;--paper:#14181c}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);
max-width:1080px;margin:32px auto;padding:0 20px}
h1{font-size:24px;margin:0 0 4px}h2{font-size:17px;margin:36px 0 8px}
p.note,p.about{color:var(--soft);margin:6px 0;font-size:13px}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:13px;white-space:nowrap}
th,td{padding:4px 12px;text-align:right;border-bottom:1px solid var(--line);
font-variant-numeric:tabular-nums}
th:first-child{text-align:left}thead th{border-bottom:2px solid var(--soft)}
tbody th{font-weight:600}
svg{width:100%;max-width:1000px;height:auto;font:12px system-ui,sans-serif}
svg text{fill:var(--ink)}.grid{stroke:var(--line)}
.zero{stroke:var(--soft);stroke-width:1.5;stroke-dasharray:4 3}
"""


def comparison_page(
    title: str, comparison: Comparison, tables: Sequence[Table], about: Results
) -> str:
    """The page of a comparison.

    Args:
        title: of the page.
        comparison: what the plots show.
        tables: all of them are printed.
        about: the result whose versions, seeds and device the page names.
    """
    sections = []
    if comparison.points:
        sections.append(section("The say-less frontier", frontier_plot(comparison), FRONTIER_NOTE))
    if len(comparison.arms) > 1:
        for name in comparison.items:
            metric = primary_metric(comparison.baseline.levels[name])
            heading = f"{name}: change of {metric} from the unedited model"
            sections.append(section(heading, _forest(comparison, name, metric)))
    return page(title, [*sections, *(table.html() for table in tables)], about)


def page(title: str, sections: Sequence[str], about: Results) -> str:
    """A whole HTML document around some sections."""
    versions = ", ".join(f"{name} {version}" for name, version in about.versions.items())
    seeds = ", ".join(f"{name} {seed}" for name, seed in about.seeds.items())
    lines = [f"{about.device}. Seeds: {seeds}.", f"{versions}."]
    notes = "".join(f"<p class=about>{html.escape(line)}</p>" for line in lines)
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width,initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><h1>{html.escape(title)}</h1>{notes}{''.join(sections)}</body></html>\n"
    )


def section(heading: str, plot: str, note: str = "") -> str:
    """A plot under a heading."""
    text = f"<p class=note>{html.escape(note)}</p>" if note else ""
    return f"<section><h2>{html.escape(heading)}</h2>{plot}{text}</section>"


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
    series = [Series("say less (bias)", curve, "var(--soft)", line=True, labels=True)]
    colours = _colours(comparison)
    controls = {contrast.control for contrast in comparison.contrasts}
    for arm in sorted(comparison.arms, key=lambda arm: arm.name in named):
        colour = colours[arm.name] if arm.name in named or not named else "var(--soft)"
        draws = [
            Mark(100 * recall, 100 * c_s, text=f"{arm.name}, draw {draw + 1}")
            for draw, (recall, c_s) in enumerate(zip(arm.pooled["recall"], arm.pooled["C_S"]))
        ]
        if len(draws) > 1:
            series.append(Series("", draws, colour, faint=True))
        middle = Mark(mean([m.x for m in draws]), mean([m.y for m in draws]), text=arm.name)
        known = arm.name in named
        name = arm.name if known else ""
        background = bool(named) and not known
        ring = arm.name in controls
        series.append(Series(name, [middle], colour, hollow=ring, faint=background))
    where = " + ".join(comparison.pooled)
    return scatter(
        series, f"recall, % ({where})", "C_S, %", title="Hallucinated captions against recall"
    )


def _colours(comparison: Comparison) -> dict[str, str]:
    """A colour an arm; a control has that of the first arm that it is a control of."""
    own = {contrast.control: contrast.edit for contrast in reversed(comparison.contrasts)}
    found = {comparison.arms[0].name: "var(--ink)"}
    leads = [arm.name for arm in comparison.arms[1:] if arm.name not in own]
    found |= {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(leads)}
    return found | {name: found.get(edit, "var(--soft)") for name, edit in own.items()}


def _near(comparison: Comparison) -> Sequence[FrontierPoint]:
    """The part of the curve around the arms, which would be a speck on the whole of it."""
    recalls = [recall for arm in comparison.arms for recall in arm.pooled["recall"]]
    points = comparison.points
    below = sum(point.recall < min(recalls) for point in points)
    above = sum(point.recall > max(recalls) for point in points)
    first, last = max(below - _BEYOND, 0), len(points) - max(above - _BEYOND, 0)
    return points[first:last]


def _forest(comparison: Comparison, benchmark: str, metric: str) -> str:
    scale = 1 if metric in comparison.units else 100
    rows = []
    colours = _colours(comparison)
    controls = {contrast.control for contrast in comparison.contrasts}
    for arm in comparison.arms[1:]:
        change = arm.changes[benchmark][metric]
        text = interval(change, plain=scale == 1, signed=True)
        mark = Mark(scale * change.value, 0.0, scale * change.low, scale * change.high, text)
        rows.append(Series(arm.name, [mark], colours[arm.name], hollow=arm.name in controls))
    unit = comparison.units.get(metric, "points")
    return forest(rows, f"change of {metric}, {unit}", title=f"{benchmark}, change of {metric}")
