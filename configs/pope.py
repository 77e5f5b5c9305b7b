"""POPE questions: set benchmarks.pope.images (a folder) and benchmarks.pope.questions (a file)."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.max_new_tokens = 16
    config.benchmarks.pope = ConfigDict(
        {
            "kind": "pope",
            "images": "",
            "questions": "",
            "suffix": "\nAnswer the question using a single word or phrase.",
            "parser": "rucaibox",
            "limit": 0,
        }
    )
    return config
