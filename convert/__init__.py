"""Hugging Face checkpoints: opened as model folders, imported to ours, exported back, verified.

The rows of `vlm_jax.families` say how names, dims and shapes correspond. Nothing here
imports transformers or torch, and nothing in `vlm_jax` imports this room: it registers `open_hf`
under the entry-point group `vlm_jax.formats`.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convert.hf_folder import HFFolder, open_hf
    from convert.jobs import export_hf, import_hf
    from convert.verify import verify_hf

# Where each name is found. `verify_hf` needs no JAX, so importing the package must not load it.
_HOMES = {
    "HFFolder": "convert.hf_folder",
    "open_hf": "convert.hf_folder",
    "export_hf": "convert.jobs",
    "import_hf": "convert.jobs",
    "verify_hf": "convert.verify",
}

# How `export_hf` may name tensors.
NAMES = ("as_source", "hub", "saved")

__all__ = ["NAMES", "HFFolder", "export_hf", "import_hf", "open_hf", "verify_hf"]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'convert' has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return found
