"""Head sets by what a setting calls them: published, of a file, or listed."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from vlm_jax.config import VLMConfig
from vlm_jax.errors import ConfigError
from vlm_jax.settings import nearest
from vlm_jax.steering.heads import HeadSets, check_heads, read_head_sets, shape_of
from vlm_jax.steering.presets import HEAD_SETS

HEADS = "heads.json"
IDENTIFIED = "identified"


def identified(settings: Mapping[str, Any], folder: pathlib.Path | None) -> dict[str, Any]:
    """Returns settings with the file that heads="identified" stands for: the folder's heads.json.

    Raises:
        ConfigError: there is none.
    """
    if settings.get("heads") != IDENTIFIED:
        return dict(settings)
    path = None if folder is None else folder / HEADS
    if path is None or not path.is_file():
        where = "a model without a folder has none" if path is None else f"{path} does not exist"
        raise ConfigError(
            f"heads={IDENTIFIED!r} stands for the model folder's {HEADS}, but {where}; make one "
            "with --job=identify and give its path as heads."
        )
    return {**settings, "heads": str(path)}


def resolve_heads(heads: Any, config: VLMConfig) -> HeadSets:
    """Returns the head sets that a setting names.

    Args:
        heads: a published set (`presets.HEAD_SETS`), the path of a JSON file that `--job=identify`
            wrote, "all", or (layer, head) pairs.
        config: of the model that they are for.

    Raises:
        ConfigError: nothing is named so, or it is of a model of another shape.
    """
    shape = shape_of(config)
    if isinstance(heads, HeadSets):
        sets = heads
    elif isinstance(heads, str | os.PathLike):
        if heads == "all":
            return HeadSets("all", shape, tuple(np.ndindex(*shape)))
        sets = HEAD_SETS.get(str(heads)) or _read_named(heads)
    else:
        if not heads:
            raise ConfigError(
                f"heads says no head; name {IDENTIFIED!r} (the model folder's {HEADS}), a file of "
                f"--job=identify, 'all', (layer, head) pairs, or a published set "
                f"({', '.join(HEAD_SETS)})."
            )
        return HeadSets("heads", shape, check_heads("heads", heads, shape))
    if sets.shape != shape:
        raise ConfigError(
            f"heads {sets.name!r} are of a model with {sets.shape[0]} layers of {sets.shape[1]} "
            f"heads, but this one has {shape[0]} of {shape[1]}; find its own with --job=identify."
        )
    return sets


def _read_named(heads: str | os.PathLike) -> HeadSets:

    if not pathlib.Path(heads).is_file():
        raise ConfigError(
            f"heads {str(heads)!r} is neither a published set ({', '.join(HEAD_SETS)}) nor a file"
            f"{nearest(heads, HEAD_SETS)}."
        )
    return read_head_sets(heads)
