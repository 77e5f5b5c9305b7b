"""Plain QK product steering: the four strongest modes of every head, halved, in middle layers."""

from ml_collections import ConfigDict, config_dict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    # Of a source that is edited already: take the edit back, or make it at another strength.
    config.revert = False
    config.restrength = config_dict.placeholder(float)
    return config
