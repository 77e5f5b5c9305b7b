"""Methods of decoding by their names: strategies, and searches that settings do not choose.

A file `<name>.py` of `vlm_jax/decoding/search`, or another package's entry point `<name>` of the
group `vlm_jax.searches`, is the search of that name, the only public class of its module.
"""

import dataclasses
import importlib
import importlib.metadata
import pkgutil
from collections.abc import Mapping
from typing import Any

from vlm_jax.decoding import search, strategies
from vlm_jax.decoding.search import Search
from vlm_jax.decoding.strategies import Strategy
from vlm_jax.errors import ConfigError
from vlm_jax.settings import nearest, read

SEARCHES = "vlm_jax.searches"


def names() -> list[str]:
    """Returns the names of all methods."""
    return sorted({*strategies.names(), *_searches()})


def find(name: str) -> type[Strategy] | type[Search]:
    """Returns a method by its name.

    Raises:
        ConfigError: there is none.
    """
    if name not in names():
        raise ConfigError(
            f"there is no strategy {name!r}{nearest(name, names())}; there are "
            f"{', '.join(names())}."
        )
    if name in strategies.names():
        return strategies.find(name)
    for entry in importlib.metadata.entry_points(group=SEARCHES, name=name):
        return entry.load()
    module = importlib.import_module(f"{search.__name__}.{name}")
    own = [one for one in vars(module).values() if isinstance(one, type)]
    (found,) = [
        one for one in own if one.__module__ == module.__name__ and not one.__name__.startswith("_")
    ]
    return found


def settings(name: str) -> dict[str, Any]:
    """Returns a method's settings and their defaults."""
    return {field.name: field.default for field in dataclasses.fields(find(name))}


def controls(name: str) -> tuple[str, ...]:
    """Returns what a method's setting `control` may be; "" is the method itself."""
    for field in dataclasses.fields(find(name)):
        if field.name == "control":
            return tuple(field.metadata["check"].keywords["known"])
    return ()


def read_named(name: str, given: Mapping[str, Any], where: str = "") -> Strategy | Search:
    """Returns a method with its settings, such as `read_named("opera", {"threshold": 25})`.

    Args:
        name: of the method.
        given: settings that are not to be the defaults.
        where: what errors call the settings.

    Raises:
        ConfigError: there is no such method or setting, or a value is out of range.
    """
    return read(find(name), given, where or f"method {name!r}")


def _searches() -> list[str]:
    own = [module.name for module in pkgutil.iter_modules(search.__path__)]
    foreign = [entry.name for entry in importlib.metadata.entry_points(group=SEARCHES)]
    return [name for name in (*own, *foreign) if name not in search.UNNAMED]
