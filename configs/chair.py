"""CHAIR captions: set benchmarks.chair.images (a folder) and benchmarks.chair.truth (files)."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.max_new_tokens = 512
    config.benchmarks.chair = ConfigDict(
        {
            "kind": "chair",
            "images": "",
            "truth": ("",),
            "questions": "",  # optional: rows of image and text
            "limit": 0,
        }
    )
    return config
