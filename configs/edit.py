"""Plain QK product steering: the four strongest modes of every head, halved, in middle layers."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    return base.get_config()
