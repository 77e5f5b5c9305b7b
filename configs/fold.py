"""Gains of functional heads in the weights: the classes that `--job=identify` found, at no cost.

--job=edit --config=configs/fold.py --source=<folder> --target=<folder>
"""

from ml_collections import ConfigDict

from configs import edit


def get_config() -> ConfigDict:
    config = edit.get_config()
    # Any method whose gains are known before it runs.
    config.fold = ConfigDict(
        {
            "method": "functional_heads",
            "mode": "dataset_static",
            "heads": "identified",
            "perception_gain": 1.16,
            "reasoning_gain": 1.3,
        }
    )
    return config
