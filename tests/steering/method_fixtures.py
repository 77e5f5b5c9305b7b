"""Architectures without weights, and readings made by hand, for the tests of methods."""

import dataclasses

import numpy as np

from vlm_jax.attention.steering import Readings
from vlm_jax.families import parse_config

LLAMA = {"model_type": "llama", "hidden_size": 128, "intermediate_size": 64, "vocab_size": 50}


def model_config(layers: int, heads: int):
    """A LLaVA of this many layers and heads."""
    config = parse_config({"model_type": "llava", "image_token_index": 4, "text_config": LLAMA})
    decoder = dataclasses.replace(
        config.decoder, num_layers=layers, num_heads=heads, num_kv_heads=heads
    )
    return dataclasses.replace(config, decoder=decoder)


def readings(**leaves) -> Readings:
    """One answer's readings; leaves that are not given are 0."""
    shape = next(iter(leaves.values())).shape
    names = [field.name for field in dataclasses.fields(Readings)]
    return Readings(**{name: leaves.get(name, np.zeros(shape, np.float32)) for name in names})
