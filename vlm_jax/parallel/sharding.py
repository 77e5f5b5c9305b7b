"""Which dim of which parameter lives on which mesh axis, read off the parameter's own name."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

AXES: dict[str, str | None] = {
    "b": "data",
    "n": "model",  # query heads
    "k": "model",  # key heads
    "f": "model",  # feed-forward
    "v": "model",  # vocabulary
    "x": None,  # experts: each is split over its feed-forward dim, so none is ever gathered
    "d": None,
    "e": None,
    "h": None,
    "p": None,
    "3": None,
    "r": None,  # latent of keys and values
    "q": None,  # latent of queries
    "a": None,  # latent and rotated part
    "u": None,  # a head's plain key and value
}
"""Mesh axis of each dim letter (the package docstring has the letters); None is replicated."""


_said: set[tuple[str, int, int]] = set()


def _is_new(letter: str, size: int, devices: int) -> bool:
    """Whether a replicated dim has not been spoken of: all layers share one log line."""
    before = len(_said)
    _said.add((letter, size, devices))
    return len(_said) > before


def spec(dims: str, shape: Sequence[int], mesh: Mesh, name: str = "") -> PartitionSpec:
    """Returns the partition of an array whose dims are spelled by letters.

    A dim that its mesh axis does not divide (4 key heads on 8 devices) is replicated, and the log
    says so.

    Args:
        dims: one letter a dim, as in `dnh`.
        shape: sizes of the dims.
        mesh: the mesh.
        name: what to call the array in messages.

    Raises:
        ValueError: a letter is unknown, the letters do not match the shape, or two dims would
            share a mesh axis.
    """
    if len(dims) != len(shape) or any(letter not in AXES for letter in dims):
        raise ValueError(f"{name or dims}: dims {dims!r} do not describe the shape {tuple(shape)}.")
    axes: list[str | None] = []
    for letter, size in zip(dims, shape):
        axis = AXES[letter]
        if axis is not None and axis in axes:
            raise ValueError(f"{name or dims}: two dims of {dims!r} share mesh axis {axis!r}.")
        if axis is not None and size % mesh.shape[axis]:
            logging.log_if(
                logging.INFO,
                "Dim %r (size %d) of %s does not divide over %d devices: replicated.",
                _is_new(letter, size, mesh.shape[axis]),
                letter, size, name or dims, mesh.shape[axis],
            )  # fmt: skip
            axis = None
        axes.append(axis)
    return PartitionSpec(*axes)


_READS_IMAGES = ("vision/", "qformer/", "projector/")

LARGEST_WHOLE = 1.25e9
"""Parameters that every device holds of what reads images: 2.5 GB of bfloat16, a sixth of a v5e."""


def reads_images(path: str) -> bool:
    """Whether a parameter is one of what reads images: tower, Q-Former, projector."""
    return path.startswith(_READS_IMAGES)


def images_lie_whole(params: Mapping[str, Any]) -> bool:
    """Whether every device holds all of what reads images, so that each can read its own.

    Args:
        params: arrays or shapes of all parameters.
    """
    sizes = (math.prod(leaf.shape) for path, leaf in params.items() if reads_images(path))
    return sum(sizes) <= LARGEST_WHOLE


def param_shardings(params: Mapping[str, Any], mesh: Mesh) -> dict[str, NamedSharding]:
    """Returns the sharding of every parameter (arrays or shapes) of a flat dict of all of them."""
    whole = images_lie_whole(params)
    return {
        path: replicated(mesh)
        if whole and reads_images(path)
        else NamedSharding(mesh, spec(path.rsplit("_", 1)[-1], leaf.shape, mesh, path))
        for path, leaf in params.items()
    }


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of everything that leads with the batch."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def put(tree: Any, sharding: Sharding) -> Any:
    """Puts arrays of the host on devices.

    Where devices of several processes are meant, all of them call this with equal arrays, and each
    fills its own devices: nothing is sent, and nothing waits.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def place(leaf: Any) -> jax.Array:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])

    return jax.tree.map(place, tree)


def fetch(array: jax.Array, mesh: Mesh) -> np.ndarray:
    """Returns an array on a mesh to the host; all processes whose devices it holds call this."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    row = _row(replicated(mesh))
    # By rows, since a device may have no room for the whole.
    return np.stack([np.asarray(row(array, np.int32(n))) for n in range(array.shape[0])])


def collect(tree: Any, mesh: Mesh) -> Any:
    """Returns small arrays on a mesh to the host; all processes whose devices they hold call this.

    Devices send one another nothing unless several processes hold parts of an array.
    """
    here = lambda leaf: leaf.is_fully_addressable or leaf.is_fully_replicated
    whole = all(map(here, jax.tree.leaves(tree)))
    return jax.device_get(tree if whole else _gather(replicated(mesh))(tree))


@functools.cache
def _gather(sharding: NamedSharding) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=sharding)


@functools.cache
def _row(sharding: NamedSharding) -> Callable[[jax.Array, np.int32], jax.Array]:
    pick = lambda array, n: jax.lax.dynamic_index_in_dim(array, n, keepdims=False)
    return jax.jit(pick, out_shardings=sharding)
