"""An edit that was made already, at another strength."""

from ml_collections import ConfigDict

from configs import edit


def get_config() -> ConfigDict:
    return edit.get_config()
