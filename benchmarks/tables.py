"""Tables of docs/performance.md, read off the records in benchmarks/results.

    python -m benchmarks.tables           # fills them in
    python -m benchmarks.tables --check   # exit code 1 where a page is not what the records say

A page marks where a table belongs with a pair of comments, `<!-- table: R1 -->` and `<!-- end -->`;
what is between them is generated, the rest is prose.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import record

DOCS = pathlib.Path(__file__).parents[1] / "docs"
PAGES = ("performance.md", "tpu_pods.md", "gpu_clusters.md")
_MARK = re.compile(r"(<!-- table: (.+?) -->\n)(.*?)(<!-- end -->)", re.S)


def figures(result: dict[str, Any]) -> str:
    """The figures of one record as a table."""
    lines = ["| what | ratio [95 % interval] | goal | verdict | |", "|---|---|---|---|---|"]
    for found in result["figures"]:
        lines.append(
            f"| {found['name']} | {_interval(found)} | {_goal(found)} | {found['verdict']} "
            f"| {_context(found['context'])} |"
        )
    return "\n".join(lines)


def _interval(found: dict[str, Any]) -> str:
    if found["low"] == found["high"]:
        return _number(found["median"])
    return "{} [{}, {}]".format(*(_number(found[name]) for name in ("median", "low", "high")))


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) >= 10 else (
        f"{value:.2f}"
    )  # fmt: skip


def _goal(found: dict[str, Any]) -> str:
    if "goal" not in found:
        return ""
    return f"{'<=' if found['at_most'] else '>='} {found['goal']:g}"


def _context(context: dict[str, Any]) -> str:
    """What helps to read a figure; `steered_ms=12`, a name that ends with a unit, is a quantity."""
    parts = []
    for name, value in context.items():
        words, _, unit = name.rpartition("_")
        if isinstance(value, int | float) and words:
            parts.append(f"{words.replace('_', ' ')} {_number(value)} {unit}")
        else:
            parts.append(f"{name.replace('_', ' ')} {value}")
    return ", ".join(parts)


def measured(row: str) -> str:
    """The tables of a row, one a device; without a record it says that there is none."""
    paths = sorted(record.RESULTS.glob(f"{row.lower()}_*.json"))
    if not paths:
        return "Not measured yet."
    return "\n\n".join(_with_machine(json.loads(path.read_text())) for path in paths)


def _with_machine(result: dict[str, Any]) -> str:
    machine, before, after = result["machine"], result["peaks_before"], result["peaks_after"]
    device = machine["devices"][0]
    device = f"{machine['cores']} cores of {machine['cpu']}" if device == "cpu" else device
    return (
        f"{figures(result)}\n\n"
        f"On {device}; GEMM {before['gemm_gflops']:.0f} and {after['gemm_gflops']:.0f} GFLOP/s, "
        f"stream {before['stream_gbs']:.1f} and {after['stream_gbs']:.1f} GB/s before and after; "
        f"load average {machine['load_average'][0]:.1f} and {result['load_average_after'][0]:.1f}; "
        f"commit {machine['commit'][:12]}."
    )


def computed(name: str) -> str | None:
    """A table that is computed or compiled and not measured, or None."""
    from benchmarks import released, roofline

    made: dict[str, Callable[[], str]] = roofline.TABLES | released.TABLES
    return made[name]() if name in made else None


def filled(text: str) -> str:
    """A page with its tables."""

    def table(match: re.Match) -> str:
        start, name, _, end = match.groups()
        return f"{start}\n{computed(name) or measured(name)}\n\n{end}"

    return _MARK.sub(table, text)


def fill(check: bool = False) -> list[str]:
    """Fills the pages in; returns those that changed. With `check` nothing is written."""
    changed = []
    for name in PAGES:
        path = DOCS / name
        old = path.read_text(encoding="utf-8")
        new = filled(old)
        if new != old:
            changed.append(name)
            if not check:
                path.write_text(new, encoding="utf-8")
    return changed


def main() -> None:
    """Fills the pages in, or checks them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, say what would change")
    changed = fill(parser.parse_args().check)
    print("\n".join(changed))
    sys.exit(1 if changed and "--check" in sys.argv else 0)


if __name__ == "__main__":
    main()
