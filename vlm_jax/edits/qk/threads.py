"""Work on heads side by side, one thread a core."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def each(work: Callable[[int], T], numbers: Iterable[int]) -> list[T]:
    """Returns the work on each number, in order.

    More threads than cores would only take the interpreter's lock from one another.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(work, numbers))
