"""A Hugging Face checkpoint folder as a `ModelFolder`: safetensors, one file or indexed shards.

Pickled weights (`*.bin`) are never read: unpickling runs code from the file.
"""

import filecmp
import os
import pathlib
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

import jax
import numpy as np

from convert import layout, safetensors_io
from convert.finished import Finished
from convert.safetensors_io import Header
from convert.shards import INDEX, SINGLE, places, read_headers
from convert.table import DiskPart, Tensor, bind
from vlm_jax.checkpoint import (
    MANIFEST,
    Extra,
    ModelFolder,
    Replacement,
    TensorInfo,
    check_finite,
    companion_files,
    not_the_same,
    place,
    with_extra,
    write_files,
)
from vlm_jax.errors import CheckpointError
from vlm_jax.families import read_config
from vlm_jax.foreign import read_bytes

# Weights in other formats would be stale beside replaced ones.
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx")


class HFFolder(ModelFolder):
    """A checkpoint folder with `config.json` and safetensors, in any generation's names.

    Attributes:
        files: safetensors file name -> header, in the index's order of first mention.
        names: name on disk -> the table's tensor, for every parameter (aliases too).
    """

    def __init__(self, path: str | os.PathLike[str]):
        """Reads config and headers, and checks them against the family's table.

        Raises:
            ConfigError: config.json is missing, lacks a field or names another architecture.
            CheckpointError: a file is missing, truncated or corrupt, or some tensors are unknown,
                missing or misshapen.
        """
        self.path = pathlib.Path(path)
        self.config = read_config(self.path)
        self.files = read_headers(self.path)
        self._file_of = places(self.path, self.files)
        found = {
            name: TensorInfo(entry.shape, entry.dtype)
            for header in self.files.values()
            for name, entry in header.entries.items()
        }
        self.names: dict[str, Tensor] = bind(self.config).match(found, str(self.path))
        self._names_of: dict[str, list[str]] = {}
        for name, tensor in self.names.items():
            if not tensor.alias:
                self._names_of.setdefault(tensor.path, []).append(name)
        self.tensors = {}
        for path, names in self._names_of.items():
            dtypes = {found[name].dtype for name in names}
            if len(dtypes) > 1:
                raise CheckpointError(
                    f"{self.path}: {names[0]} and the other experts of its layer have several "
                    f"dtypes ({', '.join(sorted(map(str, dtypes)))}); save them in one."
                )
            self.tensors[path] = TensorInfo(self.names[names[0]].shape, found[names[0]].dtype)
        self._check_aliases()

    def companions(self) -> dict[str, pathlib.Path]:
        """See `ModelFolder`."""
        return companion_files(
            self.path,
            lambda name: not (name.endswith(_WEIGHT_SUFFIXES) or _is_index(name)),
        )

    def buffers(self) -> dict[str, bytes]:
        """The bytes of every tensor on disk that is no parameter, by name."""
        return {name: self._raw(name).tobytes() for name in self._file_of if name not in self.names}

    def stream(self, paths: Iterable[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        """See `ModelFolder`."""
        paths = list(self.tensors if paths is None else paths)
        self.check_paths(paths)
        for path in paths:
            yield path, self.certified(path, self._ours(path))

    def load(
        self,
        dtype: np.typing.DTypeLike | None = None,
        shardings: Mapping[str, jax.sharding.Sharding] | None = None,
    ) -> dict[str, jax.Array]:
        """See `ModelFolder`.

        Of each tensor that part is read which this process's devices need, but for tensors that are
        read whole: those of a certificate, whose bytes are checked, and those of which a part's
        bytes cannot be told or are no pages of their own (`Tensor.readable`).
        """
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        loaded = {}
        for path in self.tensors:
            sharding = device if shardings is None else shardings[path]
            part = self._needed(path, sharding)
            array = self.certified(path, self._ours(path, part))
            shape = self.tensors[path].shape
            loaded[path] = place(array, path, dtype, sharding, self.path, part=(shape, part))
        return loaded

    def copy(
        self,
        target: str | os.PathLike[str],
        replace: Mapping[str, Replacement],
        extra_files: Mapping[str, Extra] | None = None,
        *,
        restored: Collection[str] = (),
        recipe: bytes | None = None,
    ) -> None:
        """See `ModelFolder`."""
        self.check_paths(replace)

        def replaced(name: str) -> Iterator[np.ndarray] | None:
            tensor = self.names.get(name)
            if tensor is None or tensor.path not in replace:
                return None
            return tensor.to_disk(self.replacement(tensor.path, replace[tensor.path]))

        with self.copied(target, replace, recipe) as temporary:
            finished = Finished(temporary)
            touched = {self._file_of[name] for name, t in self.names.items() if t.path in replace}
            for file in sorted(self.files, key=lambda file: file not in touched):
                source, header, new = self.path / file, self.files[file], temporary / file
                if file not in touched:
                    if not (new.exists() and filecmp.cmp(source, new, shallow=False)):
                        shutil.copyfile(source, temporary / f".{file}.partial")
                        (temporary / f".{file}.partial").rename(new)
                elif finished.has(file, header.file_bytes):
                    _check_written(new, header, replaced)
                else:
                    partial = temporary / f".{file}.partial"
                    crc32 = safetensors_io.write(partial, header, replaced, (source, header))
                    partial.rename(new)
                    finished.add(file, crc32)
            files = with_extra(self.companions(), extra_files)
            if (index := self.index()) is not None:
                files[INDEX] = index
            write_files(temporary, files)
            finished.forget()

    def sources(self) -> list[pathlib.Path]:
        """See `ModelFolder`."""
        return [self.path / file for file in ("config.json", *self.files)]

    def index(self) -> bytes | None:
        """The bytes of the shard index; None for a single file."""
        return None if SINGLE in self.files else read_bytes(self.path / INDEX)

    def _needed(self, path: str, sharding: jax.sharding.Sharding) -> tuple[slice, ...]:
        """The part of a parameter that this process has to read for its devices."""
        info = self.tensors[path]
        whole = tuple(slice(0, size) for size in info.shape)
        if self.certificate is not None and path in self.certificate.tensors:
            return whole
        pieces = sharding.addressable_devices_indices_map(info.shape).values()
        bounds = [
            [piece[dim].indices(size)[:2] for piece in pieces if piece is not None]
            for dim, size in enumerate(info.shape)
        ]
        if not all(bounds):  # no device of this process, or no dims
            return whole
        part = tuple(slice(min(dim)[0], max(stop for _, stop in dim)) for dim in bounds)
        tensor = self.names[self._names_of[path][0]]
        return tensor.readable(part, info.dtype.itemsize)

    def _ours(self, path: str, part: tuple[slice, ...] | None = None) -> np.ndarray:
        """Reads a part of a parameter (`Tensor.readable`); None: all of it."""
        info = self.tensors[path]
        part = part or tuple(slice(0, size) for size in info.shape)
        array = np.empty([one.stop - one.start for one in part], info.dtype)
        for name in self._names_of[path]:
            share = self.names[name].on_disk(array, part)
            if share is not None:
                self._place(name, share)
        return array

    def _place(self, name: str, share: DiskPart) -> None:
        """Reads a part of a tensor into an array of ours, seen in the order of its bytes."""
        file, rows = self._file_of[name], share.rows
        source = self.path / file

        def place_strip(row: int, strip: np.ndarray) -> None:
            check_finite(strip, name, source)
            layout.copy_rows(rows[row : row + len(strip)], layout.bits(strip))

        safetensors_io.read_strips(
            source, self.files[file], name, len(rows), place_strip, (share.starts, share.length)
        )

    def _raw(self, name: str) -> np.ndarray:
        file = self._file_of[name]
        return safetensors_io.read(self.path / file, self.files[file], name)

    def _check_aliases(self) -> None:
        """A head on disk beside a tied embedding table must be that table.

        transformers leaves two such tensors untied when they differ; a config that contradicts its
        weights is better corrected than followed.
        """
        for name, tensor in self.names.items():
            if tensor.alias:
                (other,) = self._names_of[tensor.path]
                first, second = self._raw(name), self._raw(other)
                if first.dtype != second.dtype or first.tobytes() != second.tobytes():
                    raise CheckpointError(
                        f"{self.path}: config.json ties the head to the embedding table "
                        f"(tie_word_embeddings), but {name!r} differs from "
                        f"{other!r}. Set tie_word_embeddings to false."
                    )


def open_hf(path: str | os.PathLike[str]) -> HFFolder | None:
    """Opens a Hugging Face folder; None if it does not look like one.

    Raises:
        ConfigError, CheckpointError: it looks like one, but something in it is wrong.
    """
    folder = pathlib.Path(path)
    looks = (folder / "config.json").exists() or any(folder.glob("*.safetensors"))
    return HFFolder(folder) if looks and not (folder / MANIFEST).exists() else None


def _check_written(
    path: pathlib.Path, header: Header, replaced: Callable[[str], Iterator[np.ndarray] | None]
) -> None:
    """Refuses a file of an interrupted copy whose replaced tensors are not what is made now."""
    for name in header.entries:
        pieces = replaced(name)
        if pieces is None:
            continue
        made = b"".join(piece.tobytes() for piece in pieces)
        if safetensors_io.read(path, header, name).tobytes() != made:
            raise not_the_same(name, path)


def _is_index(name: str) -> bool:
    return name.endswith((".safetensors.index.json", ".bin.index.json"))
