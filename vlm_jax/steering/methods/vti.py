"""VTI, its textual half: directions of grounded captions in the residual stream."""

from typing import Any

from vlm_jax.attention.steering import Steering
from vlm_jax.config import VLMConfig
from vlm_jax.steering.vectors import build_vectors


def vti(
    config: VLMConfig,
    *,
    vectors: Any = None,
    strength: float = 0.9,
    layers: tuple[int, int] | None = None,
    control: str = "",
    seed: int = 0,
) -> Steering:
    """VTI's textual half: turns all rows towards grounded captions, norms kept (arXiv 2410.15778).

    A row x becomes x / |x| + 0.1 strength d at the norm of x, d the unit vector of the layer. The
    released code does so to each MLP's output, this to what the layer left; the visual half, in the
    image tower, is left out.

    Args:
        config: the model.
        vectors: an .npy file that --job=identify made of pairs, by "component", or float32 [L, D].
        strength: beta in the paper.
        layers: first and last layer; all by default.
        control: "random" turns rows in random directions.
        seed: of the random directions.

    Raises:
        ConfigError: a setting cannot be.
    """
    return build_vectors(
        config,
        vectors,
        strength=0.1 * strength,
        layers=layers,
        where="all",
        keep_norm=True,
        relative=True,
        unit=True,
        control=control,
        seed=seed,
    )
