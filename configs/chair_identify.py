"""Finding heads of a model of your own, on captions of training images.

  --job=identify --config=chair_identify --source=<model> --workdir=out/heads \\
      --config.benchmarks.chair.images=val2014 \\
      --config.benchmarks.chair.truth=instances_val2014.json

Take other images than those that methods are compared on. Copied into the model's folder, the
`heads.json` that is found is what `heads="identified"` means. Classes of functional heads are by
the published thresholds.
"""

from ml_collections import ConfigDict

from configs import chair, identify


def get_config() -> ConfigDict:
    config = identify.get_config()
    asked = chair.get_config()
    config.batch_size, config.max_new_tokens = asked.batch_size, asked.max_new_tokens
    config.benchmarks = asked.benchmarks
    own = {**config.to_dict()["identify"], "count": 20, "classes": {}}
    config.identify = ConfigDict(own)
    return config
