"""Imports packages installed next to `vlm_jax`, whatever else on Python's path has their name.

The folder that a user works in comes before an installation on Python's path: a `convert.py` of
theirs there would be imported, and run, in place of ours.
"""

import importlib
import importlib.util
import pathlib
import sys
from types import ModuleType

_HERE = pathlib.Path(__file__).resolve().parents[1]
_loaded: dict[str, ModuleType] = {}


def folder(name: str) -> pathlib.Path:
    """Returns where a package lies; there may be none."""
    return _HERE / name


def package(name: str) -> ModuleType | None:
    """Imports a package that lies beside `vlm_jax`, or returns None if there is none.

    A module of the user's that has its name keeps it; ours is then reached through this function
    alone.
    """
    if name in _loaded:
        return _loaded[name]
    start = folder(name) / "__init__.py"
    if not start.is_file():
        return None
    module = sys.modules.get(name)
    if module is not None and _is(module, start):
        _loaded[name] = module
        return module
    theirs = {key: sys.modules.pop(key) for key in list(sys.modules) if _within(key, name)}
    try:
        spec = importlib.util.spec_from_file_location(
            name, start, submodule_search_locations=[str(start.parent)]
        )
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        if theirs:  # what it imports when asked, it must find while it has its name
            for public in getattr(module, "__all__", ()):
                getattr(module, public)
    except BaseException:
        _forget(name)
        raise
    finally:
        if theirs:
            _forget(name)
            sys.modules.update(theirs)
    _loaded[name] = module
    return module


def attribute(value: str):
    """Returns what an entry point's value, such as "convert:open_hf", names beside `vlm_jax`.

    Returns:
        The object, or None where its package does not lie there.
    """
    module, _, name = value.partition(":")
    top = package(module.split(".")[0])
    if top is None:
        return None
    found = top if module == top.__name__ else importlib.import_module(module)
    return getattr(found, name)


def _is(module: ModuleType, start: pathlib.Path) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and pathlib.Path(file).resolve() == start


def _within(key: str, name: str) -> bool:
    return key == name or key.startswith(f"{name}.")


def _forget(name: str) -> None:
    for key in [key for key in sys.modules if _within(key, name)]:
        del sys.modules[key]
