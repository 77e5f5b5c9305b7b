"""Parameters as Orbax checkpoints, a group each: written and read in groups, or onto devices.

A group is a flat dict, parameter path -> array, of no more than `GROUP_BYTES` or of one larger
parameter; no layers are stacked. So the memory of writing and reading is bounded by the largest
tensor and not by the model, and writing that was interrupted goes on after the last group. An index
beside the groups names those that are safe.
"""

import concurrent.futures
import contextlib
import ctypes
import logging
import math
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp_v0
from orbax.checkpoint import v1 as ocp

from vlm_jax.ahead import threads
from vlm_jax.checkpoint.folder import TensorInfo, check_finite
from vlm_jax.checkpoint.group_index import (
    INDEX,
    Group,
    append_index,
    crc32_of,
    index_line,
    read_index,
    read_line,
)
from vlm_jax.errors import CheckpointError
from vlm_jax.files import replace_file
from vlm_jax.foreign import read_bytes

GROUP_BYTES = 64 << 20
# A larger group is written before more is read: one such is held, not two.
_ALONE_BYTES = 256 << 20
_BUFFER_BYTES = 64 << 20
_CHUNK_BYTES = 16 << 20  # of a stored array: what a device that needs a part of it must read
_HEAD_BYTES = 256 << 10  # heads of this size are chunks of their own
_OS_ERROR = re.compile(r"os_error_code='(\d+)'")


class Writer:
    """Writes arrays as they come: one group is written while the next is filled.

    A context manager, which waits for what is being written.

    Attributes:
        tensors: every parameter that was taken, those of an interrupted run included.
        stored: the paths that the folder held when it was opened.
    """

    def __init__(self, folder: pathlib.Path):
        """Goes on in a folder that holds groups already.

        Raises:
            OSError: the folder cannot be made or read.
        """
        folder.mkdir(exist_ok=True)
        self._folder = folder.absolute()  # Orbax refuses relative paths
        self._groups = _mend(folder)
        for left in folder.iterdir():  # by a save that did not end, or damaged
            if left.name != INDEX and left.name not in self._groups:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        self.tensors = {path: info for g in self._groups.values() for path, info in g.infos.items()}
        self.stored = frozenset(self.tensors)
        self._group: dict[str, np.ndarray] = {}
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._writing: concurrent.futures.Future[None] | None = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_) -> None:
        self._thread.shutdown()

    def add(self, path: str, array: np.ndarray | jax.Array, *, checked: bool = False) -> None:
        """Takes one parameter; the caller must not change the array afterwards.

        Args:
            path: of the parameter.
            array: whatever its sharding: the stored tree knows no devices.
            checked: whether it is known to be finite.

        Raises:
            CheckpointError: it holds NaN or infinity.
            OSError: an earlier group could not be written.
        """
        array = np.asarray(array)
        if not checked:
            check_finite(array, path, "the parameters to be written")
        self._group[path] = array
        self.tensors[path] = TensorInfo(array.shape, array.dtype)
        if _size(self._group) >= GROUP_BYTES:
            self._flush()

    def finish(self) -> None:
        """Writes what is left."""
        self._flush()
        self._wait()

    def _flush(self) -> None:
        if not self._group:
            return
        self._wait()
        group, self._group = self._group, {}
        alone = _size(group) > _ALONE_BYTES
        self._writing = self._thread.submit(self._save, group)
        del group
        if alone:
            self._wait()
            _give_back()

    def _wait(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _save(self, group: dict[str, np.ndarray]) -> None:
        name = f"{max(map(int, self._groups), default=-1) + 1:05}"
        try:
            with _quiet():
                _save(self._folder / name, group)
        except ValueError as error:  # what the storage library makes of the system's errors
            code = _OS_ERROR.search(str(error))
            if code is None:
                raise
            number = int(code[1])
            raise OSError(number, os.strerror(number), str(self._folder / name)) from error
        self._groups[name] = Group(
            {path: TensorInfo(array.shape, array.dtype) for path, array in group.items()},
            {path: crc32_of(array) for path, array in group.items()},
        )
        append_index(self._folder, name, self._groups[name])


class Reader:
    """Reads what `Writer` made."""

    def __init__(
        self,
        folder: pathlib.Path,
        tensors: Mapping[str, TensorInfo],
        groups: "Mapping[str, Group] | None" = None,
    ):
        """`tensors` is what the manifest promises; `groups`, or the index, must agree.

        Raises:
            CheckpointError: it does not, or cannot be read.
        """
        self._folder = folder.absolute()
        self._tensors = tensors
        try:
            groups = read_index(folder / INDEX) if groups is None else groups
        except CheckpointError as error:
            raise CheckpointError(f"{folder} is not a complete checkpoint: {error}") from error
        stored = {path: info for group in groups.values() for path, info in group.infos.items()}
        if stored != dict(tensors):
            differing = sorted(
                path for path in stored.keys() | tensors.keys()
                if stored.get(path) != tensors.get(path)
            )  # fmt: skip
            raise CheckpointError(
                f"{folder} does not hold what the manifest says: {', '.join(differing)}."
            )
        self._group_of = {path: name for name, group in groups.items() for path in group.infos}
        self._crc32 = {path: crc for group in groups.values() for path, crc in group.crc32.items()}
        self._metadata: dict[str, dict[str, Any]] = {}

    def stream(self, paths: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Yields arrays in the order of `paths`; the next few are read meanwhile.

        Raises:
            CheckpointError: one cannot be read, or is not what was written.
        """
        parts = self._parts(list(paths))
        with threads(1) as thread:
            ahead = None
            for part, following in zip(parts, [*parts[1:], []]):
                arrays = self._read(part) if ahead is None else ahead.result()
                small = sum(self._tensors[path].nbytes for path in following) <= _ALONE_BYTES
                ahead = thread.submit(self._read, following) if following and small else None
                for path in part:
                    yield path, arrays.pop(path)

    def load(self, leaves: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """Restores parameters to a dtype and sharding, without a whole copy on the host."""
        loaded: dict[str, jax.Array] = {}
        groups: dict[str, dict[str, jax.ShapeDtypeStruct]] = {}
        for path, leaf in leaves.items():
            groups.setdefault(self._group_of[path], {})[path] = leaf
        for name, wanted in groups.items():
            loaded |= self._load(name, wanted)
        return {path: loaded[path] for path in leaves}

    def _parts(self, paths: list[str]) -> list[list[str]]:
        """Cuts paths where the group changes, `GROUP_BYTES` are full or one comes again."""
        parts: list[list[str]] = []
        size = 0
        for path in paths:
            if (
                not parts
                or self._group_of[parts[-1][0]] != self._group_of[path]
                or size >= GROUP_BYTES
                or path in parts[-1]
            ):
                parts.append([])
                size = 0
            parts[-1].append(path)
            size += self._tensors[path].nbytes
        return parts

    def _read(self, paths: list[str]) -> dict[str, np.ndarray]:
        name = self._group_of[paths[0]]
        loaded = self._load(name, {path: None for path in paths})
        arrays = {path: np.asarray(loaded[path]) for path in paths}
        for path, array in arrays.items():
            if path in self._crc32 and crc32_of(array) != self._crc32[path]:
                raise CheckpointError(
                    f"{self._folder / name} is damaged: {path!r} is not what was written there. "
                    "Convert the model again."
                )
        return arrays

    def _load(self, name: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Reads parameters of one group; to NumPy where a leaf is None."""
        folder = str(self._folder / name)
        try:
            if name not in self._metadata:
                with _quiet(), _context():
                    self._metadata[name] = dict(ocp.metadata(folder).metadata)
            stored = self._metadata[name]
            parts = [_part_bytes(stored[path], leaf) for path, leaf in wanted.items() if leaf]
            leaves = {path: stored[path] if w is None else w for path, w in wanted.items()}
            # A part that is as large as the limit would be refused.
            with _quiet(), _context(max([_BUFFER_BYTES, *parts]) + 1):
                loaded = ocp.load(folder, dict.fromkeys(stored, ocp.PLACEHOLDER) | leaves)
            return {path: loaded[path] for path in wanted}
        except CheckpointError:
            raise
        except Exception as error:  # the storage library raises whatever it meets in broken files
            said = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise CheckpointError(f"{folder} is damaged or cannot be read: {said}") from error


def _save(folder: pathlib.Path, group: dict[str, np.ndarray]) -> None:
    """Writes one checkpoint, complete or not at all, by this process alone."""
    # The newer interface would have every process of a job take part.
    alone = ocp_v0.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix="vlm_jax",
    )
    # Groups are handed over and never touched again: no copies are needed.
    numpy = ocp_v0.type_handlers.NumpyHandler(deepcopy_host_arrays=False)
    handler = ocp_v0.PyTreeCheckpointHandler(
        use_ocdbt=True,
        use_zarr3=True,
        multiprocessing_options=alone,
        handler_impl=ocp_v0.BasePyTreeCheckpointHandler(
            save_concurrent_bytes=_BUFFER_BYTES,
            use_ocdbt=True,
            use_zarr3=True,
            use_compression=False,  # trained weights shrink by a quarter, at 50 MB/s a core
            multiprocessing_options=alone,
            type_handler_registry=ocp_v0.type_handlers.create_type_handler_registry(
                (np.ndarray, numpy)
            ),
        ),
    )
    chunks = {path: _chunks(path, array) for path, array in group.items()}
    with ocp_v0.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        checkpointer.save(str(folder), ocp_v0.args.PyTreeSave(group, save_args=chunks))


def _chunks(path: str, array: np.ndarray) -> ocp_v0.SaveArgs:
    """How an array is cut: heads apart where they are large, and long dims before short ones.

    These are the dims that a mesh cuts: a device then reads little more than its part.
    """
    letters = path.rpartition("_")[2]
    heads = [axis for axis, letter in enumerate(letters) if letter in "nk"]
    if len(letters) != array.ndim or not heads:
        axes = ()
    else:
        axes = tuple(heads) if array.nbytes >= _HEAD_BYTES * array.shape[heads[0]] else ()
    return ocp_v0.SaveArgs(chunk_byte_size=_CHUNK_BYTES, shard_axes=axes)


def _context(read_bytes: int = _BUFFER_BYTES) -> ocp.Context:
    context = ocp.Context()
    context.memory.read_concurrent_bytes = read_bytes
    # Each process reads what its devices need, whatever the others do.
    context.multiprocessing.primary_host = jax.process_index()
    context.multiprocessing.active_processes = {jax.process_index()}
    context.multiprocessing.barrier_sync_key_prefix = "vlm_jax"
    return context


def _part_bytes(stored: Any, wanted: jax.ShapeDtypeStruct) -> int:
    """What reading a device's part of an array takes at most: all chunks that it touches.

    A part that is widened as it is read counts as wide.
    """
    assert wanted.sharding is not None
    dims = zip(
        stored.shape,
        wanted.sharding.shard_shape(stored.shape),
        stored.storage_metadata.chunk_shape,
        strict=True,
    )
    touched = [min(size, (-(-part // chunk) + 1) * chunk) for size, part, chunk in dims]
    itemsize = max(np.dtype(dtype).itemsize for dtype in (stored.dtype, wanted.dtype))
    return math.prod(touched) * itemsize


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the library from printing an error that is raised as well.

    After it, writes that were under way fail in threads of the library, whose loop is closed by
    then: these stay silent for good.
    """
    shared, loops = logging.getLogger("absl"), logging.getLogger("asyncio")
    level, hook = loops.level, sys.unraisablehook
    shared.addFilter(_is_others)
    loops.setLevel(logging.CRITICAL)

    def hook_without(ignored: Any) -> None:
        if str(ignored.exc_value) != "Event loop is closed":
            hook(ignored)

    sys.unraisablehook = hook_without
    yield
    sys.unraisablehook = hook
    loops.setLevel(level)
    shared.removeFilter(_is_others)


def _is_others(record: logging.LogRecord) -> bool:
    """Whether something else than the library logs by the logger that this package uses too."""
    return f"{os.sep}orbax{os.sep}" not in record.pathname


def _give_back() -> None:
    """Returns freed memory to the system: the C library keeps what chunks were copied to."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _size(group: Mapping[str, np.ndarray]) -> int:
    return sum(array.nbytes for array in group.values())


def _mend(folder: pathlib.Path) -> dict[str, Group]:
    """Returns the groups that an interrupted run left whole; takes the others from the index.

    A line may have been cut short, and a machine that lost its power may have lost what a group
    held: every array is read and compared with its checksum.
    """
    path = folder / INDEX
    if not path.exists():
        return {}
    content = read_bytes(path)
    groups: dict[str, Group] = {}
    for line in content.splitlines():
        with contextlib.suppress(CheckpointError):
            name, group = read_line(line, str(path))
            arrays = dict.fromkeys(group.infos)
            reader = Reader(folder, group.infos, {name: group})
            for tensor, array in reader.stream(arrays):
                info = TensorInfo(array.shape, array.dtype)
                if info != group.infos[tensor] or tensor not in group.crc32:
                    raise CheckpointError(f"{tensor} is another array.")
            groups[name] = group
    whole = b"".join(index_line(name, group) for name, group in groups.items())
    if whole != content:
        replace_file(path, whole)
    return groups
