"""Training-free mitigation of hallucination in vision-language models, in JAX.

    vlm = vlm_jax.load("llava-0")                       # a name, a folder, or a name on the hub
    air = vlm.apply("air", heads="identified")          # one of vlm_jax.methods()
    air.generate("photo.jpg", "Describe the image.")
    vlm_jax.compare({"plain": vlm, "air": air}, "photo.jpg", "Describe the image.")

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

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlm_jax.answering import Answer, Failure
    from vlm_jax.api import VLM
    from vlm_jax.captions import chair
    from vlm_jax.comparing import benchmark, benchmarks, compare
    from vlm_jax.explaining import explain
    from vlm_jax.families import families
    from vlm_jax.loading import load
    from vlm_jax.methods import methods
    from vlm_jax.planning import plan

__version__ = "0.1.0"

# Where each name is found. The scorers need no JAX, so importing the package must not load it.
_HOMES = {
    "VLM": "vlm_jax.api",
    "load": "vlm_jax.loading",
    "methods": "vlm_jax.methods",
    "families": "vlm_jax.families",
    "benchmark": "vlm_jax.comparing",
    "benchmarks": "vlm_jax.comparing",
    "compare": "vlm_jax.comparing",
    "chair": "vlm_jax.captions",
    "explain": "vlm_jax.explaining",
    "plan": "vlm_jax.planning",
    "Answer": "vlm_jax.answering",
    "Failure": "vlm_jax.answering",
}

__all__ = [
    "VLM",
    "Answer",
    "Failure",
    "benchmark",
    "benchmarks",
    "chair",
    "compare",
    "explain",
    "families",
    "load",
    "methods",
    "plan",
]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'vlm_jax' has no attribute {name!r}")
    home = importlib.import_module(_HOMES[name])
    # A module of the same name is called itself, as it is wherever it was imported before.
    return home if _HOMES[name] == f"vlm_jax.{name}" else getattr(home, name)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
