"""AD-HH: rows of listed heads that lean on text lose it.

As its authors' repository has it; it is the reallocation of AIR without a gain for the image."""

from typing import Any

from vlm_jax.attention.steering import Steering
from vlm_jax.config import VLMConfig
from vlm_jax.settings import number
from vlm_jax.steering import building


def adhh(
    config: VLMConfig,
    *,
    heads: Any = (),
    count: int | None = None,
    threshold: float = 0.4,
    control: str = "",
    seed: int = 0,
) -> Steering:
    """AD-HH: text weights become 0 in decode rows whose mass on text reaches a threshold.

    Args:
        config: the model.
        heads, count, control, seed: as for `air`.
        threshold: 0.4 in its own demo, 0.5 where AIR's authors compare with it.

    Raises:
        ConfigError: a setting is out of range.
    """
    on_ln = building.listed(config, heads, count, control, seed)
    threshold = number("threshold", threshold, 0, 1)
    return Steering(reallocation=building.reallocation(on_ln, threshold, 1.0, 0.0))
