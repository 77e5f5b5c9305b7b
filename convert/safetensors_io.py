"""Reading and writing safetensors one tensor at a time, with headers that are checked first.

Own code rather than the safetensors package: a memory-mapped read keeps the pages of a whole shard
resident, the package writes its own header where a round trip needs the original bytes, and its
errors do not say which file to fetch again.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import struct
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, BinaryIO, TypeVar

import ml_dtypes
import msgspec
import numpy as np

from vlm_jax.errors import CheckpointError
from vlm_jax.foreign import convert, open_regular, parse_json

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER = 100_000_000  # the format's own limit
_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
STRIP_BYTES = 4 << 20  # what is moved at a time
THREADS = min(4, os.cpu_count() or 1)  # enough for a fast disk

T = TypeVar("T")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor: dtype, shape, and where its bytes start and stop in the data section."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class _Stored(msgspec.Struct):
    """What a header says of a tensor."""

    dtype: str
    shape: Annotated[list[_Count], msgspec.Meta(max_length=64)]  # dims: NumPy's own limit
    data_offsets: tuple[_Count, _Count]


@dataclasses.dataclass(frozen=True)
class Header:
    """A file's header.

    Attributes:
        text: the header as stored, padding included.
        entries: the tensors by name, in the order of their bytes.
    """

    text: bytes
    entries: Mapping[str, Entry]

    @property
    def data_start(self) -> int:
        """Offset of the data section in the file."""
        return 8 + len(self.text)

    @property
    def file_bytes(self) -> int:
        """Length of the file."""
        return self.data_start + self.data_bytes

    @property
    def data_bytes(self) -> int:
        """Length of the data section."""
        return max((entry.stop for entry in self.entries.values()), default=0)


def build_header(
    tensors: Iterable[tuple[str, np.dtype, tuple[int, ...]]], metadata: Mapping[str, str]
) -> Header:
    """Lays tensors out one after another, as the safetensors writer does."""
    fields: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, dtype, shape in tensors:
        stop = offset + math.prod(shape) * dtype.itemsize
        fields[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, stop],
        }
        offset = stop
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    return parse_header(text + b" " * (-len(text) % 8), "new header")


def parse_header(text: bytes, where: str) -> Header:
    """Parses and checks a header.

    Args:
        text: its bytes, without the length in front.
        where: the file, for errors.

    Raises:
        CheckpointError: it is not JSON, or names a tensor twice, with an unknown dtype, with a size
            that its shape does not give, or in bytes that overlap or leave a gap.
    """
    fields = parse_json(
        text,
        dict[str, Any],
        f"{where} is no safetensors file (fetch it again): its header",
        unique=True,
    )
    fields.pop("__metadata__", None)
    entries = [_entry(name, field, where) for name, field in fields.items()]
    entries.sort(key=lambda entry: (entry.start, entry.stop))
    offset = 0
    for entry in entries:
        if entry.start != offset:
            fault = "overlap another tensor" if entry.start < offset else "leave a gap before them"
            raise CheckpointError(
                f"{where} is corrupt: the bytes {entry.start} to {entry.stop} of tensor "
                f"{entry.name!r} {fault}. Fetch the file again."
            )
        offset = entry.stop
    return Header(text, {entry.name: entry for entry in entries})


def read_header(path: pathlib.Path) -> Header:
    """Reads a file's header and checks that the file is as long as the header says.

    Raises:
        CheckpointError: the file is missing, truncated or corrupt; the message names it.
    """
    if not os.path.lexists(path):
        raise CheckpointError(f"{path} does not exist. Fetch the missing file.")
    with open_regular(path) as file:
        try:
            length = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            size = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
            if prefix.startswith(b"version "):
                raise CheckpointError(
                    f"{path} is a Git LFS pointer, not the weights. Fetch it with `git lfs pull`."
                )
            if 0 <= size <= _MAX_HEADER and 8 + size <= length:
                header = parse_header(file.read(size), str(path))
            elif 0 <= size <= _MAX_HEADER or length < 8:
                raise CheckpointError(
                    f"{path} is truncated: it ends within its header ({length} bytes, "
                    f"{8 + max(size, 0)} needed). Fetch it again."
                )
            else:
                raise CheckpointError(
                    f"{path} is not a safetensors file: its header would be {size} bytes long."
                )
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    needed = header.file_bytes
    if length != needed:
        fault = "is truncated" if length < needed else "has bytes that no tensor owns"
        raise CheckpointError(
            f"{path} {fault}: {length} bytes, but its header describes {needed}. Fetch it again."
        )
    return header


def read(path: pathlib.Path, header: Header, name: str) -> np.ndarray:
    """Reads one tensor into a new array.

    Raises:
        CheckpointError: the file cannot be read, or has become shorter than its header says.
    """
    entry = header.entries[name]
    raw = np.empty(entry.stop - entry.start, np.uint8)
    with _opened(path, header.data_start + entry.start) as file:
        _read_into(file, raw.data, path)
    return raw.view(entry.dtype).reshape(entry.shape)


def read_strips(
    path: pathlib.Path,
    header: Header,
    name: str,
    rows: int,
    visit: Callable[[int, np.ndarray], None],
    runs: tuple[np.ndarray, int] | None = None,
) -> None:
    """Reads one tensor, or a part of it, a few rows at a time, in several threads at once.

    Args:
        path: the file.
        header: its header.
        name: of the tensor.
        rows: how many equal rows the bytes that are read are to be seen as.
        visit: takes the number of the first row and [some rows, the rest] in the stored dtype, an
            array that is overwritten when it returns and has never left the processor's cache.
        runs: the first element of each run that is read, and the elements of a run; nothing else is
            touched. None reads all.

    Raises:
        CheckpointError: as `read`.
    """
    entry = header.entries[name]
    starts, length = (np.zeros(1, np.int64), math.prod(entry.shape)) if runs is None else runs
    begins, run = header.data_start + entry.start + starts * entry.dtype.itemsize, length
    run *= entry.dtype.itemsize
    row_bytes = len(begins) * run // max(rows, 1)
    if not row_bytes:
        return
    step = max(1, STRIP_BYTES // row_bytes)
    buffers = threading.local()

    def move(row: int) -> None:
        if not hasattr(buffers, "one"):
            buffers.one = np.empty(min(step, rows) * row_bytes, np.uint8)
        strip = buffers.one[: min(step, rows - row) * row_bytes]
        at, left = row * row_bytes, strip.data  # at: as if runs lay one behind another
        with open_regular(path, buffering=0) as file:
            while len(left):
                number, within = divmod(at, run)
                piece = left[: run - within]
                file.seek(int(begins[number]) + within)
                _read_into(file, piece, path)
                at, left = at + len(piece), left[len(piece) :]
        visit(row, strip.view(entry.dtype).reshape(strip.size // row_bytes, -1))

    for _ in in_order(move, range(0, rows, step)):
        pass


def in_order(work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """Maps items in a few threads, no further ahead than these, and yields in the items' order."""
    threads = min(THREADS, len(items))
    if threads < 2:
        yield from map(work, items)
        return
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        running: collections.deque[concurrent.futures.Future[R]] = collections.deque()
        for item in items:
            if len(running) == threads:
                yield running.popleft().result()
            running.append(pool.submit(work, item))
        while running:
            yield running.popleft().result()


def write(
    path: pathlib.Path,
    header: Header,
    tensor: Callable[[str], np.ndarray | Iterator[np.ndarray] | None],
    source: tuple[pathlib.Path, Header] | None = None,
) -> int:
    """Writes a file tensor by tensor.

    Args:
        path: the new file.
        header: what to write; its text is written as it is.
        tensor: gives the array of a name, of the header's dtype and shape; or the contiguous
            pieces of its bytes, in order; or None to copy its bytes from `source`.
        source: a file with the same tensors, and its header.

    Returns:
        The file's CRC-32.

    Raises:
        CheckpointError: an array does not fit the header, or the source is damaged.
    """
    with contextlib.ExitStack() as stack:
        out = _Summed(stack.enter_context(path.open("wb", buffering=0)))
        out.write(struct.pack("<Q", len(header.text)) + header.text)
        given = stack.enter_context(open_regular(source[0], buffering=0)) if source else None
        for entry in header.entries.values():
            pieces = tensor(entry.name)
            if pieces is None:
                assert source is not None
                assert given is not None
                given.seek(source[1].data_start + source[1].entries[entry.name].start)
                _copy_bytes(given, out, entry.stop - entry.start, source[0])
                continue
            if isinstance(pieces, np.ndarray):
                _check_fits(pieces, entry, path)
                pieces = iter([np.ascontiguousarray(pieces)])
            start = out.length
            for piece in pieces:
                out.write(piece.reshape(-1).view(np.uint8).data)
            if out.length - start != entry.stop - entry.start:
                raise ValueError(f"{out.length - start} bytes are given for {entry}")
        return out.crc32


class _Summed:
    """An unbuffered file that is written from its start, with its length and CRC-32 so far."""

    def __init__(self, file: BinaryIO):
        self._file, self.length, self.crc32 = file, 0, 0

    def write(self, view: bytes | memoryview) -> None:
        """Writes all of it."""
        view = memoryview(view)
        self.length += len(view)
        self.crc32 = zlib.crc32(view, self.crc32)
        while len(view):
            view = view[self._file.write(view) :]


def _check_fits(array: np.ndarray, entry: Entry, path: pathlib.Path) -> None:
    if array.shape != entry.shape or array.dtype != entry.dtype:
        raise CheckpointError(
            f"tensor {entry.name!r} is {array.dtype} {list(array.shape)}, but {path.name} "
            f"needs {entry.dtype} {list(entry.shape)}."
        )


def _entry(name: str, field: Any, where: str) -> Entry:
    stored = convert(field, _Stored, f"{where} is corrupt (fetch it again): tensor {name!r}")
    dtype = DTYPES.get(stored.dtype)
    if dtype is None:
        raise CheckpointError(
            f"{where}: tensor {name!r} has dtype {stored.dtype[:80]!r}, which is not supported "
            f"({', '.join(DTYPES)} are)."
        )
    start, stop = stored.data_offsets
    if stop - start != math.prod(stored.shape) * dtype.itemsize:
        raise CheckpointError(
            f"{where} is corrupt: tensor {name!r} has {stop - start} bytes, which {stored.dtype} "
            f"{stored.shape} does not fill. Fetch the file again."
        )
    return Entry(name, dtype, tuple(stored.shape), start, stop)


@contextlib.contextmanager
def _opened(path: pathlib.Path, offset: int) -> Iterator[BinaryIO]:
    with open_regular(path, buffering=0) as file:
        file.seek(offset)
        yield file


def _read_into(file: BinaryIO, view: memoryview, path: pathlib.Path) -> None:
    while len(view):
        try:
            count = file.readinto(view)  # pyright: ignore[reportAttributeAccessIssue]
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
        if not count:
            raise CheckpointError(f"{path} is truncated: {len(view)} bytes are missing.")
        view = view[count:]


def _copy_bytes(source: BinaryIO, out: _Summed, count: int, path: pathlib.Path) -> None:
    buffer = memoryview(bytearray(min(count, STRIP_BYTES)))
    while count:
        piece = buffer[: min(count, STRIP_BYTES)]
        _read_into(source, piece, path)
        out.write(piece)
        count -= len(piece)
