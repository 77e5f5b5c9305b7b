"""In which order a device keeps the dims of a parameter."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.experimental.layout import Format, Layout
from jax.sharding import NamedSharding, Sharding

HEADS_FIRST = Layout(major_to_minor=(1, 0, 2))
"""Heads, then what is summed over, then what a head has."""

_READ_BY_HEADS = ("dnh", "dkh")


def layout_of(path: str, sharding: Sharding) -> Layout | None:
    """Returns the order that programs want a parameter in; None: the one that is usual.

    TPUs keep the two last dims of an array in tiles of 8 x 128. Of weights [D, N, H] these are N
    and H, but a product over D wants D and H: XLA copies all weights of queries, keys and values
    in front of the decode loop, at each call. (Where 8 does not divide the heads of a chip it
    chooses this order by itself.)

    Args:
        path: spells the dims, as in "decoder/layers/0/wq_dnh".
        sharding: says which devices these are.
    """
    on_tpu = next(iter(sharding.device_set)).platform == "tpu"
    return HEADS_FIRST if on_tpu and path.rsplit("_", 1)[-1] in _READ_BY_HEADS else None


def param_formats(
    shardings: Mapping[str, NamedSharding],
    layout: Callable[[str, Sharding], Layout | None] = layout_of,
) -> dict[str, Sharding | Format]:
    """Returns where each parameter goes, and in which order where that is not the usual one."""
    found = {path: (layout(path, sharding), sharding) for path, sharding in shardings.items()}
    return {path: Format(*to) if to[0] else to[1] for path, to in found.items()}


def lay_out(
    params: dict[str, jax.Array],
    layout: Callable[[str, Sharding], Layout | None] = layout_of,
) -> None:
    """Brings parameters on their devices into the order that programs want, one at a time.

    Args:
        params: are replaced.
        layout: says which.
    """
    for path, array in params.items():
        wanted, laid = layout(path, array.sharding), _order(array)
        if wanted is not None and laid != wanted.major_to_minor:
            to: Any = Format(wanted, array.sharding)
            params[path] = jax.jit(lambda same: same, out_shardings=to)(array)


def _order(array: Any) -> tuple[int, ...]:
    return array.format.layout.major_to_minor
