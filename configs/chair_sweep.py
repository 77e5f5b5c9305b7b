"""A sweep of the QK edit on images of your own: chosen on some of them, reported on others.

  --job=sweep --config=chair_sweep --source=<model> --workdir=out/sweep \\
      --config.benchmarks.chair.images=val2014 \\
      --config.benchmarks.chair.truth=instances_val2014.json \\
      --config.benchmarks.chair.questions=dev.jsonl --config.test.chair.questions=test.jsonl

The two files of questions say which images are for what: rows such as {"image": "a.jpg"}.
"""

from ml_collections import ConfigDict

from configs import chair, sweep


def get_config() -> ConfigDict:
    config = chair.get_config()
    config.arms = ConfigDict()
    config.sweep = sweep.get_config().sweep
    config.update({"choose": {"metric": "gap"}})
    config.test = ConfigDict({"chair": {"questions": ""}})
    return config
