"""What files hold, as short hashes that survive copying and moving them.

Whole files are read, so that weights or pictures that were changed in place are told from what they
were. A hash is remembered with the file's identity, size and times, in a file of the user's cache:
15 GB are read once, and again when they change.
"""

import hashlib
import json
import os
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from vlm_jax import checkpoint
from vlm_jax.evals.results import protocol_hash
from vlm_jax.files import cache_folder, replace_file

HEADS = "heads.json"
"""Head sets found for a model, which may lie beside its weights and are no part of it."""

_REMEMBERED = 4 << 20  # smaller files are read each time
_BLOCK = 16 << 20
_ENTRIES = 4096


def fingerprint(source: checkpoint.ModelFolder) -> str:
    """Returns a hash of the names, sizes and content of a folder's files."""
    files = sorted(path for path in source.path.rglob("*") if path.is_file())
    known = _Known()
    found = [
        [path.relative_to(source.path).as_posix(), path.stat().st_size, known.content(path)]
        for path in files
        if path != source.path / HEADS
    ]
    known.write()
    return protocol_hash({"files": found})


def picture(image: Any) -> str:
    """Returns a hash of a picture's bytes, or of its pixels where it is no file.

    A file that cannot be read gives its name: it fails when it is asked about.
    """
    if isinstance(image, Image.Image):
        about = f"{image.mode} {image.size}".encode()
        return hashlib.sha256(about + image.tobytes()).hexdigest()[:16]
    if isinstance(image, np.ndarray):
        return hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).hexdigest()[:16]
    if not isinstance(image, str | os.PathLike):
        return str(image)
    path = pathlib.Path(image)
    try:
        return _digest(path)[:16] if path.is_file() else str(path)
    except OSError:
        return str(path)


class _Known:
    """Hashes of large files that were read before, by what changes when a file does."""

    def __init__(self) -> None:
        cache = cache_folder()
        self.path = None if cache is None else cache / "content.json"
        self.entries: dict[str, str] = {}
        self._changed = False
        if self.path is None:
            return
        try:
            entries = json.loads(self.path.read_text(encoding="utf-8"))
            if isinstance(entries, dict):
                self.entries = {k: v for k, v in entries.items() if isinstance(v, str)}
        except (OSError, ValueError, RecursionError):
            pass  # nothing is remembered

    def content(self, path: pathlib.Path) -> str:
        """The hash of a file's content."""
        status = path.stat()
        if status.st_size < _REMEMBERED:
            return _digest(path)
        # A change of content changes both times; the second cannot be set by a program.
        times = f"{status.st_mtime_ns}:{status.st_ctime_ns}"
        key = f"{status.st_dev}:{status.st_ino}:{status.st_size}:{times}"
        if key not in self.entries:
            self.entries[key] = _digest(path)
            self._changed = True
        return self.entries[key]

    def write(self) -> None:
        """Remembers what was read; a cache that cannot be written is none."""
        if self.path is None or not self._changed:
            return
        kept = dict(list(self.entries.items())[-_ENTRIES:])
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self.path, json.dumps(kept))
        except (OSError, ValueError):
            pass


def _digest(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
