"""Rerankers, one file each: continuations of an answer drawn on the devices, kept by the host.

A file `<name>.py` here, or another package's entry point `<name>` of the group
`vlm_jax.rerankers`, has a class `Reranking` or names one.
"""

from collections.abc import Mapping
from typing import Any

from vlm_jax.decoding.rerankers.base import Continuation, Reranker
from vlm_jax.plugins import Plugins
from vlm_jax.settings import read

RERANKERS = Plugins(__name__, "vlm_jax.rerankers", "reranker")

__all__ = ["RERANKERS", "Continuation", "Reranker", "read_reranker"]


def read_reranker(name: str, settings: Mapping[str, Any]) -> Reranker:
    """Returns a reranker with its settings.

    Raises:
        ConfigError: there is no such reranker or setting, or a value is out of range.
    """
    return read(RERANKERS.find(name, "Reranking"), settings, f"method {name!r}")
