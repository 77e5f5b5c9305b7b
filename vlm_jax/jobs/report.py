"""Makes the report of a run anew from what is on disk, or one page of several runs side by side.

`--workdir` names the folder of an `evaluate` or a `sweep`, or several: a,b. No model is needed.
"""

import pathlib
from collections.abc import Sequence

from vlm_jax.errors import UserError
from vlm_jax.report.stored import Run, StoredRuns, read_run
from vlm_jax.study.report import read_settings, write
from vlm_jax.study.request import Request

BESIDE = "side_by_side"


def run(request: Request) -> None:
    """Writes `report.html`, or what `config.report.format` says, to `--workdir`.

    Of several runs `side_by_side.html` goes to the first one's folder.

    Raises:
        UserError: a folder holds no run.
    """
    settings = read_settings(request.config)
    folders = _folders(request.need("workdir"))
    if len(folders) == 1:
        files = write(read_run(folders[0]), folders[0], settings)
    else:
        files = write(_beside(folders), folders[0], settings, BESIDE)
    for path in files[:3]:
        print(f"Report: {path}")
    if len(files) > 3:
        print(f"and {len(files) - 3} more files in {files[0].parent}")


def _folders(given: pathlib.Path) -> list[pathlib.Path]:
    """The folders of a flag that names one, or several separated by commas."""
    return [given] if given.exists() else [pathlib.Path(one) for one in str(given).split(",")]


def _beside(folders: Sequence[pathlib.Path]) -> StoredRuns:
    """StoredRuns by the last part of their folder's name that tells them apart.

    Raises:
        UserError: two are the same folder.
    """
    runs: dict[str, Run] = {}
    for folder, name in zip(folders, _names(folders)):
        found = read_run(folder)
        if isinstance(found, Run):
            runs[name] = found
        else:
            runs |= {f"{name}/{model}": one for model, one in found.runs.items()}
    return StoredRuns(runs)


def _names(folders: Sequence[pathlib.Path]) -> list[str]:
    """Short names: of out/a/results and out/b/results, "a/results" and "b/results"."""
    whole = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, whole)) + 1):
        names = ["/".join(parts[-length:]) for parts in whole]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"--workdir names {folders[0]} twice; name different folders.")
