"""Whether steering of attention and a method of decoding can act together."""

from vlm_jax.attention.steering import Steering
from vlm_jax.decoding.rerankers import HostMethod
from vlm_jax.decoding.search import Search
from vlm_jax.decoding.strategies import Strategy
from vlm_jax.errors import ConfigError


def check_together(
    steering: Steering | None, name: str, method: Strategy | Search | HostMethod
) -> None:
    """Refuses a method of decoding that reads rows as a part of the steering cannot have them.

    Args:
        steering: what is done to attention beside it.
        name: of the method, for errors.
        method: reads one row of a sample at a time, or several, and may take tokens back.

    Raises:
        ConfigError: it takes tokens back, or reads several rows of a sample, where a part says why
            that cannot be.
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
    """How many rows of a sample are read at once; None where the host says."""
    if isinstance(method, Search):
        return method.acting.rows
    return method.width if isinstance(method, Strategy) else None
