"""Answers to a file of requests, or to one prompt."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.prompt = "Please describe this image in detail."
    config.max_new_tokens = 256
    return config
