"""Training-free mitigation of hallucination in vision-language models, in JAX.

Letters used in names, einsum strings and sharding rules alike:

| letter | dim | letter | dim |
|---|---|---|---|
| B | batch | D | model dim |
| T | query length | F | feed-forward |
| S | key length | V | vocabulary |
| N | query heads | L | layers |
| K | key/value heads | P | image patches |
| G | query heads per key head | M | merged image tokens |
| H | head dim | C | channels |
| E | input features of a map | R | rank |
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlm_jax.api import VLM, Answer, Failure, load

__version__ = "0.1.0"
__all__ = ["VLM", "Answer", "Failure", "load"]


def __getattr__(name: str):
    # The scorers need no JAX, so importing the package must not load it.
    if name in __all__:
        from vlm_jax import api

        return getattr(api, name)
    raise AttributeError(f"module 'vlm_jax' has no attribute {name!r}")
