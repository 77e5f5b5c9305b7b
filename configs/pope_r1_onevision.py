"""POPE answers of R1-Onevision-7B under its published setting of functional heads.

The model thinks without being asked to, so questions stand alone, and at more length: 4096 tokens,
as it was trained with. Settings else are configs/pope_ocean_r1.py's.
"""

from ml_collections import ConfigDict

from configs import pope_ocean_r1


def get_config() -> ConfigDict:
    config = pope_ocean_r1.get_config("r1-onevision")
    config.max_new_tokens = 4096
    config.system = "You are a helpful assistant."
    config.update({"benchmarks": {"pope": {"suffix": ""}}})
    return config
