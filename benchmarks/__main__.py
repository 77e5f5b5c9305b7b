"""Runs benchmark rows and writes their records and tables.

    python -m benchmarks                  # rows R1 to R21, then the tables of docs/
    python -m benchmarks R1 R13 --quick   # some rows on tiny models: do they run?
    python -m benchmarks --device_shape=7b  # a 7B shape on an accelerator

Every row runs in a process of its own, so that none meets another's memory or compiled programs.
A goal is missed where the whole interval lies on its wrong side; the exit code then is 1.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pathlib
import subprocess
import sys
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# torch may share the accelerator.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

ROWS = {
    "R1": "decode_steered",
    "R2": "prefill_steered",
    "R3": "end_to_end",
    "R4": "decode_torch",
    "R5": "qk_edit",
    "R6": "peak_share",
    "R7": "suite",
    "R8": "sweep",
    "R10": "loops",
    "R12": "start_up",
    "R13": "memory",
    "R14": "decode_strategies",
    "R15": "decode_searches",
    "R16": "decode_experts",
    "R17": "attention_rows",
    "R18": "decode_mixed",
    "R19": "method_latency",
    "R20": "prefill_torch",
    "R21": "decode_mitigv",
    "edit": "edit_folder",
    "convert": "conversion",
}
"""Row -> module with `measure(quick)`."""

ON_REQUEST = ("edit", "convert")
"""Rows that run only when named: they write gigabytes."""

SHAPES = {"small": ROWS, "7b": {"7B": "seven_b"}}
"""Rows by the size of the model: small ones run on two cores, the 7B shape on an accelerator."""


def main() -> None:
    """Runs what the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("rows", nargs="*", metavar="row", help=f"of {', '.join(ROWS)}")
    parser.add_argument(
        "--device_shape", choices=SHAPES, default="small", help="7b: on an accelerator"
    )
    parser.add_argument("--quick", action="store_true", help="tiny models; no goal is judged")
    parser.add_argument("--out", type=pathlib.Path, help="folder for records (benchmarks/results)")
    args = parser.parse_args()
    modules = SHAPES[args.device_shape]
    rows = args.rows or [row for row in modules if row not in ON_REQUEST]
    unknown = [row for row in rows if row not in modules]
    if unknown:
        parser.error(f"there is no row {', '.join(unknown)}; the rows are {', '.join(modules)}.")
    if len(rows) == 1:
        sys.exit(run(rows[0], modules[rows[0]], args.quick, args.out))
    sys.exit(run_apart(rows, args.quick, args.out))


def run(row: str, module: str, quick: bool, out: pathlib.Path | None) -> int:
    """Runs one row here; returns 1 where a goal is missed. One that cannot run says why."""
    from benchmarks import record, tables

    try:
        result = importlib.import_module(f"benchmarks.{module}").measure(quick)
    except record.Unavailable as reason:
        print(f"\n{row}  skipped: {reason}", flush=True)
        return 0
    print(f"\n{row}  {result['quantity']}\n\n{tables.figures(result)}\n", flush=True)
    if out or not quick:
        print(f"{record.write(result, out or record.RESULTS)} ({result['seconds']:.0f} s)")
    missed = record.missed(result)
    for name in missed:
        print(f"{row} missed its goal: {name}", file=sys.stderr)
    return 1 if missed else 0


def run_apart(rows: list[str], quick: bool, out: pathlib.Path | None) -> int:
    """Runs rows one after another, each in its own process, and fills the tables in."""
    from benchmarks import tables

    failed = []
    start = time.perf_counter()
    for row in rows:
        command = [sys.executable, "-m", "benchmarks", row, *(["--quick"] if quick else [])]
        command += ["--out", str(out)] if out else []
        if subprocess.run(command, check=False).returncode:
            failed.append(row)
    if not quick and out is None:
        tables.fill()
    print(f"{len(rows)} rows in {time.perf_counter() - start:.0f} s", end="")
    print(f"; failed or missed: {', '.join(failed)}" if failed else "; no goal missed")
    return 1 if failed else 0


if __name__ == "__main__":
    main()
