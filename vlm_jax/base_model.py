"""A model with the weights of the language model that it was made of, from an HF folder."""

import dataclasses
import pathlib
from typing import Any

import einops
import jax.numpy as jnp
import numpy as np

from vlm_jax.api import VLM
from vlm_jax.errors import CheckpointError, ConfigError
from vlm_jax.families import find
from vlm_jax.families.decoders import TEXTS, decoder, decoder_rows, read_text
from vlm_jax.foreign import read_json
from vlm_jax.matching.base import read_tensors

# What the weights' shapes do not show, or show by names that say less.
_ALIKE = (
    "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim",
    "rms_norm_eps", "rope_theta", "rope_factor", "qkv_bias", "o_bias", "qk_norm",
)  # fmt: skip


def is_language_model(folder: pathlib.Path) -> bool:
    """Returns whether a folder's `config.json` describes a language model that sees no images."""
    path = folder / "config.json"
    if not path.is_file():
        return False
    fields = read_json(path, dict[str, Any])
    return fields.get("model_type") in TEXTS and "vision_config" not in fields


def with_language_model(model: VLM, folder: pathlib.Path) -> VLM:
    """Returns a model whose decoder has the weights of a language model; for text alone.

    Of the vocabulary the rows that both have are taken, by their ids: families append tokens of
    images to it. Its final norm and head stay, which attention does not read.

    Args:
        model: that was made of it.
        folder: as published: config.json and safetensors.

    Raises:
        ConfigError: it is of another architecture, naming what differs.
        CheckpointError: a tensor is missing or of another shape, naming it.
    """
    where, own = f"{folder / 'config.json'}", model.config.decoder
    fields = read_json(folder / "config.json", dict[str, Any])
    theirs = decoder(read_text(fields, where), where, own.tie_embeddings)
    for name in _ALIKE:
        if getattr(theirs, name) != getattr(own, name):
            raise ConfigError(
                f"{where} has {name} {getattr(theirs, name)}, but the model has "
                f"{getattr(own, name)}: it was not made of this language model."
            )
    config = dataclasses.replace(model.config, decoder=own)
    sizes = find(config.family).letters(config)["decoder"]
    wanted = {}
    for row in decoder_rows("model.", "lm_head.weight"):
        for layer in range(own.num_layers) if "{i}" in row.path else ():
            if row.when is None or row.when(config, layer):
                name, path = (text.replace("{i}", str(layer)) for text in (row.name, row.path))
                wanted[name] = path, row.pattern
    wanted["model.embed_tokens.weight"] = "decoder/embed_vd", "v d -> v d"
    params = dict(model.params)
    for name, array in read_tensors(folder, wanted):
        path, pattern = wanted.pop(name)
        inside = {
            letter: sizes[letter] for letter in pattern.split("->")[0] if f"({letter} " in pattern
        }
        array = einops.rearrange(array, pattern, **inside)
        if path == "decoder/embed_vd":
            count = min(len(array), own.vocab_size)
            array = np.concatenate([array[:count], np.asarray(params[path])[count:]])
        if array.shape != params[path].shape:
            raise CheckpointError(
                f"{folder}: the tensor {name} of shape {array.shape} does not fit."
            )
        params[path] = jnp.asarray(array, params[path].dtype)
    if wanted:
        raise CheckpointError(f"{folder} lacks the tensor {next(iter(wanted))}.")
    return model.with_params(params)
