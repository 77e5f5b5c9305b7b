"""CHAIR captions of a model under attention methods, beside random heads and against saying less.

Settings are the published ones. Head sets come from `heads.json` in the model folder: make it by
`--job=identify`, or name another by `--config.heads`; published sets go by name, such as
`--config.arms.air.heads=llava-1.5-7b`. Benchmark settings are those of configs/chair.py.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import chair

_AIR = {"method": "air", "heads": "identified"}
_ADHH = {"method": "adhh", "heads": "identified"}
ARMS: dict[str, dict[str, Any]] = {
    "gains": {"method": "functional_heads"},
    "air": _AIR,
    "air_random": {**_AIR, "control": "random"},
    "adhh": _ADHH,
    "adhh_random": {**_ADHH, "control": "random"},
}


def get_config() -> ConfigDict:
    config = chair.get_config()
    config.arms = ConfigDict(ARMS)
    return config
