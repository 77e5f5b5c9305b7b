"""Activation addition: a vector in the residual stream of each layer."""

from collections.abc import Sequence
from typing import Any

from vlm_jax.attention.steering import Steering
from vlm_jax.config import VLMConfig
from vlm_jax.settings import switch
from vlm_jax.steering.vectors import build_vectors


def activation_addition(
    config: VLMConfig,
    *,
    vectors: Any = None,
    strength: float = 1.0,
    layers: tuple[int, int] | None = None,
    where: str = "all",
    positions: Sequence[int] = (),
    keep_norm: bool = False,
    control: str = "",
    seed: int = 0,
) -> Steering:
    """Activation addition: adds a vector to what layers leave (arXiv 2308.10248, 2312.06681).

    Args:
        config: the model.
        vectors: an .npy file that --job=identify made of pairs, or float32 [L, D].
        strength: factor on them.
        layers: first and last layer that they are added behind; all by default.
        where: "all" rows, "image", "text" behind the image, or "answer", those that predict.
        positions: rows of the prompt by their place instead, from its end if negative.
        keep_norm: whether what was added to keeps its norm.
        control: "random" adds vectors of the same norms in random directions.
        seed: of the random directions.

    Raises:
        ConfigError: a setting cannot be.
    """
    return build_vectors(
        config,
        vectors,
        strength=strength,
        layers=layers,
        where=where,
        positions=positions,
        keep_norm=switch("keep_norm", keep_norm),
        control=control,
        seed=seed,
    )
