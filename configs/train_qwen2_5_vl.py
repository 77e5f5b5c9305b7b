"""Trains the Qwen2.5-VL testbed: vision tower, then text, then captions and questions."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.measure = 300  # dev scenes that the trained model is measured on; 0 is none
    config.recipe = ConfigDict(
        {
            "family": "qwen2_5_vl",
            "vision": {"steps": 1500, "batch": 64, "learning_rate": 1.5e-3, "warmup": 100},
            "text": {"steps": 60, "batch": 32, "learning_rate": 2e-3, "warmup": 20},
            "language": {"steps": 450, "batch": 32, "learning_rate": 2e-3, "warmup": 50},
            "question_pairs": 1,
            "question_weight": 0.3,
            "scenes": {
                "size": 56,
                "pair_weights": (0.1, 0.4, 0.5),
                "p_co": 0.8,
                "p_stray": 0.35,
                "noise": 0.12,
            },
            "checkpoint_every": 200,
        }
    )
    return config
