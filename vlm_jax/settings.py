"""The one reader of config sections: a mapping becomes a frozen dataclass, or one `ConfigError`.

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Choice:
        metric: str = setting("C_S", one_of, known=("C_S", "C_I"))
        max_recall_drop: float = setting(0.01, number, low=0, high=1)

    read(Choice, {"metric": "C_S"}, "config.choose")   # Choice("C_S", 0.01)
    read(Choice, {"metrik": "C_S"}, "config.choose")   # config.choose has no setting 'metrik' ...

A check takes the name and the value, and returns the value or raises `ConfigError`: `number`,
`whole`, `one_of`, `switch`, `text`, `word`, `optional`, `listed`, `section`, or a function of
one's own. A dataclass that Python code makes too calls `check_fields` in its `__post_init__`.
"""

import dataclasses
import difflib
import functools
import math
import numbers
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from vlm_jax.errors import ConfigError, UserError

T = TypeVar("T")
REQUIRED = dataclasses.MISSING
"""The default of a setting that must be given."""

_MOST = 2**31 - 1


def setting(default: Any, check: Callable[..., Any] | None = None, **bounds: Any) -> Any:
    """Returns a dataclass field of a section.

    Args:
        default: its value where the section does not say; `REQUIRED` if it must.
        check: called as `check(name, value, **bounds)`; returns the value to keep.
        bounds: further arguments of the check.
    """
    metadata = {} if check is None else {"check": functools.partial(check, **bounds)}
    if isinstance(default, list | dict | set):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def read(section_type: type[T], section: Mapping[str, Any], where: str, **given: Any) -> T:
    """Returns a section of a config as a dataclass, every value checked.

    Args:
        section_type: a dataclass; fields made by `setting` are checked.
        section: what the config says; keys that it lacks take the field's default.
        where: the section's name in messages, such as "config.edit".
        given: fields that the caller sets and the section may not.

    Raises:
        ConfigError: a key is unknown (the nearest is named), one that must be given is missing
            (all such are named), or a value is wrong; the message names `where` and the key.
    """
    if not hasattr(section, "items"):
        raise ConfigError(f"{where} must be a mapping of settings, not {section!r}.")
    fields = {field.name: field for field in dataclasses.fields(section_type) if field.init}  # type: ignore[arg-type]
    known = [name for name in fields if name not in given]
    values = {key: plain(value) for key, value in section.items()}
    refuse_unknown(values, known, where)
    missing = [
        name
        for name in known
        if name not in values and fields[name].default is fields[name].default_factory is REQUIRED
    ]
    if missing:
        none = "it has no default" if len(missing) == 1 else "they have no defaults"
        raise ConfigError(f"Set {where}.{', '.join(missing)}: {none}.")
    for name, field in fields.items():
        if name in values and "check" in field.metadata:
            values[name] = field.metadata["check"](f"{where}.{name}", values[name])
    try:
        return section_type(**values, **given)
    except UserError as error:  # of the class's own checks
        message = str(error)
        raise ConfigError(message if where in message else f"{where}: {message}") from None


def check_fields(made: Any) -> None:
    """Checks the fields of a frozen dataclass by the checks of `setting`, and keeps what they give.

    Raises:
        ConfigError: a value is wrong; the message names the field.
    """
    for field in dataclasses.fields(made):
        if "check" in field.metadata:
            checked = field.metadata["check"](field.name, getattr(made, field.name))
            object.__setattr__(made, field.name, checked)


def refuse_unknown(keys: Iterable[str], known: Iterable[str], where: str) -> None:
    """Refuses the first key that is none of the known ones.

    Raises:
        ConfigError: naming `where`, the key, the nearest known one and all of them.
    """
    known = list(known)
    for key in keys:
        if key not in known:
            listed = f"it knows {', '.join(known)}" if known else "it has none"
            raise ConfigError(f"{where} has no setting {key!r}{nearest(key, known)}; {listed}.")


def plain(value: Any) -> Any:
    """Returns a config's own mapping types as plain dicts, other values as they are."""
    return value.to_dict() if hasattr(value, "to_dict") else value


def secret(variable: str) -> str:
    """Returns the key that an environment variable holds, without white space around it.

    "" where the variable is not set, or has no name.
    """
    return os.environ.get(variable, "").strip() if variable else ""


def text(name: str, value: Any) -> str:
    """Returns a string.

    Raises:
        ConfigError: it is none.
    """
    if not isinstance(value, str):
        raise ConfigError(f"{name} must be text, not {value!r}.")
    return value


def word(name: str, value: Any) -> str:
    """Returns a string of at least one character.

    Raises:
        ConfigError: it is none.
    """
    if not text(name, value):
        raise ConfigError(f"{name} must be text of at least one character.")
    return value


def number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """Returns a finite number between `low` and `high`, both included.

    Raises:
        ConfigError: it is none.
    """
    valid = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not valid or not math.isfinite(value) or not low <= float(value) <= high:
        raise ConfigError(f"{name} must be a finite number{_range(low, high)}, not {value!r}.")
    return float(value)


def whole(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> int:
    """Returns a whole number between `low` and `high`, both included; no count passes 2^31 - 1.

    Raises:
        ConfigError: it is none.
    """
    valid = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if valid and int(value) > _MOST:
        high = _MOST if high == math.inf else high
    if not valid or not low <= int(value) <= high:
        raise ConfigError(f"{name} must be a whole number{_range(low, high)}, not {value!r}.")
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


def optional(name: str, value: Any, each: Callable[..., T], **bounds: Any) -> T | None:
    """Returns None as it is, any other value by the check `each`.

    Raises:
        ConfigError: see the check.
    """
    return None if value is None else each(name, value, **bounds)


def listed(
    name: str,
    value: Any,
    each: Callable[..., T],
    least: int = 0,
    most: int | None = None,
    alone: bool = False,
    **bounds: Any,
) -> tuple[T, ...]:
    """Returns a list as a tuple.

        setting((), listed, each=whole, low=0)      # [3, 7] -> (3, 7)
        setting((), listed, each=word, alone=True)  # "air" -> ("air",), "" -> ()

    Args:
        name, value: of the setting.
        each: check of a value of the list.
        least, most: how many it must have.
        alone: a word stands for a list of itself, and "" for an empty one; else a word is no list.
        bounds: further arguments of the check.

    Raises:
        ConfigError: it is no list, too short or too long, or a value of it cannot be.
    """
    if alone and isinstance(value, str):
        value = [value] if value else []
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigError(f"{name} must be a list, not {value!r}.")
    if least == most != len(value):
        raise ConfigError(f"{name} must list {least} values, not {value!r}.")
    if len(value) < least:
        raise ConfigError(f"{name} must list {least} value{'s' * (least > 1)} or more.")
    if most is not None and len(value) > most:
        raise ConfigError(f"{name} must list {most} values at most, not {len(value)}.")
    return tuple(each(name, one, **bounds) for one in value)


def section(name: str, value: Any, of: type[T], optional: bool = False) -> T | None:
    """Returns a section of a section as the dataclass `of`, which `read` makes of a mapping.

    Args:
        name, value: of the setting.
        of: the dataclass.
        optional: None may stand for no section.

    Raises:
        ConfigError: see `read`.
    """
    if isinstance(value, of) or (optional and value is None):
        return value
    return read(of, value, name)


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
