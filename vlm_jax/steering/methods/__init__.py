"""Methods that steer attention, one file each.

A file `<name>.py` here has a function `<name>`; another package adds one by an entry point
`<name>` of the group `vlm_jax.methods`. It takes a model's config and settings, and returns a
`Steering` with leaves float32 [1, L, N]. The first sentence of its docstring is its line, its
keywords are its settings; one with a setting `control` can be compared with itself elsewhere
(`steering.controls`).
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args, get_type_hints

from vlm_jax.attention.steering import Steering
from vlm_jax.config import VLMConfig
from vlm_jax.errors import ConfigError
from vlm_jax.plugins import Plugins
from vlm_jax.settings import refuse_unknown
from vlm_jax.steering.classes import Selection
from vlm_jax.steering.combine import merge

METHODS = Plugins[Callable[..., Steering]](__name__, "vlm_jax.methods", "method", "{name}")
RANDOM_CONTROLS = ("random", "shuffled")
"""Controls whose seed matters."""


def settings_of(name: str) -> dict[str, Any]:
    """Returns a method's settings and their defaults.

    Raises:
        ConfigError: there is no such method.
    """
    parameters = list(inspect.signature(METHODS.find(name)).parameters.values())[1:]
    named = {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD}
    if len(named) < len(parameters):
        named |= {field.name: field.default for field in dataclasses.fields(Selection)}
    return named


def random_control(name: str) -> str:
    """Returns the word of a method's setting `control` that draws at random; "" if it has none.

    It is the first such word that the setting's annotation lists, or "random".

    Raises:
        ConfigError: there is no such method.
    """
    if "control" not in settings_of(name):
        return ""
    words = get_args(get_type_hints(METHODS.find(name)).get("control"))
    return next((word for word in words if word in RANDOM_CONTROLS), "random")


def build(name: str, config: VLMConfig, **settings: Any) -> Steering:
    """Returns a method's steering for a model, leaves float32 [1, L, N].

    Args:
        name: of the method.
        config: the model.
        settings: those of the method; its function says what they mean.

    Raises:
        ConfigError: the method or a setting is unknown, or a value cannot be.
    """
    refuse_unknown(settings, settings_of(name), f"method {name!r}")
    try:
        return METHODS.find(name)(config, **settings)
    except ConfigError as error:
        raise ConfigError(f"method {name!r}: {error}") from None


def compose(methods: Sequence[tuple[str, Mapping[str, Any]]], config: VLMConfig) -> Steering:
    """Returns the steering of several methods, each a name and settings, acting together.

    Raises:
        ConfigError: there is none, one cannot be built, or two set the same part.
    """
    if not methods:
        raise ConfigError(f"name at least one method of {', '.join(METHODS.names())}.")
    return merge([(name, build(name, config, **settings)) for name, settings in methods])
