"""Searches, one file each: greedy decoding, sampling, beam search, OPERA.

Decoding settings choose among greedy decoding, sampling and beam search; others are chosen by name,
as strategies are (`vlm_jax.decoding.named`).
"""

from typing import Any

from vlm_jax.decoding.search.base import Choice, Found, LoopInputs, Now, Search
from vlm_jax.decoding.search.beam import Beam
from vlm_jax.decoding.search.greedy import Greedy
from vlm_jax.decoding.search.sampling import Sampling
from vlm_jax.decoding.settings import DecodeSettings
from vlm_jax.errors import ConfigError

__all__ = ["Beam", "Choice", "Found", "LoopInputs", "Now", "Search", "search_of"]

UNNAMED = "base", "beam", "greedy", "retrospection", "sampling"
"""Modules without a search that can be chosen by name."""


def search_of(settings: DecodeSettings, method: Any = None) -> Search:
    """Returns the search that settings ask for, or a method that is one.

    Raises:
        ConfigError: both ask for one.
    """
    if isinstance(method, Search):
        asked = {"temperature": settings.temperature, "num_beams": settings.num_beams - 1}
        for name in (name for name, value in asked.items() if value):
            raise ConfigError(
                f"method {method.name!r} has beams of its own and draws nothing, so {name}="
                f"{getattr(settings, name):g} cannot be; leave {name} at its default."
            )
        return method.acting
    if not settings.greedy:
        return Sampling()
    if settings.num_beams == 1:
        return Greedy()
    return Beam(
        num_beams=settings.num_beams,
        length_penalty=settings.length_penalty,
        early_stopping=settings.early_stopping,
    )
