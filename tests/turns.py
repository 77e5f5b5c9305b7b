"""Slow tests in turns: which of them a run leaves to others."""

from collections.abc import Sequence

import pytest


def others(items: Sequence[pytest.Item], turn: str) -> list[pytest.Item]:
    """Returns the slow tests whose turn it is not.

    Tests of a file share what they make, so that turns are dealt out file by file.

    Args:
        items: all tests.
        turn: "7/3" runs one of three parts, the one of 7 % 3 = 1: files 1, 4, 7, ... of those that
            have slow tests.
    """
    number, count = map(int, turn.split("/"))
    slow = [item for item in items if item.get_closest_marker("slow")]
    mine = sorted({item.path for item in slow})[number % count :: count]
    return [item for item in slow if item.path not in mine]
