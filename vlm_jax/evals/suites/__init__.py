"""The benchmarks, one file each: found by the file's name, or in another package by entry point.

[project.entry-points."vlm_jax.benchmarks"]
parity = "my_package.parity:Parity"
"""

import ast
import importlib
import importlib.metadata
import importlib.util
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_jax.errors import ConfigError
from vlm_jax.evals.base import Suite
from vlm_jax.settings import nearest

GROUP = "vlm_jax.benchmarks"
_PACKAGES = ("vlm_jax.evals.suites", "vlm_jax.testbed.suites")


def benchmarks() -> dict[str, str]:
    """Every kind of benchmark there is, with one line on it."""
    found = {name: _first_line(module) for name, module in _modules().items()}
    for entry in importlib.metadata.entry_points(group=GROUP):
        found.setdefault(entry.name, f"from {entry.value.split(':')[0]}")
    return dict(sorted(found.items()))


def find(kind: Any, where: str = "kind") -> type[Suite]:
    """The class of a kind of benchmark.

    Raises:
        ConfigError: there is none of that name; lists those there are.
    """
    modules = _modules()
    if isinstance(kind, str) and kind in modules:
        return importlib.import_module(modules[kind]).SUITE
    for entry in importlib.metadata.entry_points(group=GROUP):
        if entry.name == kind:
            return entry.load()
    known = list(benchmarks())
    raise ConfigError(
        f"{where} must be one of {', '.join(known)}, not {kind!r}{nearest(kind, known)}."
    )


def read_benchmark(name: str, section: Mapping[str, Any], family: str = "llava") -> Suite:
    """Makes the benchmark that a config section describes.

    Args:
        name: of the benchmark in the config.
        section: `kind`, a name that `benchmarks` lists, and that kind's settings.
        family: of the model; sets the size of testbed scenes.

    Raises:
        ConfigError: its kind or one of its settings is unknown, or a value cannot be.
    """
    values = dict(section)
    where = f"config.benchmarks.{name}"
    return find(values.pop("kind", None), f"{where}.kind").read(values, where, family)


def _modules() -> dict[str, str]:
    """Kind -> module, of this package's own."""
    return {
        module.name: f"{package}.{module.name}"
        for package in _PACKAGES
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__)
    }


def _first_line(module: str) -> str:
    """The first line of a module's docstring, without importing it."""
    specification = importlib.util.find_spec(module)
    assert specification is not None
    assert specification.origin is not None
    tree = ast.parse(Path(specification.origin).read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").partition("\n")[0].rstrip(".")
