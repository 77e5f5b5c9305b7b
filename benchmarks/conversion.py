"""What converting a checkpoint of several GB and exporting it take, beside copying its files.

    python -m benchmarks.conversion            # 4 GB, judged; TMPDIR needs four times that
    python -m benchmarks.conversion --quick    # a small one: does it run?

The checkpoint is random bfloat16 in the shapes of Qwen2.5-VL-7B with fewer layers; its largest
tensor, a quarter of the whole, is the one of 7B. Every run is a process of its own, turn by turn,
with the source in the page cache and the disk at rest before. Time is that of the work, without
starting Python: until the call returns, and until everything written is on the disk. Memory is the
largest resident set of the process above the one it had when its imports were done.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from benchmarks.edit_folder import make_folder, peak_resident
from benchmarks.protocol import ratio_of
from benchmarks.record import RESULTS, figure, missed, record, write

QUANTITY = "conversion / copy, time of a folder; peak memory / its bound"
TIME_GOAL = 2.0
LARGEST_TIMES, LARGEST_PLUS = 2.5, 300 << 20
SAMPLE_SECONDS = 0.1
ROUTES = ("copy", "import", "export")


def settings(quick: bool) -> dict[str, Any]:
    """How many times narrower than 7B, layers (466 MB each at scale 1), and repeats."""
    if quick:
        return dict(scale=4, layers=1, repeats=1)
    return dict(scale=1, layers=4, repeats=3)


def measure(quick: bool = False, **changed: int) -> dict[str, Any]:
    """Measures the row; the folder that `TMPDIR` names needs 17 GB."""
    chosen = settings(quick) | changed
    memory: dict[str, Any] = {}

    def figures() -> list[dict[str, Any]]:
        with tempfile.TemporaryDirectory() as root:
            runs, sizes = run_in_turns(pathlib.Path(root), **chosen)
        memory.update({route: runs[route][-1]["resident_MB"] for route in ROUTES})
        return judge(runs, **sizes, judged=not quick)

    return record("convert", QUANTITY, chosen, figures) | {"resident_MB_over_seconds": memory}


def judge(
    runs: dict[str, list[dict[str, Any]]], total: int, largest: int, judged: bool
) -> list[dict[str, Any]]:
    """The figures of a row.

    Args:
        runs: for each route its runs, as `run_apart` gives them.
        total, largest: bytes of all tensors and of one.
        judged: whether goals apply.
    """
    found = []
    bound = LARGEST_TIMES * largest + LARGEST_PLUS
    for route in ROUTES[1:]:
        for name, ends in (("on the disk", ("work", "flush")), ("returned", ("work",))):
            seconds = [[sum(run[end] for end in ends) for run in runs[r]] for r in (route, "copy")]
            found.append(
                figure(
                    f"{route} / copy, until {name}",
                    ratio_of(*seconds),
                    TIME_GOAL if judged else None,
                    GB=total / 1e9,
                    copy_seconds=sorted(seconds[1])[len(seconds[1]) // 2],
                )
            )
        peak = max(run["peak"] for run in runs[route])
        found.append(
            figure(
                f"{route}, peak memory / bound",
                peak / bound,
                1.0 if judged else None,
                peak_MB=peak / 1e6,
                largest_tensor_MB=largest / 1e6,
            )
        )
    return found


def run_in_turns(
    root: pathlib.Path, scale: int, layers: int, repeats: int
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, int]]:
    """Makes the folder and runs every route `repeats` times.

    Raises:
        RuntimeError: what was exported is not what was imported.
    """
    source, copied, ours, theirs = (root / name for name in ("source", "copied", "ours", "theirs"))
    make_folder(source, scale, layers)
    nbytes = [entry.nbytes for entry in _tensors(source)]
    runs: dict[str, list[dict[str, Any]]] = {route: [] for route in ROUTES}
    for turn in range(repeats):
        folders = {"copy": (source, copied), "import": (source, ours), "export": (ours, theirs)}
        # The export needs the import; the copy comes before them and after them in turn.
        for route in ROUTES if turn % 2 == 0 else ("import", "export", "copy"):
            runs[route].append(run_apart(route, *folders[route]))
            if route == "copy":
                shutil.rmtree(copied)
        if turn == 0:
            check_same(source, theirs)
        shutil.rmtree(ours)
        shutil.rmtree(theirs)
    return runs, dict(total=sum(nbytes), largest=max(nbytes))


def _tensors(folder: pathlib.Path):
    from vlm_jax import checkpoint

    return checkpoint.open_folder(folder).tensors.values()


def check_same(first: pathlib.Path, second: pathlib.Path) -> None:
    """Refuses folders that differ in a byte."""
    names = sorted(path.name for path in first.iterdir())
    same, different, failed = filecmp.cmpfiles(first, second, names, shallow=False)
    if different or failed or sorted(path.name for path in second.iterdir()) != sorted(same):
        raise RuntimeError(f"{second} is not {first}: {different + failed} differ.")


def run_apart(route: str, source: pathlib.Path, target: pathlib.Path) -> dict[str, Any]:
    """Does a route in a fresh process.

    Returns:
        `work` and `flush` in seconds; `peak` in bytes above the start; `resident_MB`, pairs of
        seconds since the process began and MB.
    """
    os.sync()
    command = [sys.executable, "-m", "benchmarks.conversion", "--route", route]
    child = subprocess.Popen(
        [*command, str(source), str(target)], stdout=subprocess.PIPE, text=True
    )
    begun, samples = time.perf_counter(), []
    while child.poll() is None:
        resident = _resident(child.pid)
        if resident is not None:
            samples.append((round(time.perf_counter() - begun, 2), resident // 1_000_000))
        time.sleep(SAMPLE_SECONDS)
    assert child.stdout is not None
    text = child.stdout.read()
    if child.returncode:
        raise RuntimeError(f"{route} failed with exit code {child.returncode}: {text}")
    return json.loads(text) | {"resident_MB": samples}


def _resident(pid: int) -> int | None:
    try:
        return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf(
            "SC_PAGE_SIZE"
        )
    except (OSError, IndexError):
        return None


def work(route: str, source: pathlib.Path, target: pathlib.Path) -> dict[str, Any]:
    """What the fresh process does."""
    import jax

    import convert

    jax.devices()
    routes = {
        "copy": lambda: shutil.copytree(source, target),
        "import": lambda: convert.import_hf(source, target, progress=False),
        "export": lambda: convert.export_hf(source, target, progress=False),
    }
    before = peak_resident(reset=True)
    start = time.perf_counter()
    routes[route]()
    returned = time.perf_counter()
    for path in target.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    flushed = time.perf_counter()
    after = peak_resident()
    peak = 0 if before is None or after is None else after - before
    return {"work": returned - start, "flush": flushed - returned, "peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small folder; no goal is judged")
    parser.add_argument("--layers", type=int, default=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=argparse.SUPPRESS)
    parser.add_argument("--scale", type=int, default=argparse.SUPPRESS)
    parser.add_argument("--out", type=pathlib.Path, help="folder for the record")
    parser.add_argument("--route", choices=ROUTES, help=argparse.SUPPRESS)
    parser.add_argument("folders", nargs="*", type=pathlib.Path, help=argparse.SUPPRESS)
    args = vars(parser.parse_args())
    quick, out, route, folders = (args.pop(name) for name in ("quick", "out", "route", "folders"))
    if route:
        print(json.dumps(work(route, *folders)))
        return
    result = measure(quick, **args)
    for found in result["figures"]:
        print(f"{found['name']}: {found['median']:.2f} {found['verdict']} {found['context']}")
    if out or not quick:
        print(write(result, out or RESULTS))
    sys.exit(1 if missed(result) else 0)


if __name__ == "__main__":
    main()
