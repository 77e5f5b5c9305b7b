"""The testbed: QK edits beside their controls on captions and questions, against saying less.

`configs/testbed.py:demo` is the same, smaller: 3 draws of two controls, a minute or two on two
cores.
"""

from ml_collections import ConfigDict

from configs import base

ALL_CONTROLS = ("R1", "R2", "R3", "R4", "C1", "C2", "C3")


def get_config(size: str = "") -> ConfigDict:
    if size not in ("", "demo"):
        raise ValueError(f"configs/testbed.py takes no argument or 'demo', not {size!r}.")
    demo = size == "demo"
    config = base.get_config()
    config.batch_size = 64
    config.max_new_tokens = 32
    config.control_draws = 3 if demo else 19
    config.arms = ConfigDict({"edited": {}})
    for control in ("R3", "R1") if demo else ALL_CONTROLS:
        config.arms[control] = ConfigDict({"control": control})
    config.frontier.tokens = ("and", ".")  # what announces the last object, and what follows it
    config.frontier.biases = (-1.0, -0.5, 0.5, 1.0, 2.0) if demo else FRONTIER
    captions, questions = (300, 100) if demo else (500, 250)
    for kind in ("broken", "normal"):
        config.benchmarks[kind] = ConfigDict(
            {"kind": "testbed_chair", "set": kind, "split": "test", "n": captions, "seed": 0}
        )
    config.benchmarks.pope = ConfigDict(
        {
            "kind": "testbed_pope",
            "negatives": "adversarial",
            "set": "normal",
            "split": "test",
            "n": questions,
            "pairs": 2,
            "seed": 0,
        }
    )
    return config


FRONTIER = (-3.0, -2.0, -1.0, -0.5, -0.25, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
