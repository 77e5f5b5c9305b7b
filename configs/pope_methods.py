"""POPE answers of a model under attention methods, beside random heads.

Arms and head sets are those of configs/chair_methods.py, the benchmark that of configs/pope.py.
"""

from ml_collections import ConfigDict

from configs import pope
from configs.chair_methods import ARMS


def get_config() -> ConfigDict:
    config = pope.get_config()
    config.arms = ConfigDict(ARMS)
    return config
