"""How the next token is chosen from logits: greedy, temperature, top-k, top-p, per row."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from vlm_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The order is that of transformers: temperature, then top-k, then top-p of what is left.

    Attributes:
        temperature: 0 is greedy.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the smallest set whose probability reaches p; 1 keeps all.
        seed: of the run. Each row draws from its own stream, so that a sample's answer does not
            depend on the batch it is in.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if not self.temperature >= 0:
            raise ConfigError(f"temperature must be at least 0, not {self.temperature}.")
        if self.top_k < 0:
            raise ConfigError(f"top_k must be at least 0 (0 keeps all), not {self.top_k}.")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must lie in (0, 1], not {self.top_p}.")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0

    def knobs(self) -> "Knobs":
        """Returns the settings as arrays, so that changing one compiles nothing."""
        return Knobs(np.float32(self.temperature), np.int32(self.top_k), np.float32(self.top_p))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Knobs:
    """`Sampling` as traced scalars: temperature float32, top_k int32, top_p float32."""

    temperature: Any
    top_k: Any
    top_p: Any


def sample(
    logits_bv: Float[Array, "B V"], keys_b: UInt32[Array, "B 2"], knobs: Knobs
) -> Int[Array, " B"]:
    """Draws one token a row.

    Args:
        logits_bv: float32 logits.
        keys_b: raw random keys, one a row.
        knobs: temperature above 0, top_k, top_p.
    """
    vocabulary = logits_bv.shape[-1]
    scaled_bv = logits_bv / knobs.temperature
    order_bv = jnp.argsort(-scaled_bv, axis=-1, stable=True)
    sorted_bv = jnp.take_along_axis(scaled_bv, order_bv, axis=-1)
    ranks_v = jnp.arange(vocabulary)
    kept_bv = (ranks_v < jnp.where(knobs.top_k > 0, knobs.top_k, vocabulary))[None]
    masses_bv = jax.nn.softmax(jnp.where(kept_bv, sorted_bv, -jnp.inf), axis=-1)
    # The likeliest token always stays; later ones while the mass before them is below p.
    before_bv = jnp.cumsum(masses_bv, axis=-1) - masses_bv
    kept_bv &= (before_bv < knobs.top_p) | (ranks_v == 0)
    filtered_bv = jnp.where(kept_bv, sorted_bv, -jnp.inf)
    picks_b = jax.vmap(jax.random.categorical)(jax.random.wrap_key_data(keys_b), filtered_bv)
    return jnp.take_along_axis(order_bv, picks_b[:, None], axis=-1)[:, 0].astype(jnp.int32)


def row_keys(seeds_b: UInt32[Array, " B"], step: Array | int) -> UInt32[Array, "B 2"]:
    """Returns a key for each row at a step, from nothing but the row's own seed."""
    fold = lambda seed: jax.random.key_data(jax.random.fold_in(jax.random.key(seed), step))
    return jax.vmap(fold)(seeds_b)
