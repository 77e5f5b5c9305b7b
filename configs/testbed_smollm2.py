"""The demo's table on a released decoder: the QK edit beside its controls, and what needs no heads.

Of the model that `--config=train_smollm2` trains: 60 scenes of each set, about half an hour on two
cores (`make real`).
"""

from typing import Any

from ml_collections import ConfigDict

from configs import testbed


def get_config() -> ConfigDict:
    config: Any = testbed.get_config("demo")
    for name in [name for name in config.arms if name not in ("edited", "R3", "R1")]:
        del config.arms[name]
    for name in ("gains_last", "text_half"):
        method = dict(testbed.METHODS[name])
        if method["heads"] == "identified":  # of the random control alone
            del method["heads"]
        config.arms[name] = ConfigDict(method)
    config.frontier.tokens = (" and", ".")
    for name, section in config.benchmarks.items():
        section.n = 20 if name == "pope" else 60
    return config
