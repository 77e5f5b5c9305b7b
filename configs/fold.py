"""Factors in the weights that cost nothing when the model runs.

"energy", the default: query-key products rescaled by their spectral energy
(`vlm_jax.edits.energy_rescale`), the first step of AIR; of any model. "gains": functional heads,
of the classes that `--job=identify` found, which must be in the model's heads.json.

--job=fold --config=configs/fold.py --source=<folder> --target=<folder>
--job=fold --config=configs/fold.py:gains --source=<folder> --target=<folder>
"""

from ml_collections import ConfigDict

from configs import edit
from vlm_jax.errors import ConfigError

FOLDS = {
    # Any method whose gains are known before it runs.
    "gains": {
        "method": "functional_heads",
        "mode": "dataset_static",
        "heads": "identified",
        "perception_gain": 1.16,
        "reasoning_gain": 1.3,
    },
    "energy": {"method": "energy_rescale", "energy": "frobenius", "xi": 0.01},
}


def get_config(name: str = "energy") -> ConfigDict:
    if name not in FOLDS:
        raise ConfigError(f"configs/fold.py knows {', '.join(FOLDS)}, not {name!r}.")
    config = edit.get_config()
    config.fold = ConfigDict(FOLDS[name])
    return config
