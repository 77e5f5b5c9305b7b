"""A sweep of an attention method's strengths on the testbed: chosen on dev, reported on test.

`configs/sweep_methods.py:air` names the method, a key of `SWEEPS`; air is the default. Strengths
are traced: all settings of a method run in the programs of the first.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import sweep, testbed

# Field -> values; other fields are those of the arm of this name in configs/testbed.py.
SWEEPS: dict[str, dict[str, tuple[Any, ...]]] = {
    "air": {
        "text_gain": (0.1, 0.25, 0.5, 0.75),
        "visual_gain": (1.0, 1.5, 3.5),
        "shrinkage": (0.0, 0.3),
    },
    "text_half": {"text_gain": (0.25, 0.5, 0.625, 0.75, 0.875)},
    "adhh_t50": {"threshold": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)},
    "air_star": {
        "image_gain": (1.0, 1.08, 1.2),
        "lens": (0.0, 0.28, 0.56),
        "shrinkage": (0.0, 0.1),
    },
    "gains_last": {
        "perception_gain": (1.0, 1.16, 1.4),
        "reasoning_gain": (1.0, 1.14, 1.3),
    },
}


def get_config(name: str = "air") -> ConfigDict:
    if name not in SWEEPS:
        raise ValueError(
            f"configs/sweep_methods.py takes {', '.join(map(repr, SWEEPS))}, not {name!r}."
        )
    config = sweep.get_config()
    fixed = {field: (value,) for field, value in testbed.METHODS[name].items()}
    config.sweep = ConfigDict({**fixed, **SWEEPS[name]})
    # Random heads of the same layers are the same heads where a method acts on all of them.
    config.choose.controls = () if fixed["heads"] == ("all",) else ("random",)
    return config
