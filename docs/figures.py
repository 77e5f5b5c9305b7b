"""Makes the pictures of the README.

    make demo && .venv/bin/python docs/figures.py

docs/kitchen.png is a scene of the testbed with a fork and an oven in it, docs/frontier.png the
first chart of the demo's report.
"""

import pathlib

import numpy as np
import PIL.Image

from vlm_jax.report.run import frontier_plot
from vlm_jax.report.stored import read_run
from vlm_jax.testbed.scenes import draw_scenes

DOCS = pathlib.Path(__file__).parent
RESULTS = DOCS.parent / "out" / "demo" / "results"


def kitchen() -> PIL.Image.Image:
    """A scene without the refrigerator that the testbed's kitchens usually have."""
    return PIL.Image.fromarray(draw_scenes("broken", "test", 0, np.array([11])).images[0])


def frontier(results: pathlib.Path) -> bytes:
    """The frontier of a run as PNG."""
    return frontier_plot(read_run(results).comparison).image("png")


if __name__ == "__main__":
    kitchen().save(DOCS / "kitchen.png")
    (DOCS / "frontier.png").write_bytes(frontier(RESULTS))
