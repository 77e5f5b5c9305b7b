"""What a folder holds, as a short hash that survives copying and moving it."""

import hashlib
import pathlib
from collections.abc import Iterator

from vlm_jax import checkpoint
from vlm_jax.evals.results import protocol_hash

HEADS = "heads.json"
"""Head sets found for a model, which may lie beside its weights and are no part of it."""

_WHOLE = 4 << 20
_BLOCK = 64 << 10
_BLOCKS = 64


def fingerprint(source: checkpoint.ModelFolder) -> str:
    """Returns a hash of the names, sizes and content of a folder's files.

    Of files above 4 MiB the head, the tail and blocks between them are read, so that large models
    take no time; an edit also shows in its certificate, which is read whole.
    """
    files = sorted(path for path in source.path.rglob("*") if path.is_file())
    found = [
        [path.relative_to(source.path).as_posix(), path.stat().st_size, _content(path)]
        for path in files
        if path != source.path / HEADS
    ]
    return protocol_hash({"files": found})


def _content(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    for block in _blocks(path):
        digest.update(block)
    return digest.hexdigest()


def _blocks(path: pathlib.Path) -> Iterator[bytes]:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _WHOLE:
            yield file.read()
            return
        for number in range(_BLOCKS):
            file.seek((size - _BLOCK) * number // (_BLOCKS - 1))
            yield file.read(_BLOCK)
