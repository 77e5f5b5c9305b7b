"""Families by name and by `model_type`, and the `config.json` that the one of its type reads."""

import functools
import importlib
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from vlm_jax.config import VLMConfig
from vlm_jax.errors import ConfigError
from vlm_jax.families.base import Family
from vlm_jax.foreign import read_json
from vlm_jax.plugins import Plugins, instance, usable

FAMILIES = Plugins[Family](
    "vlm_jax.families", "vlm_jax.families", "model family", check=instance(Family)
)


@functools.cache
def _own() -> dict[str, Family]:
    """Returns the families of this package by name; its other modules are what they share."""
    modules = [importlib.import_module(module) for module in FAMILIES.modules().values()]
    found = [module.FAMILY for module in modules if hasattr(module, "FAMILY")]
    return {family.name: family for family in found}


def _others() -> dict[str, Family]:
    """Returns the families that other packages bring, by name; loaded once a search path."""
    return _loaded(tuple(sys.path))


@functools.cache
def _loaded(search_path: tuple[str, ...]) -> dict[str, Family]:
    others = FAMILIES.others()
    found = usable(others, lambda name: FAMILIES.load(others[name]))
    return {family.name: family for family in found.values()}


def families() -> dict[str, str]:
    """Returns the names of all families, each with one line that says what it is."""
    return {name: family.line for name, family in sorted((_others() | _own()).items())}


def find(model_type: Any) -> Family:
    """Returns the family of a `model_type`, or of a name as in `VLMConfig.family`.

    Raises:
        ConfigError: there is none.
    """
    # Of this package first: no package that is merely installed can break or replace them.
    for known in (_own, _others):
        for family in known().values():
            if model_type == family.name or model_type in family.model_types:
                return family
    types = sorted(t for f in (_own() | _others()).values() for t in f.model_types)
    raise ConfigError(f"model_type {model_type!r} is not supported ({', '.join(types)} are).")


def parse_config(root: Mapping[str, Any], where: str = "config.json") -> VLMConfig:
    """Reads a parsed `config.json` in any published layout.

    Args:
        root: the JSON object.
        where: what to call it in errors.

    Raises:
        ConfigError: the model type is unknown, or a field is missing or out of range.
    """
    if not isinstance(root, Mapping):
        raise ConfigError(f"{where} must hold a JSON object, not {type(root).__name__}.")
    try:
        family = find(root.get("model_type"))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return family.read(root, where)


def read_config(folder: str | pathlib.Path) -> VLMConfig:
    """Reads `folder/config.json`.

    Raises:
        ConfigError: the file is missing, is not JSON, or describes something we do not support.
    """
    path = pathlib.Path(folder) / "config.json"
    if not path.exists():
        raise ConfigError(f"{path} does not exist: is {folder} a model folder?")
    return parse_config(read_json(path, error=ConfigError), str(path))
