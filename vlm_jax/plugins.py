"""One file adds one thing: what lies in a package's folder, or comes by entry point, by name."""

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
from typing import Any, TypeVar

from vlm_jax.errors import ConfigError
from vlm_jax.settings import nearest

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Plugins:
    """Things of one kind, of this package and of others.

    Attributes:
        package: each file `<name>.py`, or folder, of it is the thing of that name.
        group: of the entry points by which other packages add things of this kind.
        what: a thing of this kind is called, in errors.
        but: names of the package's files that are none.
        also: further packages of ours whose files are such things.
        check: whether something is of this kind; what another package names is held against it.
    """

    package: str
    group: str
    what: str
    but: tuple[str, ...] = ("base",)
    also: tuple[str, ...] = ()
    check: Callable[[Any], bool] = callable

    def modules(self) -> dict[str, str]:
        """Returns the modules that lie in the packages' folders, by name; imports none of them."""
        return {
            module.name: f"{package}.{module.name}"
            for package in (self.package, *self.also)
            for module in pkgutil.iter_modules(importlib.import_module(package).__path__)
            if module.name not in self.but
        }

    def others(self) -> dict[str, EntryPoint]:
        """Returns what other packages add, by name; nothing of it is imported."""
        return {entry.name: entry for entry in installed(self.group)}

    def names(self) -> list[str]:
        """Returns the names of all there is."""
        return sorted({*self.modules(), *self.others()})

    def __contains__(self, name: Any) -> bool:
        """Whether there is a thing of a name; other packages are asked only where none is ours."""
        return isinstance(name, str) and (name in self.modules() or name in self.others())

    def find(self, name: Any, attribute: str | None = None, where: str = "") -> Any:
        """Returns what the folder's module of a name has, or an entry point names.

        The folder's own comes first: no package that is merely installed replaces it.

        Args:
            name: of the thing.
            attribute: of the module; None: the only class with a public name that it defines.
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
            return getattr(module, attribute) if attribute else _only_class(module)
        known = self.names()
        place = f"{where}: " if where else ""
        raise ConfigError(
            f"{place}there is no {self.what} {name!r}{nearest(name, known)}; there are "
            f"{', '.join(known)}."
        )

    def load(self, entry: EntryPoint) -> Any:
        """Returns what an entry point of another package names.

        Raises:
            ConfigError: that package cannot be imported, or has no such thing.
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
        """Returns the first line of the docstring of a thing's file, without importing it.

        Of another package's it says which package that is.
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
    """Returns what `make` gives for each name; what another package breaks is left out.

    The log says once what that is: a package that is merely installed hurts nothing else.
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


def _only_class(module: ModuleType) -> type:
    """Returns the class of a module that defines one for others."""
    classes = [one for one in vars(module).values() if isinstance(one, type)]
    own = [one for one in classes if one.__module__ == module.__name__]
    (found,) = [one for one in own if not one.__name__.startswith("_")]
    return found
