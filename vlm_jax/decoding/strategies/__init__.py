"""Decoding strategies, one file each: further views of a sample whose logits change its own.

A file `<name>.py` here, or another package's entry point `<name>` of the group
`vlm_jax.strategies`, is the strategy of that name: a subclass of `Strategy`, the only one of its
module.
"""

from collections.abc import Mapping
from typing import Any

from vlm_jax.decoding.strategies.base import Step, Strategy, View, plausible
from vlm_jax.plugins import Plugins
from vlm_jax.settings import read

STRATEGIES = Plugins(__name__, "vlm_jax.strategies", "strategy")

__all__ = ["STRATEGIES", "Step", "Strategy", "View", "plausible", "read_strategy"]


def read_strategy(name: str, settings: Mapping[str, Any], where: str = "") -> Strategy:
    """Returns a strategy with its settings, such as `read_strategy("vcd", {"alpha": 0.5})`.

    Args:
        name: of the strategy.
        settings: those that are not to be the defaults.
        where: what errors call the settings.

    Raises:
        ConfigError: there is no such strategy or setting, or a value is out of range.
    """
    return read(STRATEGIES.find(name), settings, where or f"method {name!r}")
