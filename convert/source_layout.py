"""How a Hugging Face folder held its tensors: kept beside a converted model, so that export can
reproduce the very files, headers and shards included.
"""

import base64
import dataclasses
import json
from collections.abc import Mapping

from convert.hf_folder import HFFolder
from convert.safetensors_io import Header, build_header, parse_header
from convert.table import Binding
from vlm_jax.checkpoint import TensorInfo

SHARD_BYTES = 5 * 10**9


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


def of_folder(folder: HFFolder) -> SourceLayout:
    """The layout of an open folder."""
    return SourceLayout(folder.files, folder.index(), folder.buffers())


def from_json(text: bytes) -> SourceLayout:
    """Reads what `to_json` wrote."""
    fields = json.loads(text)
    return SourceLayout(
        files={name: parse_header(t.encode(), name) for name, t in fields["files"].items()},
        index=None if fields["index"] is None else fields["index"].encode(),
        buffers={name: base64.b64decode(raw) for name, raw in fields["buffers"].items()},
    )


def fresh(binding: Binding, tensors: Mapping[str, TensorInfo]) -> SourceLayout:
    """A layout for a model that came from no files: hub names, shards of at most 5 GB."""
    shards: list[list[tuple]] = [[]]
    size = 0
    for path, tensor in binding.by_path.items():
        nbytes = tensors[path].nbytes
        if shards[-1] and size + nbytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append((tensor.name, tensors[path].dtype, tensor.disk_shape))
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
