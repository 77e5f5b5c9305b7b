"""Slow tests in turns: each has one, others run always."""

import pathlib
from typing import Any

from tests.turns import others


class Item:
    def __init__(self, file: int, slow: bool):
        self.path, self.slow = pathlib.Path(f"test_{file:02}.py"), slow

    def get_closest_marker(self, name: str) -> bool:
        return name == "slow" and self.slow


def test_every_slow_test_has_its_turn():
    items: list[Any] = [Item(file, slow) for file in range(8) for slow in (True, False, True)]
    slow = [item for item in items if item.slow]
    runs = [set(items) - set(others(items, f"{number}/3")) for number in range(3)]
    assert all(sum(item in run for run in runs) == 1 for item in slow)
    assert all(set(items) - set(slow) <= run for run in runs)
    assert {item.path.stem for item in runs[1] if item.slow} == {"test_01", "test_04", "test_07"}
    assert set(items) - set(others(items, "256/3")) == runs[1]
