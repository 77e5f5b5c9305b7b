"""Plugins by name: the files of a package's folder, and the entry points of other packages."""

import ast
import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.util
import logging
import pkgutil
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from vlm_jax.errors import ConfigError
from vlm_jax.settings import nearest

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Plugins(Generic[T]):
    """All plugins of one kind, of this package and of others.

    Attributes:
        package: the package in whose folder each file `<name>.py`, or folder, is a plugin.
        group: entry-point group by which other packages add plugins of this kind.
        what: what errors call a plugin of this kind.
        attribute: of a module that is a plugin's, which is the plugin; "{name}" stands for the
            plugin's name, and "" for the only class with a public name that the module defines.
        but: names of files in the package's folder that are no plugins.
        also: further packages of ours with such plugins.
        check: whether an object is of this kind; objects of other packages must pass it.
    """

    package: str
    group: str
    what: str
    attribute: str = ""
    but: tuple[str, ...] = ("base",)
    also: tuple[str, ...] = ()
    check: Callable[[Any], bool] = callable

    def modules(self) -> dict[str, str]:
        """Returns name -> module of the plugins in the packages' folders; imports none of them."""
        return {
            module.name: f"{package}.{module.name}"
            for package in (self.package, *self.also)
            for module in pkgutil.iter_modules(importlib.import_module(package).__path__)
            if module.name not in self.but
        }

    def others(self) -> dict[str, EntryPoint]:
        """Returns name -> entry point of other packages' plugins; imports none of them."""
        return {entry.name: entry for entry in installed(self.group)}

    def names(self) -> list[str]:
        """Returns the names of all plugins, sorted."""
        return sorted({*self.modules(), *self.others()})

    def __contains__(self, name: Any) -> bool:
        """Whether there is a plugin of a name; entry points are read only if none is ours."""
        return isinstance(name, str) and (name in self.modules() or name in self.others())

    def find(self, name: Any, where: str = "") -> T:
        """Returns the plugin of a name, from our module or from another package's entry point.

        Ours comes first: an installed package cannot replace it.

        Args:
            name: of the plugin.
            where: the setting that holds the name, for errors.

        Raises:
            ConfigError: there is none; names the nearest and all. Or another package's cannot be
                imported.
        """
        if name in self:
            own = self.modules()
            if name not in own:
                return self.load(self.others()[name])
            module = importlib.import_module(own[name])
            named = self.attribute.format(name=name)
            return getattr(module, named) if named else _only_class(module)
        known = self.names()
        place = f"{where}: " if where else ""
        raise ConfigError(
            f"{place}there is no {self.what} {name!r}{nearest(name, known)}; there are "
            f"{', '.join(known)}."
        )

    def load(self, entry: EntryPoint) -> T:
        """Returns the object that an entry point of another package names.

        Raises:
            ConfigError: that package cannot be imported, or the object is of another kind.
        """
        named = f"the {self.what} {entry.name!r} of {entry.value}"
        try:
            found = entry.load()
        except (Exception, SystemExit) as error:  # another package's code
            raise ConfigError(
                f"{named} cannot be imported: {type(error).__name__}: {error}; mend or uninstall "
                "that package."
            ) from error
        if not self.check(found):
            raise ConfigError(f"{named} is none: {found!r:.80}; mend or uninstall that package.")
        return found

    def line(self, name: str) -> str:
        """Returns the first line of a plugin's module docstring, without importing the module.

        Of another package's plugin it returns "from <module>".
        """
        own = self.modules()
        if name not in own:
            return f"from {self.others()[name].value.split(':')[0]}"
        specification = importlib.util.find_spec(own[name])
        assert specification is not None
        assert specification.origin is not None
        tree = ast.parse(Path(specification.origin).read_text(encoding="utf-8"))
        return (ast.get_docstring(tree) or "").partition("\n")[0].rstrip(".")


def usable(names: Iterable[str], make: Callable[[str], T]) -> dict[str, T]:
    """Returns name -> `make(name)`, without the names for which `make` raises `ConfigError`.

    Each such error is logged once: a broken plugin of another package must not stop the others.
    """
    found = {}
    for name in names:
        try:
            found[name] = make(name)
        except ConfigError as error:
            _warn(str(error))
    return found


@functools.cache
def _warn(text: str) -> None:
    _log.warning("%s", " ".join(text.split()))


def instance(*kinds: type) -> Callable[[Any], bool]:
    """Returns a check for what is an instance of a class."""
    return lambda one: isinstance(one, kinds)


def subclass(*kinds: type) -> Callable[[Any], bool]:
    """Returns a check for what is a subclass of a class."""
    return lambda one: isinstance(one, type) and issubclass(one, kinds)


def installed(group: str) -> tuple[EntryPoint, ...]:
    """Returns the entry points of a group; the installed packages are read once a search path."""
    return _installed(group, tuple(sys.path))


@functools.cache
def _installed(group: str, search_path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    return tuple(importlib.metadata.entry_points(group=group))


def _only_class(module: ModuleType) -> Any:
    """Returns the class of a module that defines one for others."""
    classes = [one for one in vars(module).values() if isinstance(one, type)]
    own = [one for one in classes if one.__module__ == module.__name__]
    (found,) = [one for one in own if not one.__name__.startswith("_")]
    return found
