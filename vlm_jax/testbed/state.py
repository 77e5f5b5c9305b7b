"""The state of a training run on disk: one safetensors file, replaced atomically."""

import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from vlm_jax.errors import CheckpointError

Params = dict[str, jax.Array]


def write_state(path: pathlib.Path, params: Params, optimiser: Any, place: dict[str, Any]) -> None:
    """Writes parameters, optimiser state and where training stands.

    Args:
        path: the file; what was there stays until the new one is whole.
        params: float32, by path.
        optimiser: any pytree of arrays.
        place: JSON values that name the run and the next step.
    """
    tensors = {f"params/{name}": np.asarray(value) for name, value in params.items()}
    for index, leaf in enumerate(jax.tree.leaves(optimiser)):
        tensors[f"optimiser/{index}"] = np.asarray(leaf)
    partial = path.with_suffix(".partial")
    safetensors.numpy.save_file(tensors, partial, {"place": json.dumps(place, sort_keys=True)})
    os.replace(partial, path)


def read_place(path: pathlib.Path) -> dict[str, Any]:
    """Returns where a run stands.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        with safetensors.safe_open(path, "numpy") as file:
            return json.loads(file.metadata()["place"])
    except (safetensors.SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{path} is not a readable training state ({error}); remove it to train anew."
        ) from None


def read_params(path: pathlib.Path) -> Params:
    """Returns the parameters of a state."""
    tensors = safetensors.numpy.load_file(path)
    return {
        name.removeprefix("params/"): jnp.asarray(value)
        for name, value in tensors.items()
        if name.startswith("params/")
    }


def read_optimiser(path: pathlib.Path, like: Any) -> Any:
    """Returns the optimiser state, in the structure of `like`."""
    tensors = safetensors.numpy.load_file(path)
    leaves, structure = jax.tree.flatten(like)
    read = [jnp.asarray(tensors[f"optimiser/{index}"]) for index in range(len(leaves))]
    return jax.tree.unflatten(structure, read)
