"""Sets of heads of one model: published, listed by hand, or found by `--job=identify` (JSON)."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import msgspec
import numpy as np

from vlm_jax.config import VLMConfig
from vlm_jax.errors import ConfigError
from vlm_jax.foreign import read_json
from vlm_jax.settings import listed, whole

_Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]
Head = tuple[int, int]
"""(layer, head), both from 0."""


@dataclasses.dataclass(frozen=True)
class HeadSets:
    """Heads that methods and their controls act on.

    Attributes:
        name: what errors call it.
        shape: (layers, query heads) of the model that it is of.
        sensitive: heads that favour hallucinated words, the strongest first.
        insensitive: the other end of that ranking, the most extreme first; possibly none.
        inert: heads whose effect is smallest in size, the smallest first; possibly none.
        count: how many of them a method takes that does not say.
        perception, reasoning: heads with much and with little attention on images, by majority over
            a calibration set; possibly none.
        perception_ln, reasoning_ln: float [L, N], the share of decode rows in which a head was
            classified so, over the calibration set; None where it was not measured.
        system_mass_ln: float [L, N], each head's mean mass on tokens before the first image, BOS
            among them; None where it was not measured.
    """

    name: str
    shape: tuple[int, int]
    sensitive: tuple[Head, ...] = ()
    insensitive: tuple[Head, ...] = ()
    inert: tuple[Head, ...] = ()
    count: int | None = None
    perception: tuple[Head, ...] = ()
    reasoning: tuple[Head, ...] = ()
    perception_ln: np.ndarray | None = None
    reasoning_ln: np.ndarray | None = None
    system_mass_ln: np.ndarray | None = None

    def document(self) -> dict[str, Any]:
        """The sets as JSON values; `read_head_sets` reads them back."""
        plain = lambda value: None if value is None else np.asarray(value).round(6).tolist()
        return {
            "shape": list(self.shape),
            "count": self.count,
            **{name: [list(head) for head in getattr(self, name)] for name in _LISTS},
            **{name: plain(getattr(self, name)) for name in _ARRAYS},
        }


_LISTS = ("sensitive", "insensitive", "inert", "perception", "reasoning")
_ARRAYS = ("perception_ln", "reasoning_ln", "system_mass_ln")


def shape_of(config: VLMConfig) -> tuple[int, int]:
    """Layers and query heads of a model's decoder."""
    return config.decoder.num_layers, config.decoder.num_heads


def check_heads(where: str, heads: Iterable[Any], shape: tuple[int, int]) -> tuple[Head, ...]:
    """Returns (layer, head) pairs of a model of this shape.

    Raises:
        ConfigError: one is no pair, is out of range, or comes twice.
    """
    layers, width = shape
    found: dict[Head, None] = {}
    if isinstance(heads, str) or not isinstance(heads, Iterable):
        raise ConfigError(f"{where} must list (layer, head) pairs, not {heads!r}.")
    for layer, index in (_pair(where, head) for head in heads):
        if not (0 <= layer < layers and 0 <= index < width):
            raise ConfigError(
                f"{where}: there is no head ({layer}, {index}); the model has layers 0 to "
                f"{layers - 1} with heads 0 to {width - 1}."
            )
        if (layer, index) in found:
            raise ConfigError(f"{where}: head ({layer}, {index}) is listed twice.")
        found[layer, index] = None
    return tuple(found)


def _pair(where: str, head: Any) -> Head:
    """Returns a (layer, head) pair."""
    try:
        layer, index = listed(where, head, each=whole, least=2, most=2)
    except ConfigError:
        raise ConfigError(
            f"{where}: a head is a pair (layer, head) of ints, not {head!r}."
        ) from None
    return layer, index


class _Sets(msgspec.Struct):
    """What `HeadSets.to_json` gives; heads are checked against the shape."""

    shape: tuple[_Size, _Size]
    count: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)] | None = None
    sensitive: list[list[int]] = []
    insensitive: list[list[int]] = []
    inert: list[list[int]] = []
    perception: list[list[int]] = []
    reasoning: list[list[int]] = []
    perception_ln: list[list[float]] | None = None
    reasoning_ln: list[list[float]] | None = None
    system_mass_ln: list[list[float]] | None = None


class _Document(msgspec.Struct):
    sets: _Sets


def read_head_sets(path: str | os.PathLike) -> HeadSets:
    """Reads the JSON that `--job=identify` writes.

    Raises:
        ConfigError: the file is no such JSON.
    """
    where = str(path)
    try:
        sets = read_json(pathlib.Path(path), _Document, error=ConfigError).sets
    except ConfigError as error:
        raise ConfigError(
            f"{where} is no file of head sets ({error}) Make one with --job=identify."
        ) from None
    lists = {
        name: check_heads(f"{where}: {name}", getattr(sets, name), sets.shape) for name in _LISTS
    }
    arrays = {}
    for name in _ARRAYS:
        rows = getattr(sets, name) or None
        if rows is None:
            continue
        if len(rows) != sets.shape[0] or {len(row) for row in rows} != {sets.shape[1]}:
            raise ConfigError(f"{where}: {name} is not of its shape, {list(sets.shape)}.")
        arrays[name] = np.asarray(rows, np.float64)
    return dataclasses.replace(HeadSets(where, sets.shape, count=sets.count), **lists, **arrays)


def mask_of(heads: Iterable[Head], shape: tuple[int, int]) -> np.ndarray:
    """Returns a mask, bool [L, N], that is True at the heads.

        mask_of([(0, 1)], (2, 3))      # [[False, True, False], [False, False, False]]

    Args:
        heads: (layer, head) pairs, both from 0, within `shape`.
        shape: (layers, query heads).
    """
    mask_ln = np.zeros(shape, bool)
    for layer, head in heads:
        mask_ln[layer, head] = True
    return mask_ln


def per_layer(heads: Iterable[Head]) -> Mapping[int, int]:
    """Returns how many of the heads each layer has; a layer without any has no entry.

    per_layer([(2, 0), (2, 5), (7, 1)])      # {2: 2, 7: 1}
    """
    counts: dict[int, int] = {}
    for layer, _ in heads:
        counts[layer] = counts.get(layer, 0) + 1
    return counts
