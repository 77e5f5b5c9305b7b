"""CHAIR captions of a model and of its edit, beside random controls and against saying less.

Set benchmarks.chair.images (a folder) and benchmarks.chair.truth (files):

  --job=evaluate --config=chair --source=<model> --workdir=out/chair \\
      --config.benchmarks.chair.images=val2014 \\
      --config.benchmarks.chair.truth=instances_val2014.json

Each arm, draw of a control and bias is one run over all images. `--config.arms={}` and
`--config.frontier.biases=()` measure the model alone; `--config.control_draws=19` allows p = .05.
"""

from ml_collections import ConfigDict

from configs import base

DRAWS = 3
BIASES = (-1.0, 1.0, 2.0, 4.0)  # on the logits of ids that end an answer


def get_config() -> ConfigDict:
    config = base.get_config()
    config.max_new_tokens = 512
    config.control_draws = DRAWS
    config.arms = ConfigDict({"edited": {}, "R3": {"control": "R3"}, "R1": {"control": "R1"}})
    config.frontier.biases = BIASES
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
