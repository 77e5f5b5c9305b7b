"""Makes a process that has this folder on its path start as if torch were not installed.

The commands that the tests start run so, as they run for most people, and some seconds sooner each:
transformers imports torch wherever it can. See `tests/children.py`.
"""

import gc
from importlib.machinery import PathFinder

HIDDEN = ("torch", "torchvision")

_find = PathFinder.find_spec


def _without(name: str, *rest):
    return None if name.partition(".")[0] in HIDDEN else _find(name, *rest)


PathFinder.find_spec = _without  # type: ignore[method-assign]
gc.set_threshold(20_000, 20, 20)  # what a start imports stays
