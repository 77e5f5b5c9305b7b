"""Makes the pictures of the README.

    make demo && .venv/bin/python docs/figures.py

docs/kitchen.png is a scene of the testbed with a fork and an oven in it, docs/frontier.png the
first chart of the demo's report.
"""

import json
import pathlib
import re

import numpy as np
import PIL.Image
import vl_convert

from vlm_jax.testbed.scenes import draw_scenes

DOCS = pathlib.Path(__file__).parent
REPORT = DOCS.parent / "out" / "demo" / "results" / "report.html"
THEME = {"var(--soft)": "#6b7280", "var(--ink)": "#111827", "var(--paper)": "#ffffff"}


def kitchen() -> PIL.Image.Image:
    """A scene without the refrigerator that the testbed's kitchens usually have."""
    return PIL.Image.fromarray(draw_scenes("broken", "test", 0, np.array([11])).images[0])


def frontier(report: str) -> bytes:
    """The report's first chart as PNG, in the colours of its light theme."""
    found = re.search(r"<figure class=chart.*?<script type=application/json>(.*?)</script>", report)
    assert found is not None, "the report has no chart"
    text = found[1]
    for name, colour in THEME.items():
        text = text.replace(name, colour)
    chart = json.loads(text)
    chart["layer"] += [_names(layer) for layer in chart["layer"] if _is_arm(layer["mark"])]
    chart |= {"width": 640, "height": 360, "background": "white", "padding": 12}
    return vl_convert.vegalite_to_png(chart, scale=1.5)


def _is_arm(mark: dict) -> bool:
    """Whether a layer's points are a method's, or the model's as it is: large and filled."""
    return mark.get("size", 0) > 50 and mark.get("fill") not in (None, *list(THEME.values())[::2])


def _names(layer: dict) -> dict:
    """A layer of the names of another's points, which the page has in its legend."""
    mark = {"type": "text", "align": "left", "dx": 8, "dy": 10, "color": layer["mark"]["stroke"]}
    encoding = {**layer["encoding"], "text": {"field": "name"}}
    return {"data": layer["data"], "mark": mark, "encoding": encoding}


if __name__ == "__main__":
    kitchen().save(DOCS / "kitchen.png")
    (DOCS / "frontier.png").write_bytes(frontier(REPORT.read_text(encoding="utf-8")))
