"""Results of a long run as files, a chunk of examples each, so that a killed run goes on."""

import json
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np

from vlm_jax.errors import AnswersError
from vlm_jax.evals.results import write_json


class Chunks:
    """Arrays by name for each chunk, beside a file that says whose they are.

    Args:
        folder: of the files.
        identity: of what the chunks are results of, as JSON values.
        kind: of these chunks, where several kinds share a folder.

    Raises:
        AnswersError: the folder holds results of something else.
    """

    def __init__(self, folder: pathlib.Path, identity: Mapping[str, object], kind: str = ""):
        self.folder, self.kind = folder, kind
        key = folder / "run.json"
        wanted = json.loads(json.dumps(identity, sort_keys=True, default=str))
        if not key.exists():
            write_json(key, wanted)
        elif json.loads(key.read_text(encoding="utf-8")) != wanted:
            raise AnswersError(
                f"{folder} holds results of another model or other settings ({key.name} says "
                "which); delete it or choose another --workdir."
            )

    def _path(self, number: int) -> pathlib.Path:
        return self.folder / f"{number:06}{self.kind and '.' + self.kind}.npz"

    def has(self, number: int) -> bool:
        """Whether a chunk is there."""
        return self._path(number).exists()

    def write(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes a chunk, whole or not at all."""
        path = self._path(number)
        temporary = path.with_name(f".{path.name}.part")
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        temporary.replace(path)

    def read(self, number: int) -> dict[str, np.ndarray]:
        """Returns the arrays of a chunk."""
        with np.load(self._path(number), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}

    def join(self, numbers: Iterable[int]) -> dict[str, np.ndarray]:
        """Returns the arrays of some chunks, one behind the other."""
        chunks = [self.read(number) for number in numbers]
        return {name: np.concatenate([one[name] for one in chunks]) for name in chunks[0]}
