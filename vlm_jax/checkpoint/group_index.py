"""The index of the groups of tensors in a folder: which are complete, with a CRC-32 of each tensor.

{"group": "00003", "tensors": {"decoder/embed_vd": {...}}, "crc32": {"decoder/embed_vd": 17}}
"""

import dataclasses
import json
import os
import pathlib
import zlib
from collections.abc import Mapping
from typing import Annotated

import msgspec
import numpy as np

from vlm_jax.checkpoint.folder import StoredTensor, TensorInfo
from vlm_jax.errors import CheckpointError
from vlm_jax.foreign import parse_json, read_bytes

INDEX = "index.jsonl"


@dataclasses.dataclass(frozen=True)
class Group:
    """What a group holds: shapes and dtypes, and the CRC-32 of each array's bytes, by path."""

    infos: Mapping[str, TensorInfo]
    crc32: Mapping[str, int]


class _Line(msgspec.Struct):
    """A line of the index. A group's name is that of its folder."""

    group: Annotated[str, msgspec.Meta(pattern=r"^\d{5}$")]
    tensors: dict[str, StoredTensor]
    crc32: dict[str, int] = {}


def crc32_of(array: np.ndarray) -> int:
    """Returns the CRC-32 of an array's bytes, in the order of its dims."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def append_index(folder: pathlib.Path, name: str, group: Group) -> None:
    """Appends a group that is complete to the index of a folder, and syncs it to disk."""
    with (folder / INDEX).open("ab") as file:
        file.write(index_line(name, group))
        file.flush()
        os.fsync(file.fileno())


def index_line(name: str, group: Group) -> bytes:
    """Returns the line of a group, as `read_line` reads it."""
    tensors = {p: {"shape": list(i.shape), "dtype": i.dtype.name} for p, i in group.infos.items()}
    fields = {"group": name, "tensors": tensors, "crc32": dict(group.crc32)}
    return (json.dumps(fields) + "\n").encode()


def read_index(path: pathlib.Path) -> dict[str, Group]:
    """Returns the groups of an index by name.

    Raises:
        CheckpointError: it cannot be read, or a line of it is damaged.
    """
    groups: dict[str, Group] = {}
    for number, line in enumerate(read_bytes(path).splitlines(), 1):
        name, group = read_line(line, f"{path} line {number}")
        if name in groups:
            raise CheckpointError(f"{path} line {number}: group {name} is there twice.")
        groups[name] = group
    return groups


def read_line(line: bytes, where: str) -> tuple[str, Group]:
    """Returns name and content of a group; `where` names the line in errors.

    Raises:
        CheckpointError: the line is damaged.
    """
    found = parse_json(line, _Line, where)
    infos = {path: tensor.info for path, tensor in found.tensors.items()}
    return found.group, Group(infos, found.crc32)
