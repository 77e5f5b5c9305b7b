"""The testbed: QK edits beside their controls on captions and questions, against saying less.

`configs/testbed.py:demo` is smaller and has two attention methods too: 3 draws of each random
control, a minute or two on two cores. `configs/testbed_methods.py` compares all methods.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import base
from configs.identify import CLASSES

ALL_CONTROLS = ("R1", "R2", "R3", "R4", "C1", "C2", "C3")


def get_config(size: str = "") -> ConfigDict:
    if size not in ("", "demo"):
        raise ValueError(f"configs/testbed.py takes no argument or 'demo', not {size!r}.")
    demo = size == "demo"
    config: Any = base.get_config()
    config.batch_size = 64
    config.max_new_tokens = 32
    config.control_draws = 3 if demo else 19
    config.arms = ConfigDict({"edited": {}})
    for control in ("R3", "R1") if demo else ALL_CONTROLS:
        config.arms[control] = ConfigDict({"control": control})
    for name in DEMO_METHODS if demo else ():
        config.arms[name] = ConfigDict(METHODS[name])
        config.arms[f"{name}_random"] = ConfigDict({**METHODS[name], "control": "random"})
    config.report.attention = 12 if demo else 0
    config.frontier.tokens = ("and", ".")  # what announces the last object, and what follows it
    config.frontier.biases = DEMO_FRONTIER if demo else FRONTIER
    for kind in ("broken", "normal"):
        config.benchmarks[kind] = ConfigDict(
            {"kind": "testbed_chair", "set": kind, "split": "test", "n": 300, "seed": 0}
        )
    config.benchmarks.pope = ConfigDict(
        {
            "kind": "testbed_pope",
            "negatives": "adversarial",
            "set": "normal",
            "split": "test",
            "n": 100,
            "pairs": 2,
            "seed": 0,
        }
    )
    return config


FRONTIER = (-3.0, -2.0, -1.0, -0.5, -0.25, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)
DEMO_FRONTIER = (-1.0, -0.5, 0.5, 1.0, 2.0, 4.0)

_GAINS = {
    "method": "functional_heads",
    "perception_gain": 1.4,
    "reasoning_gain": 1.3,
    "heads": "identified",  # of the random control alone: classes are read from attention
    **CLASSES,
}
_AIR = {"method": "air", "heads": "identified"}
# Attention methods: gains of functional heads by the attention ratio of the decode row or of the
# prompt's text rows; AIR at its published strengths, each of its modules alone, and mild; text
# halved everywhere, which selects nothing; AIR as released; AD-HH at both thresholds in use.
METHODS = {
    "gains_last": {**_GAINS, "rows": "last"},
    "gains_q": {**_GAINS, "rows": "q"},
    "air": _AIR,
    "air_R": {**_AIR, "modules": "reallocation"},
    "air_P": {**_AIR, "modules": "projection"},
    "air_mild": {**_AIR, "visual_gain": 1.5, "text_gain": 0.5},
    "text_half": {
        "method": "air",
        "heads": "all",
        "modules": "reallocation",
        "text_threshold": 0.0,
        "visual_gain": 1.0,
        "text_gain": 0.5,
    },
    "air_star": {"method": "air_star", "heads": "identified"},
    "adhh_t40": {"method": "adhh", "heads": "identified", "threshold": 0.4},
    "adhh_t50": {"method": "adhh", "heads": "identified", "threshold": 0.5},
}
DEMO_METHODS = ("gains_last", "air_mild")


def shrunk(config: Any, size: int = 40) -> ConfigDict:
    """A comparison on testbed scenes, small enough for the shipped models and a CPU.

    Methods keep their settings, but for what is of a large model: head sets are those found in the
    shipped one, and classes of heads have its thresholds.
    """
    small: Any = get_config("demo")
    names = list(config.benchmarks)
    config.benchmarks = ConfigDict()
    for name in names:
        if name in ("chair", "pope") or not config.benchmarks:
            section = small.benchmarks["broken" if name == "chair" else "pope"]
            config.benchmarks[name] = ConfigDict({**section, "n": size})
    for name, arm in config.arms.items():
        entry = dict(arm)
        if "heads" in entry:
            entry["heads"] = "identified"
        if entry.get("method") == "functional_heads":
            entry |= CLASSES
        config.arms[name] = ConfigDict(entry)
    config.batch_size, config.max_new_tokens = small.batch_size, small.max_new_tokens
    config.control_draws, config.bootstrap_draws = 1, 200
    config.frontier.tokens, config.frontier.biases = small.frontier.tokens, ()
    if "source" in config.published:
        config.published.source += " Ours is on testbed scenes and cannot be held against it."
    return config
