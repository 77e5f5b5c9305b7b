"""The testbed: attention methods and decoding strategies beside their controls, and saying less.

Head sets come from `heads.json` in the model folder, which shipped models have; of another model
make it by `--job=identify`, or name it by `--config.heads`. Several models, such as all training
seeds, make one table:

  --job=evaluate --config=configs/testbed_methods.py --workdir=out/methods \\
      --source=vlm_jax/testbed/models/llava-0,vlm_jax/testbed/models/llava-1

`configs/testbed_methods.py:demo` is the same, smaller: 3 draws and the main methods.
"""

# pyright: reportOptionalMemberAccess=false, reportAttributeAccessIssue=false
from typing import Any

from ml_collections import ConfigDict

from configs import testbed

DEMO = ("gains_last", "air", "air_mild", "text_half", "adhh_t50")
# Random heads in the same layers are all of them where a method acts on all heads of a layer; parts
# and variants of a method have no draws of their own, which would double the runs.
NO_RANDOM = ("text_half", "gains_q", "air_R", "air_P", "adhh_t40")


def get_config(size: str = "") -> ConfigDict:
    if size not in ("", "demo"):
        raise ValueError(f"configs/testbed_methods.py takes no argument or 'demo', not {size!r}.")
    demo = size == "demo"
    config = testbed.get_config(size)
    arms: dict[str, Any] = {"qk": {}, "qk_R3": {"control": "R3"}}
    for name, method in testbed.METHODS.items():
        if demo and name not in DEMO:
            continue
        arms[name] = method
        if name not in NO_RANDOM:
            arms[f"{name}_random"] = {**method, "control": "random"}
    if not demo:
        arms["gains_last_other"] = {**testbed.METHODS["gains_last"], "control": "other"}
        arms["air_mild_other"] = {**testbed.METHODS["air_mild"], "control": "other"}
        arms["air_mild_all"] = {**testbed.METHODS["air_mild"], "control": "all"}
        arms["qk_and_air_mild"] = [{}, testbed.METHODS["air_mild"]]
        # Strategies, each beside itself with its information removed.
        arms |= {"vcd": {"method": "vcd"}, "vcd_clean": {"method": "vcd", "control": "clean"}}
        arms |= {"icd": {"method": "icd"}, "icd_same": {"method": "icd", "control": "same"}}
        arms |= {"m3id": {"method": "m3id"}, "m3id_same": {"method": "m3id", "control": "same"}}
        pai = {"method": "pai", "first_layer": 1}  # 2 of 32 as published; testbeds have 4
        arms |= {"pai": pai, "pai_same": {**pai, "control": "same"}}
        for name in ("dola", "first_logit"):
            one = {"method": name, "control": "random"}
            arms |= {name: {"method": name}, f"{name}_random": one}
        arms["farsight"] = {"method": "farsight", "mode": "budget", "budget": 128}
    config.arms = ConfigDict(arms)
    if demo:
        config.frontier.biases = (*testbed.DEMO_FRONTIER, 6.0, 8.0)  # AIR loses much recall
    return config
