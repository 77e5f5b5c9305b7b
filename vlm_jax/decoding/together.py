"""Whether steering of attention and a method of decoding can act together."""

from vlm_jax.attention.steering import Steering
from vlm_jax.decoding.rerankers import HostMethod
from vlm_jax.decoding.search import Search
from vlm_jax.decoding.strategies import Strategy
from vlm_jax.errors import ConfigError


def check_together(
    steering: Steering | None, name: str, method: Strategy | Search | HostMethod
) -> None:
    """Refuses a decoding method that a part of the steering cannot act beside.

    A part may rule out withdrawn tokens (`Part.keeps_rows`) or several rows a sample
    (`Part.mixes_examples`).

    Args:
        steering: of attention, None for none.
        name: of the method, for errors.
        method: the method.

    Raises:
        ConfigError: with the part's reason.
    """
    for part in () if steering is None else steering.parts.values():
        if _withdraws(method) and part.keeps_rows is not None:
            raise ConfigError(f"method {name!r} takes tokens back, but {part.keeps_rows}.")
        if _rows(method) != 1 and part.mixes_examples is not None:
            raise ConfigError(
                f"method {name!r} reads several rows of a sample, but {part.mixes_examples}."
            )


def _withdraws(method: Strategy | Search | HostMethod) -> bool:
    return isinstance(method, Search) and method.acting.withdraws


def _rows(method: Strategy | Search | HostMethod) -> int | None:
    """Returns how many rows of a sample are read at once; None where the host decides."""
    if isinstance(method, Search):
        return method.acting.rows
    return method.width if isinstance(method, Strategy) else None
