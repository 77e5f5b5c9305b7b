"""Policies A to D: which classes of heads are enhanced, and which are held back.

arXiv 2510.10285, appendix; `steering.classes` says which heads are of which class.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from vlm_jax.attention.steering import Steering
from vlm_jax.config import VLMConfig
from vlm_jax.settings import number, one_of
from vlm_jax.steering.classes import Selection

_MAX_GAIN = 100.0

POLICIES: Mapping[str, str] = {
    "A": "alpha on the enhanced class",
    "B": "beta on the attenuated class",
    "C": "alpha on the enhanced class, beta on all other heads",
    "D": "alpha on the enhanced class, beta on the attenuated class",
}


def policy_gains(
    policy: str, enhanced_ln: np.ndarray, attenuated_ln: np.ndarray, alpha: float, beta: float
) -> np.ndarray:
    """Gains [L, N] of a policy (arXiv 2510.10285, appendix).

    Args:
        policy: a key of `POLICIES`.
        enhanced_ln, attenuated_ln: disjoint bool [L, N].
        alpha, beta: gains, alpha > 1 > beta.
    """
    up, down, neutral = _policy_classes(policy, alpha, beta)
    return np.where(enhanced_ln, up, np.where(attenuated_ln, down, neutral))


def _policy_classes(policy: str, alpha: float, beta: float) -> tuple[float, float, float]:
    """Gains of the enhanced, the attenuated and the neutral heads."""
    table = {"A": (alpha, 1, 1), "B": (1, beta, 1), "C": (alpha, beta, beta), "D": (alpha, beta, 1)}
    return table[one_of("policy", policy, POLICIES)]


def policy(
    config: VLMConfig,
    *,
    policy: str = "A",
    enhance: str = "perception",
    alpha: float = 1.2,
    beta: float | None = None,
    **selection: Any,
) -> Steering:
    """Policies A to D over the two classes.

    Args:
        config: the model.
        policy: "A": alpha on the enhanced class; "B": beta on the other class; "C": alpha, and beta
            on all other heads; "D": alpha, and beta on the other class.
        enhance: the class that is enhanced, "perception" or "reasoning"; the other is attenuated.
        alpha, beta: gains, alpha > 1 > beta >= 0. By default beta = 2 - alpha, which matches
            |gain - 1|.
        selection: fields of `Selection`.

    Raises:
        ConfigError: a setting is out of range or contradicts another.
    """
    chosen = Selection(**selection)
    one_of("enhance", enhance, ("perception", "reasoning"))
    alpha = number("alpha", alpha, 1, 2 if beta is None else _MAX_GAIN)
    beta = number("beta", 2 - alpha if beta is None else beta, 0, 1)
    up, down, neutral = _policy_classes(policy, alpha, beta)
    perception, reasoning = (up, down) if enhance == "perception" else (down, up)
    classes = dataclasses.replace(
        chosen.classes(config),
        perception_gain=perception,
        reasoning_gain=reasoning,
        neutral_gain=neutral,
    )
    return chosen.steering(config, classes)
