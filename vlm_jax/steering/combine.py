"""Several steerings as one: merged into one intervention, or stacked, one for each example.

Which pairs commute. Parts act in the order of `attention.steering` however they were merged, so
the order of methods in a config means nothing. Applied one after another, head and visual gains
commute with each other, with `Reallocation` and with `Projection`, whose results are proportional
to the weights. `EnergyRescale`, `LogitGains` and `Lens` do not: the energy is that of logits as
they came, the lens reads what gains left. Nor do `Reallocation` and `Projection`: the row's mean is
that of the weights as they were left. All that reads masses, which are triggers and classes, reads
what the parts that act on logits left.

An edit of query weights and gains folded into output weights touch different tensors and commute
bit for bit. An edit and a steering act together whichever was named first: the steering acts on the
edited model's attention. Head sets that were found on the unedited model are then those of another
model.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from vlm_jax.attention.steering import Steering
from vlm_jax.errors import ConfigError


def merge(named: Sequence[tuple[str, Steering]]) -> Steering:
    """Returns one steering that does what several do, in the order of `attention.steering`.

    Args:
        named: what errors call each, and the steering.

    Raises:
        ConfigError: two of them set the same part.
    """
    parts: dict[str, Any] = {}
    owners: dict[str, str] = {}
    for name, steering in named:
        for part, value in steering.parts.items():
            if part in parts:
                raise ConfigError(
                    f"methods {owners[part]!r} and {name!r} both set {part}, so they cannot act "
                    "together; use one of them."
                )
            parts[part], owners[part] = value, name
    return Steering.of(parts)


def stack(steerings: Sequence[Steering], rows: Sequence[int] | None = None) -> Steering:
    """Returns a steering with leaves [B, L, N]: each example its own.

    A steering that lacks a part which another has does nothing there.

    Args:
        steerings: leaves [1, L, N].
        rows: for each example, the index of its steering; by default one example each, in order.

    Raises:
        ConfigError: an index is unknown, a steering is used by no example, or two disagree about a
            switch, which one batch has only once.
    """
    chosen = list(range(len(steerings)) if rows is None else rows)
    if not steerings or not chosen:
        raise ConfigError("a stack needs at least one steering and one example.")
    outside = [row for row in chosen if not 0 <= row < len(steerings)]
    if outside:
        raise ConfigError(f"there are {len(steerings)} steerings, so no example has {outside[0]}.")
    unused = sorted(set(range(len(steerings))) - set(chosen))
    if unused:
        raise ConfigError(f"steering {unused[0]} is used by no example; leave it out.")
    if any(leaf.shape[0] != 1 for one in steerings for leaf in jax.tree.leaves(one)):
        raise ConfigError("only steerings that are the same for all examples can be stacked.")
    names = dict.fromkeys(name for one in steerings for name in one.parts)
    made = Steering.of({name: _stack_part(name, steerings, chosen) for name in names})
    if len(steerings) > 1 and any(part.mixes_examples for part in made.parts.values()):
        raise ConfigError(
            "a trigger that sums over the batch would sum over settings; run them one by one."
        )
    return made


def _stack_part(part: str, steerings: Sequence[Steering], chosen: Sequence[int]) -> Any:
    given = [steering.parts.get(part) for steering in steerings]
    present = [value for value in given if value is not None]
    first = present[0]
    for field, values in _switches(present).items():
        if len(values) > 1:
            listed = " and ".join(map(repr, sorted(values, key=str)))
            raise ConfigError(f"{part}.{field} is {listed} in steerings of one batch; choose one.")
    identity = identity_like(first)
    filled = [identity if value is None else value for value in given]
    return jax.tree.map(lambda *leaves: np.concatenate([leaves[i] for i in chosen]), *filled)


def identity_like(part: Any) -> Any:
    """Returns a part of the same shape and switches that changes nothing."""
    values = part.identity
    return dataclasses.replace(
        part,
        **{
            name: np.full(np.shape(getattr(part, name)), value, np.float32)
            for name, value in values.items()
        },
    )


def _switches(parts: Sequence[Any]) -> dict[str, set]:
    """The values of each static field."""
    names = [field.name for field in dataclasses.fields(parts[0])]
    static = [name for name in names if name not in parts[0].identity]
    return {name: {getattr(part, name) for part in parts} for name in static}
