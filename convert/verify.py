"""Compares an edited folder with its original and with its certificate, by NumPy alone.

    found = verify_hf("llava-1.5-7b-hf", "edited-hf")
    found.heads       # which query heads changed, and by how much
    found.files       # other files that differ: config.json, a tokenizer
    found.faults      # tensors that changed but are not certified; empty for a sound folder
    found.left        # share of the edit that survives rounding to fewer bits

A certificate knows tensors by our names and layouts; here one is found by its layer, its name's end
and its hash, so that no model's code is needed.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import ml_dtypes
import msgspec
import numpy as np

from convert import safetensors_io
from convert.safetensors_io import Entry
from convert.shards import INDEX, SINGLE, places, read_headers
from vlm_jax.edit_record import CERTIFICATE, SIDECAR, EditRecord, digest, read_certificate
from vlm_jax.errors import CheckpointError
from vlm_jax.foreign import convert, read_bytes, read_json
from vlm_jax.terminal import written

_CERTIFIED = re.compile(r"decoder/layers/(\d+)/(wq_dnh|bq_nh)")
_ENDS = {"wq_dnh": "q_proj.weight", "bq_nh": "q_proj.bias"}
_WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".gguf", ".h5", ".msgpack", ".onnx")
_GROUP = 128  # inputs that share a scale, as 4-bit checkpoints have them


@dataclasses.dataclass(frozen=True)
class HeadChange:
    """A query head that is not the original's.

    Attributes:
        layer: of the decoder.
        head: among the layer's query heads.
        relative: norm of the change of its weights over the norm of its weights.
        certified: the same by the certificate, before rounding to the stored dtype; None where it
            does not name the head.
    """

    layer: int
    head: int
    relative: float
    certified: float | None


@dataclasses.dataclass(frozen=True)
class Left:
    """How much of the change between two folders survives a rounding of both folders' weights.

    Attributes:
        share: <rounded change, change> / <change, change>: 1 is all of it.
        noise: norm of what rounding adds to the change, over the norm of the change.
    """

    share: float
    noise: float


@dataclasses.dataclass(frozen=True)
class Verification:
    """The differences between an original folder and its edited copy.

    Attributes:
        original: folder.
        edited: folder.
        tensors: how many tensors both have.
        equal: how many of them have the same bytes.
        heads: query heads that changed as the certificate has it, by layer and head.
        faults: tensor on disk -> what is wrong with it.
        left: rounding -> what it leaves of the edit; empty where nothing was edited.
        files: other file -> how it differs from the original's, such as a config.json. Not a fault:
            the certificate is about tensors.
    """

    original: pathlib.Path
    edited: pathlib.Path
    tensors: int
    equal: int
    heads: Sequence[HeadChange]
    faults: Mapping[str, str]
    left: Mapping[str, Left]
    files: Mapping[str, str]

    def __str__(self) -> str:
        parts = [f"{self.equal} of {self.tensors} tensors have the same bytes."]
        if self.heads:
            known = lambda value: "-" if value is None else f"{value:.4f}"
            rows = [
                [str(h.layer), str(h.head), f"{h.relative:.4f}", known(h.certified)]
                for h in self.heads
            ]
            parts.append(written(["layer", "head", "change", "certified"], rows))
        if self.left:
            rows = [[n, f"{x.share:.1%}", f"{x.noise:.1%}"] for n, x in self.left.items()]
            parts.append(written(["rounded to", "of the edit left", "noise added"], rows))
        if self.faults:
            parts.append(written(["tensor", "fault"], [list(x) for x in self.faults.items()]))
        if self.files:
            parts.append(written(["other file", ""], [list(x) for x in self.files.items()]))
        return "\n\n".join(parts)

    def check(self) -> None:
        """Refuses an edited folder in which anything is not as certified.

        Raises:
            CheckpointError: naming the first such tensor, and how many there are.
        """
        if self.faults:
            name, fault = next(iter(self.faults.items()))
            more = f" ({len(self.faults)} tensors have faults)" if len(self.faults) > 1 else ""
            raise CheckpointError(f"{self.edited}: tensor {name!r} {fault}{more}.")


def verify_hf(original: str | os.PathLike[str], edited: str | os.PathLike[str]) -> Verification:
    """Compares two safetensors folders tensor by tensor, and the second with its certificate.

    Args:
        original: folder that was edited, in the Hugging Face layout.
        edited: the result.

    Raises:
        CheckpointError: files of one are missing or damaged.
    """
    before, after = _Weights(pathlib.Path(original)), _Weights(pathlib.Path(edited))
    record = read_certificate(after.path)
    faults = {name: "is missing" for name in before.entries if name not in after.entries}
    faults |= {n: "is not in the original" for n in after.entries if n not in before.entries}
    both = [name for name in before.entries if name in after.entries]
    hashes = {} if record is None else record.tensors
    named = _named(hashes, before, both)
    for path in hashes.keys() - named.values():
        faults[path] = f"of {CERTIFICATE} is not in {before.path}: it is of another model"
    equal, changes = 0, {}
    for name in both:
        old, new = before.entries[name], after.entries[name]
        if (old.dtype, old.shape) != (new.dtype, new.shape):
            text = f"{new.dtype} {list(new.shape)}, but {old.dtype} {list(old.shape)}"
            faults[name] = f"is {text} in the original"
            continue
        one, other = before.read(name), after.read(name)
        same = np.array_equal(_bytes(one), _bytes(other))
        path = named.get(name)
        if path is not None and digest(_ours(other)) != hashes[path]["after"]:
            faults[name] = f"is not the one that {CERTIFICATE} certifies"
        elif same:
            equal += 1
        elif path is not None:
            changes[name] = one, other
        else:
            lacks = "there is no" if record is None else "it is not in"
            faults[name] = f"was changed, and {lacks} {CERTIFICATE}"
    heads: list[HeadChange] = []
    if record is not None and changes:
        heads = _heads(changes, named, record, after.path, faults)
    files = _files(before.path, after.path)
    left = _left(changes)
    return Verification(before.path, after.path, len(both), equal, heads, faults, left, files)


class _Weights:
    """The tensors of a folder by their names on disk."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        if (path / SINGLE).exists() and (path / INDEX).exists():
            raise CheckpointError(
                f"{path} has both {SINGLE} and {INDEX}, of which some programs read the one and "
                "some the other; remove what does not belong to the model."
            )
        headers = read_headers(path)
        self._where = {n: (path / f, headers[f]) for n, f in places(path, headers).items()}
        self.entries: dict[str, Entry] = {
            name: header.entries[name] for name, (_, header) in self._where.items()
        }

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor as stored."""
        return safetensors_io.read(*self._where[name], name)


def _bytes(array: np.ndarray) -> np.ndarray:
    """Returns an array's bytes, by which a NaN equals itself."""
    return array.reshape(-1).view(np.uint8)


def _ours(array: np.ndarray) -> np.ndarray:
    """Returns query weights [N*H, D], or a bias [N*H], in the order that certificates hash."""
    return array.T


def _named(
    hashes: Mapping[str, Mapping[str, str]], before: _Weights, names: list[str]
) -> dict[str, str]:
    """Returns name on disk -> the certificate's, of tensors that have the hash from before."""
    found = {}
    for path, both in hashes.items():
        ours = _CERTIFIED.fullmatch(path)
        if ours is None:
            continue
        end = f"layers.{ours[1]}.self_attn.{_ENDS[ours[2]]}"
        alike = (name for name in names if name.endswith(end))
        found |= {n: path for n in alike if digest(_ours(before.read(n))) == both["before"]}
    return found


def _files(original: pathlib.Path, edited: pathlib.Path) -> dict[str, str]:
    """Returns other file -> how the edited folder's differs from the original's.

    What an edit itself adds, cards and indices are left out.
    """
    left_out = {CERTIFICATE, SIDECAR, INDEX, "README.md"}

    def listed(folder: pathlib.Path) -> set[str]:
        return {
            entry.name
            for entry in folder.iterdir()
            if entry.is_file() and entry.suffix not in _WEIGHTS and entry.name not in left_out
        }

    before, after = listed(original), listed(edited)
    differs = {name: "is missing" for name in before - after}
    differs |= {name: "is not in the original" for name in after - before}
    for name in before & after:
        if read_bytes(original / name) != read_bytes(edited / name):
            differs[name] = "differs"
    return dict(sorted(differs.items()))


class _Decoder(msgspec.Struct):
    num_attention_heads: Annotated[int, msgspec.Meta(ge=1)] | None = None


class _Config(_Decoder):
    """What is read of config.json."""

    text_config: _Decoder | None = None
    llm_config: _Decoder | None = None
    language_config: _Decoder | None = None


class _Head(msgspec.Struct):
    layer: int
    head: int
    spectrum_before: list[float]
    edit: dict[str, float]


class _Certified(msgspec.Struct):
    """What is read of a certificate beside its hashes."""

    heads: list[_Head]


def _head_dim(folder: pathlib.Path, rows: int, certified: list[_Head]) -> int:
    """Returns the width of a query head: by config.json, or by the rank of the certified heads."""
    config = read_json(folder / "config.json", _Config)
    parts = config.text_config, config.llm_config, config.language_config, config
    counts = [part.num_attention_heads for part in parts if part and part.num_attention_heads]
    width = rows // counts[0] if counts else len(certified[0].spectrum_before) if certified else 0
    if width < 1 or rows % width:
        raise CheckpointError(
            f"{folder / 'config.json'} does not say how many heads share {rows} rows of queries "
            "(num_attention_heads)."
        )
    return width


def _heads(
    changes: Mapping[str, tuple[np.ndarray, np.ndarray]],
    named: Mapping[str, str],
    record: EditRecord,
    folder: pathlib.Path,
    faults: dict[str, str],
) -> list[HeadChange]:
    """Returns the heads whose weights or biases changed; those not certified are faults."""
    certified = convert(record.fields, _Certified, str(record.path)).heads
    relative = {(h.layer, h.head): h.edit.get("dw_relative") for h in certified}
    squares: dict[tuple[int, int], np.ndarray] = {}
    for name, pair in changes.items():
        layer = int(named[name].split("/")[2])
        width = _head_dim(folder, len(pair[0]), certified)
        old, new = (array.astype(np.float64).reshape(-1, width * array[0].size) for array in pair)
        both = np.stack([((new - old) ** 2).sum(axis=1), (old**2).sum(axis=1)], axis=1)
        for head in np.flatnonzero(both[:, 0]):
            key = layer, int(head)
            if key not in relative:
                faults[name] = f"changed in head {head}, which {CERTIFICATE} does not name"
            squares[key] = squares.get(key, 0) + both[head]
    return [
        HeadChange(*key, float(np.sqrt(change / max(whole, 1e-300))), relative.get(key))
        for key, (change, whole) in sorted(squares.items())
    ]


def _scaled(groups: np.ndarray, largest: int) -> np.ndarray:
    """Rounds to whole multiples, at most `largest`, of a scale for each of the last dim's rows."""
    scale = np.abs(groups).max(axis=-1, keepdims=True) / largest
    return np.rint(groups / np.where(scale > 0, scale, 1)) * scale


def _in_groups(w: np.ndarray) -> np.ndarray:
    if w.ndim < 2 or w.shape[-1] % _GROUP:
        return _scaled(w, 7)
    return _scaled(w.reshape(-1, _GROUP), 7).reshape(w.shape)


ROUNDINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "bfloat16": lambda w: w.astype(ml_dtypes.bfloat16).astype(np.float64),
    "int8, a scale an output": lambda w: _scaled(w, 127),
    f"int4, a scale {_GROUP} inputs": _in_groups,
}
"""To nearest, with scales by the largest magnitude; of weights alone, biases stay."""


def _left(changes: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Left]:
    """Returns what each rounding leaves of the changes of weights, over all of them together."""
    sums = {name: np.zeros(2) for name in ROUNDINGS}
    total = 0.0
    for pair in changes.values():
        if pair[0].ndim < 2:
            continue
        old, new = (array.astype(np.float64) for array in pair)
        change = new - old
        total += float((change**2).sum())
        for name, rounded in ROUNDINGS.items():
            kept = rounded(new) - rounded(old)
            sums[name] += (kept * change).sum(), ((kept - change) ** 2).sum()
    if not total:
        return {}
    return {n: Left(along / total, float(np.sqrt(off / total))) for n, (along, off) in sums.items()}
