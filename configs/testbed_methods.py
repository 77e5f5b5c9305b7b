"""The testbed: methods of attention and of decoding beside their controls, and saying less.

Head sets come from `heads.json` in the model folder, which shipped models have; of another model
make it by `--job=identify`, or name it by `--config.heads`. Several models, such as all training
seeds, make one table:

  --job=evaluate --config=configs/testbed_methods.py --workdir=out/methods \\
      --source=vlm_jax/testbed/models/llava-0,vlm_jax/testbed/models/llava-1

`configs/testbed_methods.py:demo` is the same, smaller: 3 draws and the main methods.
`configs/testbed_methods.py:papers` has the rows of the tables of AIR and of functional heads, each
once and beside its control: every method here that needs no other model. AGLA and CGD need a BLIP
and a CLIP, which know no drawn scenes: name them, or functions ("package.module:name"), in arms of
your own. HALC takes functions only.
"""

# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
from typing import Any

from ml_collections import ConfigDict

from configs import testbed

DEMO = ("gains_last", "air", "air_mild", "text_half", "adhh_t50")
# Random heads in the same layers are all of them where a method acts on all heads of a layer; parts
# and variants of a method have no draws of their own, which would double the runs.
NO_RANDOM = ("text_half", "gains_q", "air_R", "air_P", "adhh_t40")
# Each beside itself with its information removed; OPERA without its penalty is beam search.
DECODING = {
    "vcd": "clean", "icd": "same", "dola": "random", "m3id": "same", "pai": "same",
    "first_logit": "random", "opera": "off", "farsight": "shuffled",
}  # fmt: skip
SETTINGS = {
    "pai": {"first_layer": 1},  # 2 of 32 layers as published; these models have 6
    "farsight": {"mode": "budget", "budget": 128},  # a prompt with its answer is no longer
}
PAPERS = ("gains_last", "air", "air_star", "adhh_t40")


def get_config(size: str = "") -> ConfigDict:
    if size not in ("", "demo", "papers"):
        raise ValueError(
            f"configs/testbed_methods.py takes no argument, 'demo' or 'papers', not {size!r}."
        )
    demo = size == "demo"
    config = testbed.get_config("demo" if demo else "")
    if size == "papers":
        config.arms = ConfigDict(_papers())
        config.control_draws = 3
        return config
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
        arms |= _decoding()
    config.arms = ConfigDict(arms)
    if demo:
        config.frontier.biases = (*testbed.DEMO_FRONTIER, 6.0, 8.0)  # AIR loses much recall
    return config


def _decoding() -> dict[str, Any]:
    """Methods of decoding, and FarSight, beside their controls."""
    arms: dict[str, Any] = {}
    for name, control in DECODING.items():
        arms[name] = {"method": name, **SETTINGS.get(name, {})}
        arms[f"{name}_{control}"] = {**arms[name], "control": control}
    return arms


def _papers() -> dict[str, Any]:
    """The rows of the papers' tables."""
    arms: dict[str, Any] = {"qk": {}, "qk_R3": {"control": "R3"}}
    for name in PAPERS:
        arms[name] = testbed.METHODS[name]
        arms[f"{name}_random"] = {**testbed.METHODS[name], "control": "random"}
    return arms | _decoding()
