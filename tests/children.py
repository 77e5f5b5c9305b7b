"""Processes that tests start: they run as on a machine where torch is not installed.

That is how most people run them; and transformers, which imports torch wherever it can, makes each
start some seconds longer with it.
"""

import os
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
ENVIRONMENT = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": f"{ROOT / 'tests' / 'without_torch'}{os.pathsep}{ROOT}",
}
"""Environment of a child; tests/without_torch/sitecustomize.py hides torch from it."""
