"""Finding heads: on testbed scenes without partners, from the development split.

For a real model replace `benchmarks.captions` by a `chair` benchmark on training images (see
configs/chair.py), and take 20 heads. Copied into the model's folder, the `heads.json` that is found
is what `heads="identified"` means to `evaluate` and `sweep`.
"""

# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false
from ml_collections import ConfigDict

from configs import base

# Two thirds of the testbed's tokens are image tokens, so its heads look at images far more than
# those that the published thresholds are for.
CLASSES = {
    "perception_last_layer": 2,
    "perception_from": 0.85,
    "reasoning_first_layer": 1,
    "reasoning_to": 0.25,
}


def get_config() -> ConfigDict:
    config = base.get_config()
    config.batch_size = 64
    config.max_new_tokens = 32
    config.benchmarks.captions = ConfigDict(
        {"kind": "testbed_chair", "set": "broken", "split": "dev", "n": 300, "seed": 0}
    )
    config.identify = ConfigDict(
        {
            "scopes": ("row", "all"),  # where heads are zeroed; the first ranks them
            "count": 4,  # heads in the head set
            "captions": "hallucinated",  # or "all"
            "subtokens": "first",  # or "all"
            "labels": "offsets",  # or "string_match", as released
            "chunk": 64,  # captions between two saves
            "rows": 256,  # ablated runs in a batch
            "mean_ablation": False,  # compare zero with the head's mean: twice the time
            "classes": CLASSES,  # thresholds of functional heads
            "pairs": "",  # file of pairs of answers: finds vectors in place of heads
            "vectors": "mean",  # of their differences, or "component"
        }
    )
    return config
