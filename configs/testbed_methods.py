"""The testbed: attention methods beside layer-matched random heads, against saying less.

The argument is the model's head file, which `--job=identify --config=configs/identify.py` writes:
`--config=configs/testbed_methods.py:work/heads.json`; `:work/heads.json,demo` is the same, smaller.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import testbed
from configs.identify import CLASSES


def get_config(argument: str = "") -> ConfigDict:
    heads, _, size = argument.partition(",")
    if not heads:
        raise ValueError(
            "configs/testbed_methods.py needs the file of --job=identify: "
            "--config=configs/testbed_methods.py:<workdir>/heads.json"
        )
    config = testbed.get_config(size)
    demo = size == "demo"
    arms: dict[str, dict[str, Any]] = {"qk": {}, "qk R3": {"control": "R3"}}
    for name, method in methods(heads).items():
        if demo and name not in DEMO:
            continue
        arms[name] = method
        arms[f"{name} random"] = {**method, "control": "random"}
    if not demo:
        arms["functional other"] = {**methods(heads)["functional"], "control": "other"}
        arms["air mild, all heads"] = {**methods(heads)["air mild"], "control": "all"}
    config.arms = ConfigDict(arms)
    return config


DEMO = ("functional", "air", "air mild", "adhh")


def methods(heads: str) -> dict[str, dict[str, Any]]:
    """The methods, by name of the arm."""
    air = {"method": "air", "heads": heads}
    return {
        "functional": {
            "method": "functional_heads",
            "rows": "last",
            "perception_gain": 1.4,
            "reasoning_gain": 1.3,
            "heads": heads,
            **CLASSES,
        },
        "air": air,
        "air R only": {**air, "modules": "reallocation"},
        "air P only": {**air, "modules": "projection"},
        "air mild": {**air, "visual_gain": 1.5, "text_gain": 0.5},
        "air star": {"method": "air_star", "heads": heads},
        "adhh": {"method": "adhh", "heads": heads},
    }
