"""Configs by name or path, changed from the command line.

    vlm-jax --config=sweep --config.edit.k=2 --config.images=a.jpg,b.jpg

`--config` takes the name of a shipped config, or a file of one's own; `name:argument` calls its
`get_config("argument")`. A value is read as the setting's default is: text as it stands, numbers,
`true` or `false`, and tuples with or without their brackets and quotes. "~/" at the start of a text
is the user's home.
"""

import ast
import importlib.util
import inspect
import math
import pathlib
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from vlm_jax.errors import ConfigError, UserError
from vlm_jax.files import expanded
from vlm_jax.settings import nearest, refuse_unknown

_PACKAGE = pathlib.Path(__file__).parents[1]
# In an installed package; in a checkout they lie beside it.
FOLDER = next(p for p in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if p.is_dir())

Changes = Sequence[tuple[str, str]]
"""Dotted names of settings and their new values as text, in order."""

_SWITCH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

_OTHER_WORDS: dict[str, str] = dict.fromkeys(
    ("steering", "steer", "strategy", "decoding"), "method"
)


def names() -> list[str]:
    """The names of the shipped configs; those of papers are "papers/air" and so on."""
    files = (path for path in FOLDER.rglob("*.py") if path.stem != "__init__")
    return sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in files)


def read(named: str, changes: Changes = ()) -> ConfigDict:
    """Returns the locked config of a name or path, with some settings changed.

    Args:
        named: "sweep", "configs/sweep.py", "my/own.py", each possibly with ":argument".
        changes: of its settings.

    Raises:
        ConfigError: there is no such config, it cannot be read, a change is of an unknown setting
            (the nearest is named) or has a value of another kind, or a value is one that results
            cannot record, such as NaN.
    """
    _make_importable()
    config = _call(*_find(named), named)
    config.lock()
    for name, value in changes:
        change(config, name, value)
    _check_recordable("config", config)
    return config


def change(config: ConfigDict, name: str, value: str) -> None:
    """Changes one setting, in place.

    Sections that are empty in configs/base.py (arms, benchmarks, ...) hold what is named freely, so
    a new name there adds an entry: `arms.mild.method`, "air" gives {"mild": {"method": "air"}}.
    `score` also takes the settings of any benchmark; its job knows which there are.

    Raises:
        ConfigError: the setting is unknown, or the value is none for it.
    """
    *sections, last = name.split(".")
    free = bool(sections) and sections[0] in ("score", *_free_sections())
    section: Any = config
    for depth, part in enumerate(sections):
        if part not in section and free and depth:
            with config.unlocked():
                section[part] = ConfigDict()
        _check_known(config, section, part, name, sections[:depth])
        section = section[part]
        if not isinstance(section, ConfigDict):
            where = ".".join(["config", *sections[: depth + 1]])
            raise ConfigError(f"{where} is one value, so it has no setting {name!r}; set {where}.")
    if last not in section and not free:
        _check_known(config, section, last, name, sections)
    known = last in section
    default = section[last] if known else None
    kind = section.get_type(last) if known else type(None)
    parsed = parse(f"config.{name}", value, kind, default)
    with config.unlocked():
        try:
            section[last] = ConfigDict(parsed) if isinstance(parsed, dict) else parsed
        except TypeError:
            kind = type(default).__name__
            raise ConfigError(f"config.{name} must be a {kind}, not {value!r}.") from None
        except ValueError:
            raise ConfigError(f"config.{name}: a name in {value!r} has a dot in it.") from None


def parse(name: str, text: str, kind: type, default: Any = None) -> Any:
    """Reads a value as its default is.

    ("0.5", float) -> 0.5; ("a.jpg,b.jpg", tuple) -> ("a.jpg", "b.jpg"); ("(10, 17)", tuple) ->
    (10, 17); ("{'k': 2}", ConfigDict) -> {"k": 2}; a setting that has no default reads what it can.

    Raises:
        ConfigError: naming the setting and what it needs.
    """
    if kind is str:
        return expanded(text)
    if kind is bool:
        if text.lower() not in _SWITCH:
            raise ConfigError(f"{name} must be true or false, not {text!r}.")
        return _SWITCH[text.lower()]
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise ConfigError(f"{name} must be {what}, not {text!r}.") from None
    value = _literal(text)
    if kind in (tuple, list):
        if isinstance(value, tuple | list):
            return kind(value)
        parts = text.split(",") if isinstance(value, str) else [value]
        parts = (_literal(p.strip()) if isinstance(p, str) else p for p in parts if p != "")
        return kind(expanded(p) if isinstance(p, str) else p for p in parts)
    if kind is ConfigDict and not isinstance(value, Mapping):
        example = next(iter(default), "name") if default is not None else "name"
        raise ConfigError(
            f"{name} is a section: give {name}.{example}=<value>, or all of it as "
            f"\"{{'{example}': ...}}\", not {text!r}."
        )
    return value


def settings(config: ConfigDict, prefix: str = "config") -> Iterator[tuple[str, Any]]:
    """Yields the dotted name and value of every setting; an empty section is one."""
    for name, value in config.items():
        if isinstance(value, ConfigDict) and len(value):
            yield from settings(value, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}", value


def _literal(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _check_recordable(name: str, value: Any) -> None:
    """Refuses what results, which record every setting in JSON, cannot hold.

    Raises:
        ConfigError: a number is NaN or infinite, a value is bytes, complex, a set or `...`, or a
            name is no text.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name} must be a finite number, not {value}.")
    if isinstance(value, bytes | complex | set | frozenset | types.EllipsisType):
        raise ConfigError(
            f"{name} must be text, a number, True, False, None, a list or a section, not {value!r}."
        )
    if isinstance(value, Mapping | ConfigDict):
        for key, part in value.items():
            if not isinstance(key, str) or not key:
                raise ConfigError(f"{name} has an entry {key!r}; a name is text.")
            _check_recordable(f"{name}.{key}", part)
    for part in value if isinstance(value, list | tuple) else ():
        _check_recordable(name, part)


def _check_known(
    config: ConfigDict, section: ConfigDict, part: str, name: str, path: Sequence[str]
) -> None:
    if part in section:
        return
    if path:
        refuse_unknown([part], list(section), ".".join(["config", *path]))
    # A setting of a section, named without it.
    inside = [key.removeprefix("config.") for key, _ in settings(config)]
    meant = _OTHER_WORDS.get(part) or next((k for k in inside if k.endswith(f".{name}")), None)
    hint = f" (did you mean {meant!r}?)" if meant else nearest(part, section)
    raise ConfigError(f"The config has no setting {name!r}{hint}; `--helpfull` lists them all.")


def _free_sections() -> list[str]:
    """Sections whose keys are names that a user gives: those that are empty by default."""
    base = _call(FOLDER / "base.py", None, "base")
    return [key for key, value in base.items() if isinstance(value, ConfigDict) and not len(value)]


def _find(named: str) -> tuple[pathlib.Path, str | None]:
    """The file of a config and its argument.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    text, _, argument = named.partition(":")
    path = pathlib.Path(expanded(text))
    if path.suffix == ".py" and path.is_file():
        return path, argument or None
    name = path.as_posix().removesuffix(".py").removeprefix("configs/")
    if name in names():
        return FOLDER / f"{name}.py", argument or None
    hint = nearest(name, names())
    raise ConfigError(
        f"There is no config {text!r}{hint}: it is a file, or one of {', '.join(names())}."
    )


def _call(path: pathlib.Path, argument: str | None, named: str) -> ConfigDict:
    """What a config file's `get_config` returns."""
    specification = importlib.util.spec_from_file_location("vlm_jax_config_file", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
        takes = len(inspect.signature(module.get_config).parameters)
        if argument is not None and not takes:
            raise ConfigError(f"{path.name} takes no argument, not {argument!r}.")
        config = module.get_config(*[] if argument is None else [argument])
    except UserError as error:
        raise ConfigError(f"--config={named}: {error}") from None
    except Exception as error:
        what = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ConfigError(f"--config={named}: {what}{' '.join(str(error).split())}") from None
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"--config={named}: get_config() must return a ConfigDict.")
    return config


def _make_importable() -> None:
    """Lets configs, shipped or of one's own, start from others: `from configs import base`."""
    package = types.ModuleType("configs")
    beside = pathlib.Path("configs").resolve()
    package.__path__ = [str(FOLDER), *[str(beside)] * (beside != FOLDER)]
    sys.modules.setdefault("configs", package)
