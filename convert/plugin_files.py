"""Writes a steering for users of torch: one Python file, and what it does as JSON."""

import importlib.resources
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_jax.attention.steering import Steering
from vlm_jax.config import VLMConfig
from vlm_jax.errors import ConfigError
from vlm_jax.files import replace_file

CODE, SETTINGS = "steering.py", "steering.json"

# What the file can do: parts, and the choices of theirs that it knows (None: all).
_KNOWN: dict[str, dict[str, tuple[Any, ...] | None]] = {
    "head_gains": {},
    "reallocation": {
        "renormalise": None,
        "text_includes_system": None,
        "trigger_reduce": ("sample",),
    },
    "projection": {"zero_trace": ("skip",), "prefill": ("off",)},
    "visual_gains": {"rows": None, "mode": None},
}


class Plugin:
    """A steering as two files, `steering.py` and `steering.json`.

    Args:
        config: the model.
        steering: the same for all examples.
        methods: what made it, as a config has it; for readers of the JSON.

    Raises:
        ConfigError: it does something that the file cannot do.
    """

    def __init__(
        self, config: VLMConfig, steering: Steering, methods: Sequence[Mapping[str, Any]] = ()
    ):
        self.settings = {
            "about": "What steering.py does to the attention of the model in this folder.",
            "methods": [dict(entry) for entry in methods],
            "image_token_id": config.image_token_id,
            "shape": [config.decoder.num_layers, config.decoder.num_heads],
            "parts": plugin_parts(steering),
        }

    def write(self, folder: str | os.PathLike[str]) -> pathlib.Path:
        """Writes both into a Hugging Face folder; returns the path of the code."""
        folder = pathlib.Path(folder)
        code = importlib.resources.files("convert").joinpath("plugin", CODE).read_bytes()
        text = json.dumps(self.settings, indent=1, default=str) + "\n"
        replace_file(folder / SETTINGS, text, "the export is whole but for it")
        replace_file(folder / CODE, code, "the export is whole but for it")
        return folder / CODE


def plugin_parts(steering: Steering) -> dict[str, dict[str, Any]]:
    """Returns the parts of a steering as JSON values: leaves [L][N], and choices.

    Raises:
        ConfigError: the file that reads them cannot do a part, or a choice of one.
    """
    found = {}
    for name, part in steering.parts.items():
        if name not in _KNOWN:
            raise ConfigError(
                f"config.export.plugin cannot hold {name}: the file for torch does "
                f"{', '.join(_KNOWN)}."
            )
        values: dict[str, Any] = {}
        for field, value in vars(part).items():
            if field in part.identity:
                values[field] = [[_plain(x) for x in row] for row in np.asarray(value)[0]]
                continue
            allowed = _KNOWN[name][field]
            if allowed is not None and value not in allowed:
                raise ConfigError(
                    f"config.export.plugin cannot hold {name} with {field}={value!r}; the file for "
                    f"torch does {field}={allowed[0]!r}."
                )
            if allowed is None:
                values[field] = value
        found[name] = values
    return found


def _plain(value: Any) -> float | str:
    """A number of JSON, which has no infinities."""
    return float(value) if math.isfinite(value) else str(float(value))
