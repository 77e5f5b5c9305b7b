"""Parameters in an Orbax checkpoint: written in groups, read in groups or straight onto devices.

The flat dict is the stored tree: a key is a parameter path, and no layers are stacked, so that the
memory of writing and reading is bounded by the largest single tensor and not by the model.
"""

import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from vlm_jax.checkpoint.folder import TensorInfo, check_finite
from vlm_jax.errors import CheckpointError

GROUP_BYTES = 64 << 20  # one call a tensor takes 2.5 times as long as groups of this size
_BUFFER_BYTES = 64 << 20
_CHUNK_BYTES = 16 << 20  # of a stored array: what a device that needs a part of it must read


def _context() -> ocp.Context:
    context = ocp.Context()
    # Groups are handed over and never touched again: no copies are needed.
    context.memory.deepcopy_host_arrays = False
    context.memory.write_concurrent_bytes = _BUFFER_BYTES
    context.memory.read_concurrent_bytes = _BUFFER_BYTES
    context.array.saving.storage_options.chunk_byte_size = _CHUNK_BYTES
    return context


class Writer:
    """Writes arrays as they come, holding at most one group."""

    def __init__(self, path: pathlib.Path):
        self._path = str(path.absolute())  # Orbax refuses relative paths
        self._group: dict[str, np.ndarray] = {}
        self._bytes = 0
        self.tensors: dict[str, TensorInfo] = {}

    def add(self, path: str, array: np.ndarray | jax.Array) -> None:
        """Takes one parameter; the caller must not change the array afterwards."""
        # As NumPy, whatever its sharding: the stored tree then knows no devices.
        array = np.asarray(array)
        check_finite(array, path, "the parameters to be written")
        self._group[path] = array
        self._bytes += array.nbytes
        self.tensors[path] = TensorInfo(array.shape, array.dtype)
        if self._bytes >= GROUP_BYTES:
            self._flush()

    def finish(self) -> None:
        """Completes the checkpoint."""
        self._flush()
        with _context():
            ocp.partial.finalize(self._path)

    def _flush(self) -> None:
        if self._group:
            with _context():
                ocp.partial.save(self._path, self._group)
            self._group, self._bytes = {}, 0


class Reader:
    """Reads a checkpoint that `Writer` made."""

    def __init__(self, path: pathlib.Path, tensors: Mapping[str, TensorInfo]):
        """`tensors` is what the manifest promises; the stored tree must agree.

        Raises:
            CheckpointError: it does not, or cannot be read.
        """
        self._path, self._tensors = str(path.absolute()), tensors
        try:
            with _context():
                self._stored: dict[str, Any] = dict(ocp.metadata(self._path).metadata)
        except (OSError, ValueError, KeyError, ocp.errors.InvalidLayoutError) as error:
            raise CheckpointError(f"{path} is not a complete checkpoint: {error}") from error
        stored = {k: TensorInfo(tuple(v.shape), np.dtype(v.dtype)) for k, v in self._stored.items()}
        if stored != dict(tensors):
            differing = sorted(
                path for path in stored.keys() | tensors.keys()
                if stored.get(path) != tensors.get(path)
            )  # fmt: skip
            raise CheckpointError(
                f"{path} does not hold what the manifest says: {', '.join(differing)}."
            )

    def stream(self, paths: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Yields arrays in the order of `paths`, in groups of at least `GROUP_BYTES`."""
        group: list[str] = []
        size = 0
        for path in paths:
            group.append(path)
            size += self._tensors[path].nbytes
            if size >= GROUP_BYTES:
                yield from self._read(group)
                group, size = [], 0
        if group:
            yield from self._read(group)

    def load(self, leaves: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """Restores parameters to a dtype and sharding, without a whole copy on the host."""
        if not leaves:
            return {}
        loaded = self._load(dict.fromkeys(self._stored, ocp.PLACEHOLDER) | dict(leaves))
        return {path: loaded[path] for path in leaves}

    def _read(self, group: list[str]) -> Iterator[tuple[str, np.ndarray]]:
        tree = dict.fromkeys(self._stored, ocp.PLACEHOLDER)
        arrays = self._load(tree | {path: self._stored[path] for path in group})
        for path in group:
            yield path, np.asarray(arrays[path])

    def _load(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        try:
            with _context():
                return ocp.load(self._path, dict(tree))
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{self._path} cannot be read: {error}") from error
