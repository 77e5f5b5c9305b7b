"""Methods of decoding by their names: strategies, rerankers, and searches not chosen by settings.

A file `<name>.py` of `vlm_jax/decoding/search`, or another package's entry point `<name>` of the
group `vlm_jax.searches`, is the search of that name, the only public class of its module.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vlm_jax.decoding import search
from vlm_jax.decoding.rerankers import RERANKERS, HostMethod
from vlm_jax.decoding.search import Search
from vlm_jax.decoding.strategies import STRATEGIES, Strategy
from vlm_jax.errors import ConfigError
from vlm_jax.plugins import Plugins, subclass
from vlm_jax.settings import nearest, read

SEARCHES = Plugins[type[Search]](
    search.__name__, "vlm_jax.searches", "search", but=search.UNNAMED, check=subclass(Search)
)
_KINDS = STRATEGIES, SEARCHES, RERANKERS


def names() -> list[str]:
    """Returns the names of all methods."""
    return sorted({*STRATEGIES.names(), *SEARCHES.names(), *RERANKERS.names()})


def find(name: str) -> type[Strategy] | type[Search] | type[HostMethod]:
    """Returns a method by its name.

    Raises:
        ConfigError: there is none.
    """
    for kind in _KINDS:
        if name in kind:
            return kind.find(name)
    known = names()
    raise ConfigError(
        f"there is no strategy {name!r}{nearest(name, known)}; there are {', '.join(known)}."
    )


def settings(name: str) -> dict[str, Any]:
    """Returns a method's settings and their defaults."""
    return {field.name: field.default for field in dataclasses.fields(find(name))}


def controls(name: str) -> tuple[str, ...]:
    """Returns what a method's setting `control` may be; "" is the method itself."""
    for field in dataclasses.fields(find(name)):
        if field.name == "control":
            return tuple(field.metadata["check"].keywords["known"])
    return ()


def read_named(
    name: str, given: Mapping[str, Any], where: str = ""
) -> Strategy | Search | HostMethod:
    """Returns a method with its settings, such as `read_named("opera", {"threshold": 25})`.

    Args:
        name: of the method.
        given: settings that are not to be the defaults.
        where: what errors call the settings.

    Raises:
        ConfigError: there is no such method or setting, or a value is out of range.
    """
    return read(find(name), given, where or f"method {name!r}")
