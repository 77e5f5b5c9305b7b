"""Which dim of which parameter lives on which mesh axis, read off the parameter's own name."""

from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXES: dict[str, str | None] = {
    "b": "data",
    "n": "model",  # query heads
    "k": "model",  # key heads
    "f": "model",  # feed-forward
    "v": "model",  # vocabulary
    "d": None,
    "e": None,
    "h": None,
    "p": None,
    "3": None,
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


def param_shardings(params: Mapping[str, Any], mesh: Mesh) -> dict[str, NamedSharding]:
    """Returns the sharding of every parameter (arrays or shapes) of a flat dict."""
    return {
        path: NamedSharding(mesh, spec(path.rsplit("_", 1)[-1], leaf.shape, mesh, path))
        for path, leaf in params.items()
    }


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of everything that leads with the batch."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())
