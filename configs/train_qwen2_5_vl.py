"""Trains the Qwen2.5-VL testbed by the recipe of the LLaVA one."""

from ml_collections import ConfigDict

from configs import train_llava


def get_config() -> ConfigDict:
    config = train_llava.get_config()
    config.recipe.family = "qwen2_5_vl"
    return config
