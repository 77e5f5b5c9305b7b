"""Vectors for the residual stream: read from a file or an array, and put into a steering."""

import io
import os
import pathlib
from typing import Any

import numpy as np

from vlm_jax.attention.steering import Steering, Vectors
from vlm_jax.config import VLMConfig
from vlm_jax.errors import ConfigError
from vlm_jax.foreign import read_bytes
from vlm_jax.settings import listed, number, one_of, whole
from vlm_jax.steering.layers import layer_range

WHERE = "all", "image", "text", "answer"
CONTROLS = "", "random"
LARGEST_FILE = 1 << 28


def read_vectors(vectors: Any, config: VLMConfig) -> np.ndarray:
    """Returns float32 [L, D] vectors.

    Args:
        vectors: the path of an .npy file that --job=identify made of pairs, or an array.
        config: of the model that they are for.

    Raises:
        ConfigError: there are none, or they are not finite, or of a model of another shape.
    """
    shape = config.decoder.num_layers, config.decoder.hidden_size
    if isinstance(vectors, str | os.PathLike):
        path = pathlib.Path(vectors)
        if not path.is_file():
            raise ConfigError(
                f"vectors: there is no file {path}; make one with --job=identify"
                " --config.identify.pairs=<file>."
            )
        try:
            found = np.load(io.BytesIO(read_bytes(path, LARGEST_FILE)), allow_pickle=False)
        except ValueError as error:
            raise ConfigError(f"vectors: {path} is no .npy file of numbers ({error}).") from None
    elif vectors is None:
        raise ConfigError("vectors must be an .npy file of --job=identify, or an array.")
    else:
        found = np.asarray(vectors)
    if found.shape != shape or found.dtype.kind not in "fiu":
        raise ConfigError(
            f"vectors has shape {found.shape}, but the model has {shape[0]} layers of {shape[1]} "
            "dims; find its own with --job=identify."
        )
    if not np.isfinite(found).all():
        raise ConfigError("vectors holds numbers that are not finite.")
    return found.astype(np.float32)


def build_vectors(
    config: VLMConfig,
    vectors: Any,
    *,
    strength: Any,
    layers: Any,
    where: Any,
    positions: Any = (),
    keep_norm: bool = False,
    relative: bool = False,
    unit: bool = False,
    control: Any = "",
    seed: Any = 0,
) -> Steering:
    """Returns the steering that adds vectors; the settings of the methods that do say more.

    Args:
        config: the model.
        vectors: as `read_vectors` takes them.
        strength: factor on them.
        layers: first and last layer that they are added behind; None is all.
        where, positions, keep_norm, relative: see `Vectors`.
        unit: whether each layer's vector is divided by its norm first.
        control: "random" adds vectors of the same norms in random directions.
        seed: of the random directions.

    Raises:
        ConfigError: a setting cannot be.
    """
    add_ld = read_vectors(vectors, config)
    if one_of("control", control, CONTROLS):
        drawn = np.random.default_rng(whole("seed", seed, low=0)).standard_normal(add_ld.shape)
        norms = np.linalg.norm(add_ld, axis=1, keepdims=True)
        add_ld = norms * drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    if unit:
        add_ld = add_ld / np.maximum(np.linalg.norm(add_ld, axis=1, keepdims=True), 1e-12)
    chosen = np.ones(len(add_ld), bool)
    if layers is not None:
        chosen = np.isin(np.arange(len(add_ld)), list(layer_range("layers", layers, len(add_ld))))
    add_ld = np.where(chosen[:, None], number("strength", strength) * add_ld, 0)
    return Steering(
        vectors=Vectors(
            np.asarray(add_ld, np.float32)[None],
            where=one_of("where", where, WHERE),  # pyright: ignore[reportArgumentType]
            positions=listed("positions", positions, whole),
            keep_norm=keep_norm,
            relative=relative,
        )
    )
