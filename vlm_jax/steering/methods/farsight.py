"""FarSight: attention registers behind each row."""

from typing import Any, Literal, get_args

import numpy as np

from vlm_jax.attention.steering import Registers, Steering
from vlm_jax.config import VLMConfig
from vlm_jax.errors import ConfigError
from vlm_jax.settings import number, one_of, whole
from vlm_jax.steering import building
from vlm_jax.steering.controls import layer_order

Control = Literal["", "shuffled", "random", "other", "inert", "all", "no_sinks"]
MODES = "prefill", "budget"


def farsight(
    config: VLMConfig,
    *,
    heads: Any = "all",
    count: int | None = None,
    mode: Literal["prefill", "budget"] = "prefill",
    sigma: float | None = None,
    base: float = 1024.0,
    budget: int = 1024,
    control: Control = "",
    seed: int = 0,
) -> Steering:
    """FarSight: slots behind each row that decay, take attention and give nothing.

    Args:
        config: the model.
        heads: as for `air`; all by default, as published.
        count: as for `air`.
        control: "shuffled" deals what a row's heads keep out among the layer's heads in a random
            order: attention loses as much, but not where it finds little. With listed heads those
            of `air`, too, which act on other heads: "random", "other", "inert", "all", "no_sinks".
        seed: of random orders and heads.
        mode: "prefill" acts in a prompt, where a row's slots are the later tokens; "budget" in
            answers too, where a row has what is left of `budget`. Which of them the published
            figures are of is not known.
        sigma: decay of the slots' logits; None: the log of the length to `base`, the length being
            the prompt's, or the budget.
        base: of that log, 1024 as published with AIR's comparison.
        budget: tokens of a prompt with its answer, for mode "budget".

    Raises:
        ConfigError: a setting is out of range.
    """
    one_of("mode", mode, MODES)
    if sigma is not None and number("sigma", sigma, low=0) == 0:
        raise ConfigError("sigma must be above 0: slots that do not decay take all attention.")
    if number("base", base, low=1) == 1:
        raise ConfigError("base must be above 1, not 1.")
    one_of("control", control, get_args(Control))
    dealt = control == "shuffled"
    on_ln = building.listed(config, heads, count, "" if dealt else control, seed)
    ahead_ln = np.zeros(on_ln.shape)
    if dealt:
        layers, width = on_ln.shape
        orders = np.stack([layer_order(seed, layer, width) for layer in range(layers)])
        ahead_ln = (orders - np.arange(width)) % width
    decay = 1 / np.log(base) if sigma is None else sigma
    return Steering(
        registers=Registers(
            building.leaf(np.where(on_ln, decay, np.inf)),
            building.leaf(np.full(on_ln.shape, whole("budget", budget, low=1))),
            building.leaf(ahead_ln),
            mode=mode,
            log_length=sigma is None,
            dealt=dealt,
        )
    )
