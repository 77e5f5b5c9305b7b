"""Network definitions in Flax NNX; their parameters live outside, as a flat dict of arrays.

`split` a model once into definition and parameters; jit, edits, sharding and checkpoints see only
the dict. ONE decoder serves all families.
"""

from vlm_jax.models.cache import Cache, Prefix, Withdrawn
from vlm_jax.models.hooks import Hooks, Watch, Watched
from vlm_jax.models.network import Network, Params, abstract, init, merge, split

__all__ = [
    "Cache",
    "Hooks",
    "Network",
    "Params",
    "Prefix",
    "Watch",
    "Watched",
    "Withdrawn",
    "abstract",
    "init",
    "merge",
    "split",
]
