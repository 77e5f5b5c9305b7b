"""The types of a `config.json`'s fields, with their ranges, and how they are read."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec

from vlm_jax.config import ACTIVATIONS
from vlm_jax.errors import ConfigError
from vlm_jax.foreign import convert

T = TypeVar("T")

Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
"""A width, a length or a number of heads."""
Depth = Annotated[int, msgspec.Meta(ge=1, le=1024)]
"""A number of layers."""
Index = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
"""A token id or a layer."""
Layer = Annotated[int, msgspec.Meta(ge=-1024, le=1024)]
"""A layer, counted from the end if negative."""
Epsilon = Annotated[float, msgspec.Meta(gt=0, le=1)]
Theta = Annotated[float, msgspec.Meta(gt=0, le=1e12)]
Factor = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
Ids = Index | list[Index] | None
Pair = Count | Annotated[list[Count], msgspec.Meta(min_length=1)]
"""A size, or the same size along each axis."""
Object = dict[str, Any]


def read(values: Mapping[str, Any], kind: type[T], where: str) -> T:
    """Returns a JSON object as a struct.

    Fields that `kind` does not name are left alone: folders carry many that no architecture needs.

    Raises:
        ConfigError: naming file, field and what it may be.
    """
    # JSON has one kind of number: 32.0 layers are 32.
    return convert({k: _whole(v) for k, v in values.items()}, kind, where, ConfigError)


def _whole(value: Any) -> Any:
    if isinstance(value, list):
        return [_whole(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def activation(name: str, field: str, where: str) -> str:
    """Returns the name of an activation, or raises `ConfigError` with the known ones."""
    if name not in ACTIVATIONS:
        raise ConfigError(
            f"{where}: {field} {name!r} is not supported ({', '.join(ACTIVATIONS)} are)."
        )
    return name


def ids(value: Ids) -> tuple[int, ...]:
    """Returns token ids as a tuple."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (value,)


def square(value: Pair, field: str, where: str) -> int:
    """Returns the side of a size that is the same along each axis.

    Raises:
        ConfigError: it is not the same.
    """
    sides = value if isinstance(value, list) else [value]
    if len(set(sides)) != 1:
        raise ConfigError(f"{where}: {field} {value} must be square.")
    return sides[0]


def divide(width: int, heads: int, where: str) -> int:
    """Returns the width of a head; raises `ConfigError` where heads do not divide the width."""
    if width % heads:
        raise ConfigError(
            f"{where}: hidden_size {width} is not a multiple of num_attention_heads {heads}."
        )
    return width // heads


def one_of(value: Any, choices: tuple, field: str, where: str) -> Any:
    """Returns a value, or raises `ConfigError` with the choices."""
    if value not in choices:
        names = " or ".join(map(repr, choices))
        raise ConfigError(f"{where}: {field} must be {names}, not {value!r}.")
    return value
