"""One self-contained HTML page: what was found in a sentence each, then sections by part.

The page opens from disk, without a network or a server: its style, its script and the Vega-Lite
that draws its charts are inside. Every text of a model or a file is escaped.
"""

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_jax.evals.results import Results
from vlm_jax.report.charts import Chart
from vlm_jax.report.tables import Section
from vlm_jax.report.verdict import Verdict
from vlm_jax.report.web import asset, render, vega_lite


def page(
    title: str,
    sections: Sequence[Section],
    about: Results,
    found: Sequence[Verdict] = (),
    lead: str = "",
) -> str:
    """A whole HTML document around some sections.

    Args:
        title: of the page.
        sections: in order; those of one part stand together.
        about: the result whose command, config, versions, seeds and device the page names.
        found: a sentence an arm, on the first screen.
        lead: what was compared.
    """
    charts = any(isinstance(one.body, Chart) for one in sections)
    return render(
        "page.html.jinja",
        title=title,
        lead=lead,
        about=_about_line(about),
        verdicts=found,
        tones=_TONES,
        parts=_parts(sections),
        repeat=_repeat(about),
        style=asset("page.css"),
        script=asset("page.js"),
        library=vega_lite() if charts else "",
    )


_TONES = {"better": "better", "worse": "worse", "": "not told apart"}


@dataclass(frozen=True)
class _Part:
    """Sections under one heading of the page."""

    id: str
    name: str
    sections: Sequence[Section]

    @property
    def alone(self) -> bool:
        """Whether it is one section, which has no heading of its own then."""
        return len(self.sections) == 1 and not self.sections[0].folded


def _parts(sections: Sequence[Section]) -> list[_Part]:
    groups = itertools.groupby(sections, lambda one: one.part or one.heading)
    return [_Part(_id(n, name), name, list(own)) for n, (name, own) in enumerate(groups)]


def _id(number: int, name: str) -> str:
    return f"s{number}-{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')[:40]}"


def _about_line(about: Results) -> str:
    """When, on what, with which seeds."""
    date = str(about.made.get("date", "")).split("T")[0]
    seeds = ", ".join(f"{name} seed {seed}" for name, seed in about.seeds.items())
    protocol = f"protocol {about.protocol}" if about.protocol else ""
    version = f"vlm_jax {about.versions['vlm_jax']}" if "vlm_jax" in about.versions else ""
    return " · ".join(filter(None, [date, about.device, seeds, protocol, version]))


def _repeat(about: Results) -> Mapping[str, str]:
    """What a reader needs to make the page again."""
    listed: dict[str, Any] = {
        "Command": about.made.get("command"),
        "Made": about.made.get("date"),
        "Commit": about.made.get("commit"),
        "First prompt": about.prompt,
        "Protocol hash": about.protocol,
        "Device": about.device,
        "Seeds": ", ".join(f"{name} {seed}" for name, seed in about.seeds.items()),
        "Versions": ", ".join(f"{name} {version}" for name, version in about.versions.items()),
        "Config": json.dumps(about.config, indent=1, default=str) if about.config else "",
    }
    return {name: str(value) for name, value in listed.items() if value}
