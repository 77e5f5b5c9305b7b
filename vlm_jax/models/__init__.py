"""Network definitions in Flax NNX; their parameters live outside, as a flat dict of arrays.

`split` a model once into definition and parameters; jit, edits, sharding and checkpoints see only
the dict. ONE decoder serves all families.
"""

from vlm_jax.models.cache import Cache, Prefix
from vlm_jax.models.vlm import VLM, Params, abstract, init, merge, split

__all__ = ["VLM", "Cache", "Params", "Prefix", "abstract", "init", "merge", "split"]
