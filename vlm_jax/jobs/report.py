"""Makes the report of a run anew from what is on disk, or one page of several runs side by side.

`--workdir` names the folder of an `evaluate` or a `sweep`, or several: a,b. No model is needed, but
with `--source` and `config.report.attention=24` so many captions of an evaluation are read again,
to show where the model as it is looked when it chose their object words.
"""

import pathlib
from collections.abc import Sequence

from vlm_jax import checkpoint
from vlm_jax.errors import UserError
from vlm_jax.evals.suites import read_benchmarks
from vlm_jax.report.stored import Run, StoredRuns, read_run
from vlm_jax.report.written import ReportSettings, read_settings
from vlm_jax.study.report import keep_attention, write
from vlm_jax.study.request import Request, several
from vlm_jax.study.runtime import load_model

BESIDE = "side_by_side"


def run(request: Request) -> None:
    """Writes `report.html`, or what `config.report.format` says, to `--workdir`.

    Of several runs `side_by_side.html` goes to the first one's folder.

    Raises:
        UserError: a folder holds no run.
    """
    settings = read_settings(request.config)
    folders = several(request.need("workdir"))
    if settings.attention:
        _look(request, folders, settings)
    if len(folders) == 1:
        files = write(read_run(folders[0]), folders[0], settings)
    else:
        files = write(_beside(folders), folders[0], settings, BESIDE)
    for path in files[:3]:
        print(f"Report: {path}")
    if len(files) > 3:
        print(f"and {len(files) - 3} more files in {files[0].parent}")


def _look(request: Request, folders: Sequence[pathlib.Path], settings: ReportSettings) -> None:
    """Reads captions of one evaluation again.

    Raises:
        UserError: there are several runs, or it is none of one model.
    """
    found = read_run(folders[0])
    if len(folders) > 1 or not isinstance(found, Run) or found.sweep is not None:
        raise UserError("config.report.attention needs the --workdir of one evaluate of one model.")
    source = checkpoint.open_folder(request.need("source"))
    benchmarks = read_benchmarks(found.about.config.get("benchmarks", {}), source.config.family)
    models = {found.comparison.baseline.name: load_model(request, source)}
    keep_attention(folders[0], benchmarks, models, settings)


def _beside(folders: Sequence[pathlib.Path]) -> StoredRuns:
    """Runs by the last part of their folder's name that tells them apart.

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
