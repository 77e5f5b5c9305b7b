"""The record of a row: what was measured on which machine, and whether its goals were met."""

from __future__ import annotations

import json
import os
import pathlib
import re
import time
from collections.abc import Callable
from typing import Any

from benchmarks.protocol import RatioReport, machine, peaks

RESULTS = pathlib.Path(__file__).parent / "results"


class Unavailable(Exception):
    """A row cannot be measured here; the message says what is missing, and how to have it."""


def figure(
    name: str,
    report: RatioReport | float,
    goal: float | None = None,
    *,
    at_most: bool = True,
    **context: Any,
) -> dict[str, Any]:
    """One figure of a row.

    Args:
        name: what was measured, as the table says it.
        report: the ratio with its interval; a number is exact and has none.
        goal: what it is judged against; None: it is not.
        at_most: whether the goal is an upper bound.
        context: what helps to read it, in the table's last column.
    """
    if not isinstance(report, RatioReport):
        exact = float(report)
        report = RatioReport(exact, exact, exact, exact, (), ())
    judged = {} if goal is None else {"goal": goal, "at_most": at_most}
    verdict = "" if goal is None else report.verdict(goal, at_most=at_most)
    return {"name": name, **report.as_dict(), **judged, "verdict": verdict, "context": context}


def milliseconds(seconds: tuple[float, ...], steps: int = 1) -> float:
    """Median of some runs, in ms a step."""
    return 1e3 * sorted(seconds)[len(seconds) // 2] / steps


def record(
    row: str, quantity: str, settings: dict[str, Any], measure: Callable[[], list[dict[str, Any]]]
) -> dict[str, Any]:
    """Measures a row's figures between two measurements of the machine's peaks."""
    before = {"machine": machine(), "peaks_before": peaks()}
    start = time.perf_counter()
    figures = measure()
    return {
        "row": row,
        "quantity": quantity,
        "settings": settings,
        **before,
        "figures": figures,
        "peaks_after": peaks(),
        "load_average_after": list(os.getloadavg()),
        "seconds": time.perf_counter() - start,
    }


def device_name(result: dict[str, Any]) -> str:
    """The device as file names spell it: amd-epyc, intel-xeon, nvidia-h100-80gb-hbm3."""
    machine = result["machine"]
    device = machine["cpu"] if machine["devices"][0] == "cpu" else machine["devices"][0]
    return re.sub(r"\((r|tm)\)| processor", "", device.lower()).strip().replace(" ", "-")


def write(result: dict[str, Any], folder: pathlib.Path = RESULTS) -> pathlib.Path:
    """Writes a record as `<row>_<device>.json`; returns the path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['row'].lower()}_{device_name(result)}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return path


def missed(result: dict[str, Any]) -> list[str]:
    """Names of the figures whose interval lies wholly on the wrong side of the goal."""
    return [found["name"] for found in result["figures"] if found["verdict"] == "missed"]
