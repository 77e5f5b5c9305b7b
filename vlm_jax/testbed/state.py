"""The state of a training run on disk: one safetensors file, replaced atomically.

A run that goes on has float32 parameters in it, one that has ended what ships of them.
"""

import hashlib
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from vlm_jax.errors import CheckpointError
from vlm_jax.files import replace_file
from vlm_jax.foreign import read_bytes

Params = dict[str, jax.Array]

_MAX_BYTES = 1 << 32


def round_params(params: Params) -> Params:
    """Rounds parameters to the type they ship in, float16."""
    return {name: value.astype(jnp.float16) for name, value in params.items()}


def write_state(path: pathlib.Path, params: Params, optimiser: Any, place: dict[str, Any]) -> None:
    """Writes parameters, optimiser state and where training stands.

    Args:
        path: the file; what was there stays until the new one is whole.
        params: by path.
        optimiser: any pytree of arrays.
        place: JSON values that name the run and the next step.
    """
    tensors = {f"params/{name}": np.asarray(value) for name, value in params.items()}
    for index, leaf in enumerate(jax.tree.leaves(optimiser)):
        tensors[f"optimiser/{index}"] = np.asarray(leaf)
    text = json.dumps(place, sort_keys=True)
    fields = {"place": text, "sha256": _digest(tensors, text)}
    replace_file(path, safetensors.numpy.save(tensors, fields), "the state before it is kept")


def read_place(path: pathlib.Path) -> dict[str, Any]:
    """Returns where a run stands, once all of its state is known to be what was written.

    Raises:
        CheckpointError: the file is damaged.
    """
    content = read_bytes(path, _MAX_BYTES)
    try:
        tensors = safetensors.numpy.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        fields = header["__metadata__"]
        if fields["sha256"] != _digest(tensors, fields["place"]):
            raise ValueError("its checksum is another")
        return json.loads(fields["place"])
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not a readable training state ({error}); remove it to train anew."
        ) from None


def _digest(tensors: dict[str, np.ndarray], place: str) -> str:
    """A hash of tensors and where the run stands."""
    known = hashlib.sha256(place.encode())
    for name, array in sorted(tensors.items()):
        known.update(f"{name} {array.dtype} {array.shape}\n".encode())
        known.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return known.hexdigest()


def read_params(path: pathlib.Path) -> Params:
    """Returns the parameters of a state in float32, whatever they are stored in."""
    tensors = safetensors.numpy.load_file(path)
    return {
        name.removeprefix("params/"): jnp.asarray(value, jnp.float32)
        for name, value in tensors.items()
        if name.startswith("params/")
    }


def read_optimiser(path: pathlib.Path, like: Any) -> Any:
    """Returns the optimiser state, in the structure of `like`."""
    tensors = safetensors.numpy.load_file(path)
    leaves, structure = jax.tree.flatten(like)
    read = [jnp.asarray(tensors[f"optimiser/{index}"]) for index in range(len(leaves))]
    return jax.tree.unflatten(structure, read)
