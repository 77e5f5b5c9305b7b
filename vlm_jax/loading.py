"""Models by name or folder, ready to be asked: `vlm_jax.load`."""

import logging
import os
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vlm_jax import checkpoint, hub
from vlm_jax.api import VLM
from vlm_jax.decoding.generate import generator_of
from vlm_jax.decoding.settings import unfollowed
from vlm_jax.errors import ConfigError
from vlm_jax.models import abstract
from vlm_jax.parallel import lay_out, make_mesh, param_shardings
from vlm_jax.processing import MAX_IMAGE_PIXELS, Processor
from vlm_jax.settings import nearest

DTYPES = {
    "float32": "float32", "fp32": "float32", "float": "float32", "single": "float32",
    "bfloat16": "bfloat16", "bf16": "bfloat16",
    "float16": "float16", "fp16": "float16", "half": "float16",
}  # fmt: skip
"""What dtypes of weights and activations are called, and which they are."""

_log = logging.getLogger(__name__)


def read_dtype(dtype: Any) -> str:
    """Returns the name of a dtype of weights: "float32", "bfloat16" or "float16".

    Args:
        dtype: one of these, a usual short form ("bf16", "half"), or a dtype of NumPy or JAX.

    Raises:
        ConfigError: it is none that a model can run in.
    """
    name = str(dtype) if isinstance(dtype, str) else getattr(dtype, "__name__", str(dtype))
    name = name.removeprefix("torch.").lower()
    if name not in DTYPES:
        raise ConfigError(
            f"dtype must be 'float32', 'bfloat16' or 'float16', not {name!r}"
            f"{nearest(name, DTYPES)}."
        )
    return DTYPES[name]


def load(
    source: str | os.PathLike | checkpoint.ModelFolder,
    *,
    dtype: Any = None,
    mesh: Mesh | None = None,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    max_tiles: int = 0,
    min_pixels: int = 0,
    max_pixels: int = 0,
) -> VLM:
    """Loads a model: one that ships with the package, a folder, or one of the hub.

        vlm_jax.load("llava-0")                        # shipped, trained on drawn scenes
        vlm_jax.load("models/Qwen2.5-VL-7B-Instruct")  # as published, or converted
        vlm_jax.load("Qwen/Qwen2.5-VL-7B-Instruct")    # by its hub name; downloaded once

    Args:
        source: see `vlm_jax.hub.resolve`; or a folder that is open already.
        dtype: of the weights and activations ("float32", "bfloat16", "float16"); float32 on CPU
            and bfloat16 elsewhere by default. Softmax, norms and logits are float32 always.
        mesh: where to put it; all devices as data replicas by default.
        max_image_pixels: images of more pixels, as they are or once resized, are refused.
        max_tiles: tiles of an image's grid at most (InternVL); 0 is what the folder says.
        min_pixels, max_pixels: fewest and most pixels that images are resized to (Qwen2.5-VL,
            Qwen3-VL); 0 is what the folder says.

    Raises:
        CheckpointError, ConfigError: naming what is wrong with the folder.
    """
    chosen = None if dtype is None else read_dtype(dtype)
    opened = isinstance(source, checkpoint.ModelFolder)
    folder = source if opened else checkpoint.open_folder(hub.resolve(source))
    if not isinstance(mesh, Mesh | None):
        raise ConfigError(
            f"mesh must be a jax.sharding.Mesh, as vlm_jax.parallel.make_mesh(data=..., model=...) "
            f"makes them, not {mesh!r}."
        )
    mesh = mesh or make_mesh()
    chosen = chosen or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    shardings = param_shardings(abstract(folder.config)[1], mesh)
    params = folder.load(jnp.dtype(chosen), shardings)
    lay_out(params)
    limits = {"max_image_pixels": max_image_pixels, "max_tiles": max_tiles}
    limits |= {"min_pixels": min_pixels, "max_pixels": max_pixels}
    processor = Processor.from_folder(folder.path, folder.config, **limits)
    line = unfollowed(processor.generation)
    if line:
        _log.warning("%s", line)
    generator = generator_of(folder.config, mesh)
    return VLM(folder.config, params, processor, mesh, generator, folder)
