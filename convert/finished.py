"""Which files of a half-made folder are whole: a journal with the checksum that each must have.

A name and a length are not enough: a machine that lost its power may have kept both and lost what
lay between. The journal lies in the folder until that is complete.
"""

import json
import os
import pathlib
import zlib

import msgspec

from vlm_jax.errors import CheckpointError
from vlm_jax.foreign import parse_json

_JOURNAL = ".finished.jsonl"
_PIECE = 4 << 20


class _Line(msgspec.Struct):
    file: str
    crc32: int


class Finished:
    """The journal of a folder; reads what an interrupted run wrote of it.

    Args:
        folder: the half-made one.
    """

    def __init__(self, folder: pathlib.Path):
        self._folder, self._path = folder, folder / _JOURNAL
        self._crc: dict[str, int] = {}
        lines = self._path.read_bytes().split(b"\n") if self._path.exists() else []
        for line in lines:
            try:
                found = parse_json(line, _Line, _JOURNAL)
            except CheckpointError:  # cut short: that file is made again
                continue
            self._crc[found.file] = found.crc32

    def has(self, file: str, size: int) -> bool:
        """Whether a file is there, has this many bytes and is what was written."""
        path = self._folder / file
        if file not in self._crc or not path.is_file() or path.stat().st_size != size:
            return False
        crc = 0
        with path.open("rb", buffering=0) as opened:
            while piece := opened.read(_PIECE):
                crc = zlib.crc32(piece, crc)
        return crc == self._crc[file]

    def add(self, file: str, crc32: int) -> None:
        """Notes that a file is whole."""
        with self._path.open("ab") as journal:
            journal.write(b"\n" + json.dumps({"file": file, "crc32": crc32}).encode() + b"\n")
            journal.flush()
            os.fsync(journal.fileno())
        self._crc[file] = crc32

    def forget(self) -> None:
        """Removes the journal, once the folder is complete."""
        self._path.unlink(missing_ok=True)
