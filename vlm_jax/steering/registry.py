"""Methods by name: what a config calls them, and the function that makes their steering."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vlm_jax.attention.steering import Steering
from vlm_jax.config import VLMConfig
from vlm_jax.errors import ConfigError
from vlm_jax.settings import nearest, one_of
from vlm_jax.steering.air import adhh, air, air_star
from vlm_jax.steering.combine import merge
from vlm_jax.steering.functional import Selection, functional_heads, policy

METHODS: dict[str, Callable[..., Steering]] = {
    "functional_heads": functional_heads,
    "policy": policy,
    "air": air,
    "air_star": air_star,
    "adhh": adhh,
}
RANDOM_CONTROLS = ("random",)
"""Controls whose seed matters."""


def settings_of(name: str) -> dict[str, Any]:
    """Returns a method's settings and their defaults.

    Raises:
        ConfigError: there is no such method.
    """
    one_of("method", name, METHODS)
    parameters = list(inspect.signature(METHODS[name]).parameters.values())[1:]
    named = {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD}
    if len(named) < len(parameters):
        named |= {field.name: field.default for field in dataclasses.fields(Selection)}
    return named


def build(name: str, config: VLMConfig, **settings: Any) -> Steering:
    """Returns a method's steering for a model, leaves float32 [1, L, N].

    Args:
        name: a key of `METHODS`.
        config: the model.
        settings: those of the method; its function says what they mean.

    Raises:
        ConfigError: the method or a setting is unknown, or a value cannot be.
    """
    known = settings_of(name)
    for key in settings:
        if key not in known:
            raise ConfigError(
                f"method {name!r} has no setting {key!r}; it knows {', '.join(known)}"
                f"{nearest(key, known)}."
            )
    try:
        return METHODS[name](config, **settings)
    except ConfigError as error:
        raise ConfigError(f"method {name!r}: {error}") from None


def compose(methods: Sequence[tuple[str, Mapping[str, Any]]], config: VLMConfig) -> Steering:
    """Returns the steering of several methods, each a name and settings, acting together.

    Raises:
        ConfigError: there is none, one cannot be built, or two set the same part.
    """
    if not methods:
        raise ConfigError(f"name at least one method of {', '.join(METHODS)}.")
    return merge([(name, build(name, config, **settings)) for name, settings in methods])
