"""Ranges of layers: as a setting says them, or at the relative depths of another model."""

from typing import Any

from vlm_jax.errors import ConfigError
from vlm_jax.settings import listed, whole

_RELEASED_LAYERS = 32  # of the model that published layer ranges are for


def scaled_layers(first: int, last: int, layers: int, of: int = _RELEASED_LAYERS) -> range:
    """Returns the layers at the relative depths of layers `first` to `last` of `of`, at least one.

    Ends are half-open and rounded: 5 to 17 of 32 is [5 / 32, 18 / 32).
    """
    start = min(round(first * layers / of), layers - 1)
    return range(start, max(round((last + 1) * layers / of), start + 1))


def layer_range(name: str, given: Any, layers: int) -> range:
    """Returns the layers from a first to a last one, both included.

    Raises:
        ConfigError: it is no such pair of a model of so many layers.
    """
    first, last = listed(name, given, each=whole, least=2, most=2)
    if not 0 <= first <= last < layers:
        raise ConfigError(
            f"{name} must be the first and last of the layers 0 to {layers - 1}, not {given!r}."
        )
    return range(first, last + 1)
