"""Results of a long run as files, a chunk of examples each, so that a killed run goes on."""

import io
import json
import pathlib
import re
import sys
import zipfile
import zlib
from collections.abc import Iterable, Mapping

import numpy as np

from vlm_jax.errors import AnswersError
from vlm_jax.evals.answer_log import difference
from vlm_jax.evals.results import write_json
from vlm_jax.files import replace_file

_PART = re.compile(r"\d{6}(\.\w+)?\.npz")
_DAMAGE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, KeyError)


class Chunks:
    """Arrays by name for each chunk, beside a file that says whose they are.

    Chunks of which nothing says whose they are, and damaged ones, are made again.

    Args:
        folder: of the files.
        identity: of what the chunks are results of, as JSON values.
        kind: of these chunks, where several kinds share a folder.

    Raises:
        AnswersError: the folder holds results of something else; the message says what differs.
    """

    def __init__(self, folder: pathlib.Path, identity: Mapping[str, object], kind: str = ""):
        self.folder, self.kind = folder, kind
        key = folder / "run.json"
        wanted = json.loads(json.dumps(identity, sort_keys=True, default=str))
        before = self._whose(key)
        if before is None:
            self._forget(key)
            write_json(key, wanted)
        elif before != wanted:
            raise AnswersError(
                f"{folder} holds results of another run: {difference(before, wanted)}. Delete it "
                "or choose another --workdir."
            )

    def _whose(self, key: pathlib.Path) -> object:
        """What the chunks that are there are results of; None where nothing says it."""
        try:
            return json.loads(key.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None

    def _forget(self, key: pathlib.Path) -> None:
        """Removes chunks of nobody."""
        found = [path for path in self.folder.glob("*.npz") if _PART.fullmatch(path.name)]
        for path in found:
            path.unlink()
        if found:
            print(f"{key} is missing or damaged: its results are made again.", file=sys.stderr)

    def _path(self, number: int) -> pathlib.Path:
        return self.folder / f"{number:06}{self.kind and '.' + self.kind}.npz"

    def has(self, number: int) -> bool:
        """Whether a whole chunk is there; a damaged one is removed."""
        path = self._path(number)
        if not path.exists():
            return False
        try:
            self.read(number)
        except _DAMAGE:
            print(f"{path} is damaged: it is made again.", file=sys.stderr)
            path.unlink()
            return False
        return True

    def write(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes a chunk, whole or not at all."""
        content = io.BytesIO()
        np.savez(content, **arrays)  # type: ignore[arg-type]
        replace_file(self._path(number), content.getvalue(), "the chunks before it are kept")

    def read(self, number: int) -> dict[str, np.ndarray]:
        """Returns the arrays of a chunk."""
        with np.load(self._path(number), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}

    def join(self, numbers: Iterable[int]) -> dict[str, np.ndarray]:
        """Returns the arrays of some chunks, one behind the other."""
        chunks = [self.read(number) for number in numbers]
        return {name: np.concatenate([one[name] for one in chunks]) for name in chunks[0]}
