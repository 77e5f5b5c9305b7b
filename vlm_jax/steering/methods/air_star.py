"""AIR*: what the released code of AIR runs.

Gains on logits, a cross-head lens, AD-HH in listed heads, and a projection in all heads of a range
of layers.
"""

from typing import Any

import numpy as np

from vlm_jax.attention.steering import Lens, LogitGains, Steering
from vlm_jax.config import VLMConfig
from vlm_jax.errors import ConfigError
from vlm_jax.settings import number, switch
from vlm_jax.steering import building
from vlm_jax.steering.heads import shape_of

_REBALANCE_LAYERS = (9, 14)
_PROJECTION_LAYERS = (5, 17)


def air_star(
    config: VLMConfig,
    *,
    heads: Any = (),
    count: int | None = None,
    faithful: bool = False,
    threshold: float = 0.4,
    shrinkage: float = 0.1,
    image_gain: float = 1.08,
    system_gain: float = 0.97,
    lens: float = 0.28,
    rebalance_layers: tuple[int, int] | None = None,
    projection_layers: tuple[int, int] | None = None,
    zero_trace: str = "skip",
    prefill: str | None = None,
    qk_rescale: str = "off",
    control: str = "",
    seed: int = 0,
) -> Steering:
    """AIR*: the released code's defaults.

    Args:
        config: the model.
        heads: as for `air`; of the AD-HH part alone, as the other parts act on all heads of their
            layers.
        count, control, seed: as for `air`.
        faithful: whether prompts are projected (and rescaled) with later rows included and the
            trigger sums over the batch, as released; otherwise rows see what came before them and
            each example triggers for itself.
        threshold: mass on text from which a row's text weights become 0; the release's command line
            says 0.5 where its script and its README say 0.4.
        shrinkage: how far a row moves to its mean (beta).
        image_gain: factor on the image's logits in `rebalance_layers` (g).
        system_gain: factor on the logits of what stands before the image, there too (d).
        lens: strength of the cross-head lens in `projection_layers` (alpha).
        rebalance_layers: first and last layer; by default 9 to 14 of 32, and the same relative
            depths of other models.
        projection_layers: first and last layer; by default 5 to 17 of 32, and the same relative
            depths of other models.
        zero_trace: as for `air`.
        prefill: as for `air`; by default "causal", or "official" if faithful.
        qk_rescale: "logit" brings all heads of `projection_layers` to the mean energy of their
            layer; see `EnergyRescale`, whose `prefill` is "off", or "official" if faithful.

    Raises:
        ConfigError: a setting is out of range, or `prefill` contradicts `faithful`.
    """
    layers, width = shape_of(config)
    on_ln = building.listed(config, heads, count, control, seed)
    if switch("faithful", faithful) and prefill not in (None, "official"):
        raise ConfigError(
            f"faithful=True projects prompts as released, so prefill={prefill!r} cannot be; leave "
            "one of them out."
        )
    middle_ln = building.in_layers(
        "rebalance_layers", rebalance_layers, _REBALANCE_LAYERS, layers, width
    )
    wide_ln = building.in_layers(
        "projection_layers", projection_layers, _PROJECTION_LAYERS, layers, width
    )
    image, system = number("image_gain", image_gain, 0), number("system_gain", system_gain, 0)
    return Steering(
        energy_rescale=building.energy_rescale(
            wide_ln, qk_rescale, "official" if faithful else "off"
        ),
        logit_gains=LogitGains(
            building.leaf(np.where(middle_ln, image, 1)),
            building.leaf(np.where(middle_ln, system, 1)),
        ),
        lens=Lens(building.leaf(np.where(wide_ln, number("lens", lens), 0))),
        reallocation=building.reallocation(
            on_ln,
            number("threshold", threshold, 0, 1),
            1.0,
            0.0,
            trigger_reduce="batch_sum" if faithful else "sample",
        ),
        projection=building.projection(
            wide_ln, shrinkage, zero_trace, prefill or ("official" if faithful else "causal")
        ),
    )
