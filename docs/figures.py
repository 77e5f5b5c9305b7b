"""Makes the pictures of the README.

    make demo && .venv/bin/python docs/figures.py

docs/kitchen.png is a scene of the testbed with a fork and an oven in it, docs/frontier.png the
first chart of the demo's report.
"""

import copy
import pathlib

import numpy as np
import PIL.Image

from vlm_jax.report.charts import PAPER, SOFT, Chart
from vlm_jax.report.run import frontier_plot
from vlm_jax.report.stored import read_run
from vlm_jax.testbed.scenes import draw_scenes

DOCS = pathlib.Path(__file__).parent
RESULTS = DOCS.parent / "out" / "demo" / "results"


def kitchen() -> PIL.Image.Image:
    """A scene without the refrigerator that the testbed's kitchens usually have."""
    return PIL.Image.fromarray(draw_scenes("broken", "test", 0, np.array([11])).images[0])


def frontier(results: pathlib.Path) -> bytes:
    """The frontier of a run as PNG, with the names of its arms beside their marks."""
    drawn = frontier_plot(read_run(results).comparison)
    chart = copy.deepcopy(drawn.spec)
    line = chart["layer"][0]["data"]["values"]
    chart["layer"] += [_names(layer, line) for layer in chart["layer"] if _is_arm(layer["mark"])]
    return Chart(drawn.title, chart | {"height": 360}).image("png")


def _is_arm(mark: dict) -> bool:
    """Whether a layer's points are a method's, or the model's as it is: large and filled."""
    return mark.get("size", 0) > 50 and mark.get("fill") not in (None, PAPER, SOFT)


def _names(layer: dict, line: list[dict]) -> dict:
    """A layer of the names of another's points, which stand on their side of the line."""
    (point,) = layer["data"]["values"]
    order = sorted((one["x"], one["y"]) for one in line)
    above = point["y"] >= np.interp(point["x"], *zip(*order)) - 0.01
    place = {"align": "right", "dx": -8, "dy": -8} if above else {"align": "left", "dx": 8, "dy": 9}
    mark = {"type": "text", **place, "color": layer["mark"]["stroke"]}
    encoding = {**layer["encoding"], "text": {"field": "name"}}
    return {"data": layer["data"], "mark": mark, "encoding": encoding}


if __name__ == "__main__":
    kitchen().save(DOCS / "kitchen.png")
    (DOCS / "frontier.png").write_bytes(frontier(RESULTS))
