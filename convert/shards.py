"""The safetensors files of a folder: one, or shards with an index."""

import pathlib
from collections.abc import Mapping

import msgspec

from convert import safetensors_io
from convert.safetensors_io import Header
from vlm_jax.errors import CheckpointError
from vlm_jax.foreign import parse_json, plain_name, read_bytes

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def read_headers(folder: pathlib.Path) -> dict[str, Header]:
    """Returns file name -> header of a folder's weights, in the index's order of first mention.

    Raises:
        CheckpointError: there are none, or a file is missing, truncated or corrupt.
    """
    if (folder / SINGLE).exists():
        return {SINGLE: safetensors_io.read_header(folder / SINGLE)}
    if (folder / INDEX).exists():
        names = dict.fromkeys(weight_map_of(folder).values())
        return {name: safetensors_io.read_header(folder / name) for name in names}
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")):
        raise CheckpointError(
            f"{folder} holds PyTorch pickles only, which are not read because a pickle can run "
            "code. Save the model as safetensors first (save_pretrained of transformers does)."
        )
    raise CheckpointError(f"{folder} has neither {SINGLE} nor {INDEX}. Fetch the weights.")


def places(folder: pathlib.Path, files: Mapping[str, Header]) -> dict[str, str]:
    """Returns tensor name -> file name of a folder's weights.

    Raises:
        CheckpointError: a tensor is in two files, or not in the one where the index places it.
    """
    found: dict[str, str] = {}
    for file, header in files.items():
        for name in header.entries:
            if name in found:
                raise CheckpointError(
                    f"{folder}: tensor {name!r} is in both {found[name]} and {file}; remove the "
                    "file that does not belong to the model."
                )
            found[name] = file
    if SINGLE not in files and (folder / INDEX).exists():
        for name, file in weight_map_of(folder).items():
            if found.get(name) != file:
                raise CheckpointError(
                    f"{folder / file} lacks tensor {name!r}, which {INDEX} places there. Fetch "
                    "both files again."
                )
    return found


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def read_weight_map(content: bytes, where: str) -> dict[str, str]:
    """Returns tensor name -> file name of a shard index; `where` is its file, for errors.

    Raises:
        CheckpointError: it is none, or names anything but plain `*.safetensors` files.
    """
    weight_map = parse_json(content, _Index, where).weight_map
    if not weight_map:
        raise CheckpointError(f"{where} names no tensors.")
    for file in dict.fromkeys(weight_map.values()):
        plain_name(file, where, ".safetensors")
    return weight_map


def weight_map_of(folder: pathlib.Path) -> dict[str, str]:
    """Returns tensor name -> file name of a folder with shards; raises as `read_weight_map`."""
    return read_weight_map(read_bytes(folder / INDEX), str(folder / INDEX))
