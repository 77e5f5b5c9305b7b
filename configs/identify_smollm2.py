"""Finding heads in the released decoder of the testbed, as configs/identify.py does in others.

Its heads look at images as little as those of large models do, so classes of heads have Ocean-R1's
thresholds, as published.
"""

from ml_collections import ConfigDict

from configs import identify


def get_config() -> ConfigDict:
    config = identify.get_config()
    config.batch_size = 16
    config.benchmarks.captions.n = 64
    config.identify.update({"scopes": ("row",), "count": 20, "chunk": 16})
    config.identify.classes = ConfigDict()
    return config
