"""The run-time type checker of the tests."""

from collections.abc import Callable

import beartype


def functions(checked: Callable) -> Callable:
    """Checks the annotations of a function at every call, but not those of constructors.

    The dataclasses here are pytrees: jax rebuilds them around shapes, shardings and sentinels.
    """
    return checked if checked.__name__ == "__init__" else beartype.beartype(checked)
