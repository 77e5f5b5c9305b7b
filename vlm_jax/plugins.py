"""One file adds one thing: what lies in a package's folder, or comes by entry point, by name."""

import dataclasses
import importlib
import importlib.metadata
import pkgutil
from types import ModuleType
from typing import Any

from vlm_jax.errors import ConfigError
from vlm_jax.settings import nearest


@dataclasses.dataclass(frozen=True)
class Plugins:
    """Things of one kind, of this package and of others.

    Attributes:
        package: each file `<name>.py`, or folder, of it is the thing of that name.
        group: of the entry points by which other packages add things of this kind.
        what: a thing of this kind is called, in errors.
        but: names of the package's files that are none.
    """

    package: str
    group: str
    what: str
    but: tuple[str, ...] = ("base",)

    def own(self) -> list[str]:
        """Returns the names of what lies in the package's folder; imports none of it."""
        modules = pkgutil.iter_modules(importlib.import_module(self.package).__path__)
        return sorted(module.name for module in modules if module.name not in self.but)

    def names(self) -> list[str]:
        """Returns the names of all there is."""
        foreign = [entry.name for entry in importlib.metadata.entry_points(group=self.group)]
        return sorted({*self.own(), *foreign})

    def find(self, name: Any, attribute: str | None = None) -> Any:
        """Returns what the folder's module of a name has, or an entry point names.

        The folder's own comes first.

        Args:
            name: of the thing.
            attribute: of the module; None: the only class with a public name that it defines.

        Raises:
            ConfigError: there is none; names the nearest and all.
        """
        if name in self.own():
            module = importlib.import_module(f"{self.package}.{name}")
            return getattr(module, attribute) if attribute else _only_class(module)
        for entry in importlib.metadata.entry_points(group=self.group):
            if entry.name == name:
                return entry.load()
        known = self.names()
        raise ConfigError(
            f"there is no {self.what} {name!r}{nearest(name, known)}; there are {', '.join(known)}."
        )


def _only_class(module: ModuleType) -> type:
    """Returns the class of a module that defines one for others."""
    classes = [one for one in vars(module).values() if isinstance(one, type)]
    own = [one for one in classes if one.__module__ == module.__name__]
    (found,) = [one for one in own if not one.__name__.startswith("_")]
    return found
