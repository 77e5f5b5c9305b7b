"""Searches, one file each: which tokens come next, and which of a sample's beams they go on from.

Settings of decoding choose among greedy decoding, sampling and beam search.
"""

from vlm_jax.decoding.search.base import Choice, Found, Now, Search
from vlm_jax.decoding.search.beam import Beam
from vlm_jax.decoding.search.greedy import Greedy
from vlm_jax.decoding.search.sampling import Sampling
from vlm_jax.decoding.settings import DecodeSettings

__all__ = ["Beam", "Choice", "Found", "Now", "Search", "search_of"]


def search_of(settings: DecodeSettings) -> Search:
    """Returns the search that settings ask for."""
    if not settings.greedy:
        return Sampling()
    if settings.num_beams == 1:
        return Greedy()
    return Beam(
        num_beams=settings.num_beams,
        length_penalty=settings.length_penalty,
        early_stopping=settings.early_stopping,
    )
