"""Decoding strategies, one file each: further views of a sample whose logits change its own.

A file `<name>.py` here, or another package's entry point `<name>` of the group
`vlm_jax.strategies`, is the strategy of that name: a subclass of `Strategy`, the only one of its
module.
"""

import importlib
import importlib.metadata
import pkgutil
from collections.abc import Mapping
from typing import Any

from vlm_jax.decoding.strategies.base import Step, Strategy, View, plausible
from vlm_jax.errors import ConfigError
from vlm_jax.settings import nearest, read

GROUP = "vlm_jax.strategies"

__all__ = ["GROUP", "Step", "Strategy", "View", "find", "names", "plausible", "read_strategy"]


def names() -> list[str]:
    """Returns the names of all strategies."""
    own = [module.name for module in pkgutil.iter_modules(__path__) if module.name != "base"]
    foreign = [entry.name for entry in importlib.metadata.entry_points(group=GROUP)]
    return sorted({*own, *foreign})


def find(name: str) -> type[Strategy]:
    """Returns a strategy by its name.

    Raises:
        ConfigError: there is none.
    """
    if name not in names():
        raise ConfigError(
            f"there is no strategy {name!r}{nearest(name, names())}; there are "
            f"{', '.join(names())}."
        )
    for entry in importlib.metadata.entry_points(group=GROUP, name=name):
        return entry.load()
    module = importlib.import_module(f"{__name__}.{name}")
    own = [one for one in vars(module).values() if isinstance(one, type)]
    (found,) = [one for one in own if one.__module__ == module.__name__]
    return found


def read_strategy(name: str, settings: Mapping[str, Any], where: str = "") -> Strategy:
    """Returns a strategy with its settings, such as `read_strategy("vcd", {"alpha": 0.5})`.

    Args:
        name: of the strategy.
        settings: those that are not to be the defaults.
        where: what errors call the settings.

    Raises:
        ConfigError: there is no such strategy or setting, or a value is out of range.
    """
    return read(find(name), settings, where or f"method {name!r}")
