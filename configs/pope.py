"""POPE answers of a model and of its edit, beside random controls.

Set benchmarks.pope.images (a folder) and benchmarks.pope.questions (a file):

  --job=evaluate --config=pope --source=<model> --workdir=out/pope \\
      --config.benchmarks.pope.images=val2014 \\
      --config.benchmarks.pope.questions=coco_pope_adversarial.json

Each arm and draw of a control is one run over all questions: `--config.arms={}` measures the model
alone, `--config.control_draws=19` allows a p of .05.
"""

from ml_collections import ConfigDict

from configs import base
from configs.chair import DRAWS


def get_config() -> ConfigDict:
    config = base.get_config()
    config.max_new_tokens = 16
    config.control_draws = DRAWS
    config.arms = ConfigDict({"edited": {}, "R3": {"control": "R3"}, "R1": {"control": "R1"}})
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
