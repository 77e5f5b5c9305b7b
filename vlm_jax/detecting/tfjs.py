"""Reads graphs of TensorFlow.js: `<name>.json`, with the weights in files beside it.

    graph = read_graph(path)
    graph.weights["dense/kernel"], graph.nodes["dense/MatMul"].input

The manifest lists tensors in the order of their bytes, without gaps, over its files one after
another: float32 or int32, or float16 where it says that a float32 was quantised so.
"""

import base64
import binascii
import dataclasses
import math
import pathlib
from typing import Annotated, Literal

import msgspec
import numpy as np

from vlm_jax.errors import CheckpointError
from vlm_jax.foreign import plain_name, read_bytes, read_json

MAX_BYTES = 1 << 30
MAX_NODES = 100_000

_Side = Annotated[int, msgspec.Meta(ge=0, le=1 << 24)]
_Shape = Annotated[list[_Side], msgspec.Meta(max_length=8)]
_Whole = Annotated[str, msgspec.Meta(pattern=r"^-?\d{1,9}$")]
_Text = Annotated[str, msgspec.Meta(max_length=1024)]


class _Quantised(msgspec.Struct):
    dtype: Literal["float16"]


class _Tensor(msgspec.Struct):
    name: _Text
    shape: _Shape
    dtype: Literal["float32", "int32"]
    quantization: _Quantised | None = None


class _Group(msgspec.Struct):
    paths: list[str]
    weights: list[_Tensor]


class _Values(msgspec.Struct):
    i: list[_Whole] = []
    s: list[_Text] = []


class _Attribute(msgspec.Struct):
    b: bool | None = None
    i: _Whole | None = None
    s: _Text | None = None
    type: _Text | None = None
    list: _Values | None = None


class Node(msgspec.Struct):
    """One operation: its name, what it does, the names of what it reads, and its settings."""

    name: _Text
    op: _Text
    input: list[_Text] = []
    attr: dict[str, _Attribute] = {}

    def flag(self, name: str) -> bool:
        """Returns a setting that is true or false; false where it is not there."""
        return bool(self.attr.get(name, _Attribute()).b)

    def whole(self, name: str) -> int:
        """Returns a whole number; 0 where it is not there."""
        return int(self.attr.get(name, _Attribute()).i or 0)

    def kind(self, name: str) -> str:
        """Returns a type, such as DT_FLOAT."""
        return self.attr.get(name, _Attribute()).type or ""

    def text(self, name: str) -> str:
        """Returns a string."""
        return _plain(self.attr.get(name, _Attribute()).s or "")

    def texts(self, name: str) -> list[str]:
        """Returns a list of strings."""
        return [_plain(one) for one in (self.attr.get(name, _Attribute()).list or _Values()).s]

    def wholes(self, name: str) -> list[int]:
        """Returns a list of whole numbers."""
        return [int(one) for one in (self.attr.get(name, _Attribute()).list or _Values()).i]


class _Topology(msgspec.Struct):
    node: Annotated[list[Node], msgspec.Meta(max_length=MAX_NODES)]


class _File(msgspec.Struct):
    format: Literal["graph-model"]
    modelTopology: _Topology
    weightsManifest: list[_Group]


@dataclasses.dataclass(frozen=True)
class Graph:
    """A graph and its weights.

    Attributes:
        path: of its JSON.
        nodes: by name.
        weights: float32 or int32, by the name of the node that they are.
    """

    path: pathlib.Path
    nodes: dict[str, Node]
    weights: dict[str, np.ndarray]


def read_graph(path: pathlib.Path) -> Graph:
    """Returns the graph of a file.

    Raises:
        CheckpointError: a file is missing or holds something else, naming it and the place.
    """
    found = read_json(path, _File)
    nodes = {node.name: node for node in found.modelTopology.node}
    if len(nodes) < len(found.modelTopology.node):
        raise CheckpointError(f"{path}: two nodes have one name.")
    weights: dict[str, np.ndarray] = {}
    for group in found.weightsManifest:
        weights |= _weights(path, group)
    for node in nodes.values():
        if node.op == "Const" and node.name not in weights:
            raise CheckpointError(f"{path}: the manifest lacks the weights of {node.name!r}.")
    return Graph(path, nodes, weights)


def _weights(path: pathlib.Path, group: _Group) -> dict[str, np.ndarray]:
    """The tensors of a group of files."""
    content = b"".join(
        read_bytes(path.parent / plain_name(name, str(path)), MAX_BYTES) for name in group.paths
    )
    weights, start = {}, 0
    for tensor in group.weights:
        stored = np.dtype("<f2" if tensor.quantization else f"<{tensor.dtype[0]}4")
        end = start + math.prod(tensor.shape) * stored.itemsize
        if tensor.quantization and tensor.dtype != "float32":
            raise CheckpointError(f"{path}: {tensor.name!r} is {tensor.dtype} made of float16.")
        if end > len(content):
            raise CheckpointError(
                f"{path}: the tensor {tensor.name!r} ends at byte {end}, but {group.paths} hold "
                f"{len(content)}."
            )
        values = np.frombuffer(content[start:end], stored).astype(tensor.dtype)
        if not np.isfinite(values).all():
            raise CheckpointError(f"{path}: the tensor {tensor.name!r} is not finite.")
        weights[tensor.name], start = values.reshape(tensor.shape), end
    if start != len(content):
        raise CheckpointError(
            f"{path}: its tensors have {start} bytes, but {group.paths} hold {len(content)}."
        )
    return weights


def _plain(text: str) -> str:
    """The text of a string in base64."""
    try:
        return base64.b64decode(text, validate=True).decode("ascii")
    except (binascii.Error, UnicodeDecodeError):
        raise CheckpointError(f"{text[:40]!r} is no text in base64, in a graph's node.") from None
