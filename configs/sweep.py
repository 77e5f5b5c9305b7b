"""A sweep of the QK edit on the testbed: chosen on its dev split, reported on its test split.

Widen it on the command line: --config.sweep.strength="(-0.5,0.25,0.5,1.0)"
"""

from ml_collections import ConfigDict

from configs import testbed


def get_config() -> ConfigDict:
    config = testbed.get_config()
    config.arms = ConfigDict()
    config.control_draws = 19
    config.sweep = ConfigDict(
        {
            "strength": (0.25, 0.5, 1.0),
            "k": (1, 2, 4),
            "band": ((0.25, 0.45), (0.36, 0.61), (0.5, 0.75)),
            "method": ("plain",),
            "control": ("",),
        }
    )
    config.choose.metric = "gap"
    for section in config.benchmarks.values():
        section.update({"split": "dev", "n": 500 if section.kind == "testbed_chair" else 200})
    for name, n in (("broken", 1500), ("normal", 1500), ("pope", 500)):
        config.test[name] = ConfigDict({"split": "test", "n": n})
    return config
