"""Rerankers, one file each: continuations of an answer drawn on the devices, kept by the host.

A file `<name>.py` here, or another package's entry point `<name>` of the group
`vlm_jax.rerankers`, is the reranker of that name: a subclass of `Reranker`, the only one of its
module.
"""

from vlm_jax.decoding.rerankers.base import Continuation, HostMethod, Reranker
from vlm_jax.plugins import Plugins, subclass

RERANKERS = Plugins[type[HostMethod]](
    __name__, "vlm_jax.rerankers", "reranker", check=subclass(HostMethod)
)

__all__ = ["RERANKERS", "Continuation", "HostMethod", "Reranker"]
