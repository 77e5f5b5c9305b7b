"""How a Hugging Face folder held its tensors: kept beside a converted model, so that export can
reproduce the very files, headers and shards included.
"""

import base64
import binascii
import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Literal

import msgspec

from convert.hf_folder import HFFolder
from convert.safetensors_io import Header, build_header, parse_header
from convert.shards import INDEX, SINGLE, read_weight_map
from convert.table import Binding
from vlm_jax.checkpoint import TensorInfo
from vlm_jax.errors import CheckpointError
from vlm_jax.foreign import parse_json, plain_name, utf8

SHARD_BYTES = 5 * 10**9


class _File(msgspec.Struct):
    """What `SourceLayout.to_json` writes."""

    format: Literal["huggingface"]
    files: dict[str, str]
    index: str | None
    buffers: dict[str, str]


@dataclasses.dataclass(frozen=True)
class SourceLayout:
    """The files of a checkpoint without the bytes of its parameters.

    Attributes:
        files: file name -> header.
        index: the shard index, or None for a single file.
        buffers: the bytes of every tensor that is no parameter, by name.
    """

    files: Mapping[str, Header]
    index: bytes | None
    buffers: Mapping[str, bytes]

    def to_json(self) -> bytes:
        """Serialises it; every byte of headers and index survives."""
        fields = {
            "format": "huggingface",
            "files": {name: header.text.decode() for name, header in self.files.items()},
            "index": None if self.index is None else self.index.decode(),
            "buffers": {name: base64.b64encode(raw).decode() for name, raw in self.buffers.items()},
        }
        return (json.dumps(fields, indent=1) + "\n").encode()

    def renamed(self, spell: Callable[[str], str]) -> "SourceLayout":
        """The same files with other names of tensors in headers and index."""
        files = {}
        for file, header in self.files.items():
            entries = [(spell(e.name), e.dtype, e.shape) for e in header.entries.values()]
            metadata = json.loads(header.text).get("__metadata__", {})
            files[file] = build_header(entries, metadata)
        index = self.index
        if index is not None:
            fields = json.loads(index)
            names = {spell(name): file for name, file in fields["weight_map"].items()}
            fields["weight_map"] = dict(sorted(names.items()))
            index = (json.dumps(fields, indent=2) + "\n").encode()
        return SourceLayout(files, index, {spell(n): raw for n, raw in self.buffers.items()})


def of_folder(folder: HFFolder) -> SourceLayout:
    """The layout of an open folder."""
    return SourceLayout(folder.files, folder.index(), folder.buffers())


def from_json(text: bytes, where: str) -> SourceLayout:
    """Reads what `to_json` wrote; `where` is its file, for errors.

    Raises:
        CheckpointError: it holds something else, names a file that is not a plain
            `*.safetensors`, or an index or buffers that do not belong to its headers.
    """
    fields = parse_json(text, _File, where)
    if not fields.files:
        raise CheckpointError(f"{where} names no files.")
    for name in fields.files:
        plain_name(name, where, ".safetensors")
    if len({name.casefold() for name in fields.files}) != len(fields.files):
        raise CheckpointError(f"{where} names files that differ in upper and lower case alone.")
    files = {n: parse_header(utf8(t, where), f"{where}: {n}") for n, t in fields.files.items()}
    entries = [entry for header in files.values() for entry in header.entries.values()]
    sizes = {entry.name: entry.stop - entry.start for entry in entries}
    if len(sizes) != len(entries):
        raise CheckpointError(f"{where} names a tensor in two files.")
    buffers = {name: _decoded(raw, name, where) for name, raw in fields.buffers.items()}
    for name, raw in buffers.items():
        if len(raw) != sizes.get(name):
            raise CheckpointError(f"{where} has {len(raw)} bytes of tensor {name!r}, not its size.")
    index = None if fields.index is None else utf8(fields.index, where)
    if index is not None:
        weight_map = read_weight_map(index, f"{where}: {INDEX}")
        if not files.keys() >= set(weight_map.values()):
            raise CheckpointError(f"{where}: {INDEX} names files that the folder did not have.")
    elif files.keys() != {SINGLE}:
        raise CheckpointError(f"{where} has no {INDEX}, without which {SINGLE} must be the file.")
    return SourceLayout(files, index, buffers)


def _decoded(text: str, name: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise CheckpointError(f"{where}: the bytes of tensor {name!r} are not base64.") from None


def fresh(binding: Binding, tensors: Mapping[str, TensorInfo]) -> SourceLayout:
    """A layout for a model that came from no files: hub names, shards of at most 5 GB."""
    shards: list[list[tuple]] = [[]]
    size = 0
    for tensor in binding.parameters:
        dtype = tensors[tensor.path].dtype
        nbytes = math.prod(tensor.disk_shape) * dtype.itemsize
        if shards[-1] and size + nbytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append((tensor.name, dtype, tensor.disk_shape))
        size += nbytes
    if len(shards) == 1:
        return SourceLayout({"model.safetensors": _header(shards[0])}, None, {})
    files, weight_map = {}, {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        files[file] = _header(shard)
        weight_map |= {name: file for name, _, _ in shard}
    total = sum(info.nbytes for info in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return SourceLayout(files, (json.dumps(index, indent=2) + "\n").encode(), {})


def _header(shard: list[tuple]) -> Header:
    return build_header(shard, {"format": "pt"})  # transformers refuses a file without the mark
