"""Bytes of a model on one chip, by the sharding table: what is known before anything compiles."""

import math

from vlm_jax.config import DecoderConfig, VLMConfig
from vlm_jax.models import abstract
from vlm_jax.parallel.sharding import AXES, images_lie_whole, reads_images
from vlm_jax.planning.chips import USABLE, Chip

MODELS = (1, 2, 4, 8, 16, 32, 64)
"""Devices of a replica that are tried."""


def param_bytes(config: VLMConfig, model: int, width: int = 2) -> dict[str, float]:
    """Returns the bytes of each parameter on each of `model` chips, by path.

    Args:
        config: the architecture.
        model: chips of a replica.
        width: bytes of a value.
    """
    shapes, found = abstract(config)[1], {}
    whole = images_lie_whole(shapes)
    for path, leaf in shapes.items():
        dims = zip(path.rsplit("_", 1)[-1], leaf.shape)
        divides = any(AXES[letter] == "model" and size % model == 0 for letter, size in dims)
        split = divides and not (whole and reads_images(path))
        found[path] = width * math.prod(leaf.shape) / (model if split else 1)
    return found


def weight_bytes(config: VLMConfig, model: int, width: int = 2) -> float:
    """Returns the bytes of all weights on each of `model` chips."""
    return sum(param_bytes(config, model, width).values())


def token_bytes(decoder: DecoderConfig, model: int, width: int = 2) -> float:
    """Returns the bytes that the caches of one token take on each of `model` chips."""
    found = 0.0
    for index in range(decoder.num_layers):
        latent = decoder.layer(index).attention
        if latent is not None:
            found += latent.rank + latent.rope_dim
        else:
            shared = model if decoder.num_kv_heads % model == 0 else 1
            found += 2 * decoder.num_kv_heads * decoder.head_dim / shared
    return width * found


def held_bytes(config: VLMConfig, model: int, rows: int, context: int) -> float:
    """Returns the bytes of weights and of the caches of rows of `context` tokens on each chip."""
    return weight_bytes(config, model) + rows * context * token_bytes(config.decoder, model)


def fewest_chips(
    config: VLMConfig, chip: Chip, rows: int, context: int, beside: float | None = None
) -> int | None:
    """Returns the fewest chips of a replica that hold the weights and the caches of some rows.

    None if no number of `MODELS` does.

    Args:
        config: the architecture.
        chip: of which they are.
        rows: rows of a replica.
        context: tokens of each.
        beside: bytes that programs take besides, where they are known; otherwise a share of the
            memory (`USABLE`) is kept for these.
    """
    room = USABLE * chip.memory if beside is None else chip.usable - beside
    for model in MODELS:
        if held_bytes(config, model, rows, context) <= room:
            return model
    return None
