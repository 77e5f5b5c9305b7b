"""Decoding methods as arguments of compiled programs: numbers are traced, the rest is static."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform

import jax
import numpy as np

from vlm_jax.settings import check_fields

T = TypeVar("T", bound=type)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traced:
    """A method of decoding with its settings, each read by its check (`vlm_jax.settings`)."""

    def __post_init__(self):
        check_fields(self)

    @property
    def name(self) -> str:
        """Its name in configs."""
        return type(self).__module__.rsplit(".", 1)[-1]

    def placed(self, put: Callable[[Any], Any]) -> Any:
        """Returns it with its numbers as arrays on the devices."""
        made = object.__new__(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            traced = field.type in (float, "float")
            object.__setattr__(made, field.name, put(np.float32(value)) if traced else value)
        return made


@dataclass_transform(kw_only_default=True, frozen_default=True)
def traced(cls: T) -> T:
    """Makes a subclass of `Traced` a frozen dataclass that is an argument of programs.

    Fields annotated `float` are traced; others are part of the program, or of the host alone.
    """
    made = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    fields = dataclasses.fields(made)  # type: ignore[arg-type]
    numbers = tuple(field.name for field in fields if field.type in (float, "float"))
    rest = tuple(field.name for field in fields if field.name not in numbers)

    def unflatten(static: tuple, values: tuple) -> Any:
        one = object.__new__(made)
        for name, value in [*zip(numbers, values), *zip(rest, static)]:
            object.__setattr__(one, name, value)
        return one

    jax.tree_util.register_pytree_node(
        made,
        lambda one: (
            tuple(getattr(one, name) for name in numbers),
            tuple(getattr(one, name) for name in rest),
        ),
        unflatten,
    )
    return made
