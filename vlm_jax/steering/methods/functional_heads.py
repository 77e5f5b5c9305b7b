"""Functional heads: gains for heads that look at the image, and for heads that do not.

Lu et al., arXiv 2510.10285 (also CVPR 2026); `steering.classes` says which heads are which.
"""

from typing import Any

from vlm_jax.attention.steering import Steering
from vlm_jax.config import VLMConfig
from vlm_jax.steering.classes import Selection


def functional_heads(
    config: VLMConfig,
    *,
    reasoning_gain: float | None = None,
    perception_gain: float | None = None,
    **selection: Any,
) -> Steering:
    """Gains by class; a gain of 1 leaves a class out.

    Args:
        config: the model.
        reasoning_gain: factor on the outputs of reasoning heads (g_reas); None: the preset's.
        perception_gain: factor on the outputs of perception heads (g_perc); None: the preset's.
        selection: fields of `Selection`.

    Raises:
        ConfigError: a setting is out of range or contradicts another.
    """
    chosen = Selection(**selection)
    gains = {"reasoning_gain": reasoning_gain, "perception_gain": perception_gain}
    return chosen.steering(config, chosen.classes(config, **gains))
