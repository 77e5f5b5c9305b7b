"""Decoding strategies, one file each: further views of a sample whose logits change its own.

A file `<name>.py` here, or another package's entry point `<name>` of the group
`vlm_jax.strategies`, is the strategy of that name: a subclass of `Strategy`, the only one of its
module.
"""

from vlm_jax.decoding.strategies.base import Step, Strategy, View, plausible
from vlm_jax.plugins import Plugins, subclass

STRATEGIES = Plugins[type[Strategy]](
    __name__, "vlm_jax.strategies", "strategy", check=subclass(Strategy)
)

__all__ = ["STRATEGIES", "Step", "Strategy", "View", "plausible"]
