"""Checks of what a user writes into a method's settings: each failure is one `ConfigError`."""

import difflib
import math
import numbers
from collections.abc import Iterable
from typing import Any

from vlm_jax.errors import ConfigError


def number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """Returns a finite number between `low` and `high`, both included.

    Raises:
        ConfigError: it is none.
    """
    valid = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not valid or not math.isfinite(value) or not low <= float(value) <= high:
        raise ConfigError(f"{name} must be a finite number{_range(low, high)}, not {value!r}.")
    return float(value)


def whole(name: str, value: Any, low: int, high: int) -> int:
    """Returns a whole number between `low` and `high`, both included.

    Raises:
        ConfigError: it is none.
    """
    valid = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not valid or not low <= int(value) <= high:
        raise ConfigError(f"{name} must be a whole number from {low} to {high}, not {value!r}.")
    return int(value)


def one_of(name: str, value: Any, known: Iterable[str]) -> str:
    """Returns a word that must be among some.

    Raises:
        ConfigError: it is not; names the nearest that is.
    """
    words = list(known)
    if not isinstance(value, str) or value not in words:
        listed = ", ".join(repr(word) for word in words)
        raise ConfigError(f"{name} must be one of {listed}, not {value!r}{nearest(value, words)}.")
    return value


def switch(name: str, value: Any) -> bool:
    """Returns True or False.

    Raises:
        ConfigError: it is neither.
    """
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be True or False, not {value!r}.")
    return value


def nearest(value: Any, known: Iterable[str]) -> str:
    """Returns " (did you mean ...?)" for a misspelt word, and nothing for a far one."""
    found = difflib.get_close_matches(str(value), list(known), n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def _range(low: float, high: float) -> str:
    if math.isinf(low) and math.isinf(high):
        return ""
    if math.isinf(high):
        return f", at least {low:g}"
    return f" at most {high:g}" if math.isinf(low) else f" from {low:g} to {high:g}"
