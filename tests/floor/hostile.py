"""Files of a model folder with one thing wrong, drawn by hypothesis."""

import copy
import json
import pathlib
from typing import Any

from hypothesis import strategies as st

DEEP = object()
"""Stands for lists nested 100,000 deep, which no JSON writer makes."""

VALUES = (
    None, True, False, 0, 1, -1, 3, 2.5, -0.5, 1e-300, 1e300, float("nan"), float("inf"),
    float("-inf"), 10**9, 2**31, 2**63, 2**64, 10**30, -(10**30), "", "x", "../x", "/x", "a\0b",
    "\ud800", "x" * 5000, "float32", "O", [], [1], [-1], [1.5], ["a"], [[[]]], [None], {}, {"a": 1},
    {"": None}, DEEP,
)  # fmt: skip


def places(value: Any, here: tuple = ()) -> list[tuple]:
    """Every place in a JSON value, as the keys that lead there; the value itself is ()."""
    found = [here]
    if isinstance(value, dict):
        for key, inner in value.items():
            found += places(inner, (*here, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value[:4]):
            found += places(inner, (*here, index))
    return found


def changed(value: Any, place: tuple, new: Any) -> Any:
    """A copy of a JSON value with another value in one place."""
    if not place:
        return new
    made = copy.deepcopy(value)
    inner = made
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = new
    return made


def without(value: Any, place: tuple) -> Any:
    """A copy of a JSON value with one place left out."""
    made = copy.deepcopy(value)
    inner = made
    for key in place[:-1]:
        inner = inner[key]
    del inner[place[-1]]
    return made


def text(value: Any) -> bytes:
    """JSON, with what Python's writer takes for numbers, and `DEEP`."""
    deep = "[" * 100_000 + "]" * 100_000
    return json.dumps(value, default=lambda _: "DEEP").replace('"DEEP"', deep).encode()


@st.composite
def broken_json(draw, value: Any) -> bytes:
    """JSON text of a value with one or two things wrong."""
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.sampled_from(places(value)))
        if at and draw(st.integers(0, 4)) == 0:
            value = without(value, at)
        else:
            value = changed(value, at, draw(st.sampled_from(VALUES)))
        if not isinstance(value, dict | list):
            break
    return draw(broken_bytes(text(value), often=9))


@st.composite
def broken_bytes(draw, content: bytes, often: int = 0) -> bytes:
    """Bytes that are cut, have some changed or are empty; one time in `often` + 1."""
    if often and draw(st.integers(0, often)):
        return content
    kind = draw(st.sampled_from(["cut", "change", "empty", "more"]))
    at = draw(st.integers(0, max(len(content) - 1, 0)))
    if kind == "cut":
        return content[:at]
    if kind == "change":
        return content[:at] + draw(st.binary(min_size=1, max_size=4)) + content[at + 1 :]
    return b"" if kind == "empty" else content + b"\xff{"


def snapshot(folder: pathlib.Path) -> dict[str, bytes | None]:
    """Everything that lies in a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
