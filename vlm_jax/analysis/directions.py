"""Directions in the residual stream that tell two kinds of answers apart, of pairs of answers."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from vlm_jax.batch import Batch
from vlm_jax.config import VLMConfig
from vlm_jax.errors import ConfigError
from vlm_jax.models import Network, Params, Watch, abstract, merge
from vlm_jax.settings import one_of

HOW = "mean", "component"


class LastStates:
    """Reads the residual stream in the last rows of batches, behind every layer."""

    def __init__(self, config: VLMConfig):
        graphdef = abstract(config)[0]
        watch = Watch(hidden=tuple(range(1, config.decoder.num_layers + 1)))

        def read(params: Params, batch: Batch) -> Array:
            model: Network = merge(graphdef, params)
            return model.prefill(batch, 1, watch=watch)[2].hidden_bjd

        self._read = jax.jit(read)

    def __call__(self, params: Params, batch: Batch) -> np.ndarray:
        """Returns float32 [B, L, D]."""
        return np.asarray(self._read(params, batch), np.float32)


def direction(
    differences: Float[np.ndarray, "pairs L D"], how: Any = "mean"
) -> Float[np.ndarray, "L D"]:
    """Returns one vector a layer that leads from negative answers to positive ones.

    Args:
        differences: stream of the positive answer less that of the negative one, of each pair.
        how: "mean" of the differences; "component", their first principal component about zero, as
            long and as directed as the mean's share of it.

    Raises:
        ConfigError: there is no pair, or `how` is neither.
    """
    one_of("vectors", how, HOW)
    if not len(differences):
        raise ConfigError("there is no pair of answers to find vectors of.")
    mean_ld = differences.mean(axis=0, dtype=np.float64)
    if how == "mean":
        return mean_ld.astype(np.float32)
    apart = differences.transpose(1, 0, 2).astype(np.float64)
    first_ld = np.linalg.svd(apart, full_matrices=False)[2][:, 0]
    share_l1 = np.sum(first_ld * mean_ld, axis=1, keepdims=True)
    return (share_l1 * first_ld).astype(np.float32)
