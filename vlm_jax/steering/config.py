"""Methods as a config writes them: a name with settings, or a list of such that act together.

{"method": "air", "heads": "llava-1.5-7b", "text_threshold": 0.3}
[{"method": "functional_heads"}, {"method": "adhh", "heads": "heads.json"}]
"""

from collections.abc import Mapping, Sequence
from typing import Any

from vlm_jax.attention.steering import Steering
from vlm_jax.config import VLMConfig
from vlm_jax.errors import ConfigError
from vlm_jax.steering.methods import METHODS, RANDOM_CONTROLS, compose
from vlm_jax.steering.validate import validate

Section = Mapping[str, Any] | Sequence[Mapping[str, Any]] | str
"""What a config says: one method, several, or the name of one with its defaults."""


def read_method(section: Section, config: VLMConfig) -> Steering:
    """Returns the steering that a config section describes, leaves float32 [1, L, N].

    Args:
        section: one mapping with `method` and its settings, a list of such, or a method's name.
        config: of the model that is steered.

    Raises:
        ConfigError: a method or setting is unknown, a value cannot be, two methods overlap, or
            the steering changes no head.
    """
    steering = compose([_named(entry) for entry in entries(section)], config)
    validate(steering, config.decoder)
    return steering


def is_random(section: Section) -> bool:
    """Whether a section is a control whose seed matters, so that several draws say more."""
    return any(entry.get("control") in RANDOM_CONTROLS for entry in entries(section))


def with_seed(section: Section, seed: int) -> list[dict[str, Any]]:
    """Returns the section with the seed of every random control set."""
    return [
        {**entry, "seed": seed} if entry.get("control") in RANDOM_CONTROLS else entry
        for entry in entries(section)
    ]


def without_control(section: Section) -> list[dict[str, Any]]:
    """Returns the section that a control stands beside: no controls, no seeds."""
    drop = ("control", "seed")
    return [{k: v for k, v in entry.items() if k not in drop} for entry in entries(section)]


def entries(section: Section) -> list[dict[str, Any]]:
    """Returns the entries of a section, each a mapping with at least one key or none.

    Raises:
        ConfigError: one is neither a mapping nor a name.
    """
    if isinstance(section, str):
        return [{"method": section}]
    listed: Any = [section] if hasattr(section, "items") else section
    if not isinstance(listed, list | tuple):
        listed = [listed]
    for entry in listed:
        if not (isinstance(entry, str) or hasattr(entry, "items")):
            raise ConfigError(
                f"a method is a mapping such as {{'method': 'air'}}, not {entry!r}; there are "
                f"{', '.join(METHODS.names())}."
            )
    return [{"method": one} if isinstance(one, str) else dict(one.items()) for one in listed]


def _named(entry: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    settings = {key: _plain(value) for key, value in entry.items() if key != "method"}
    if "method" not in entry:
        raise ConfigError(
            f"{dict(entry)!r} names no method; there are {', '.join(METHODS.names())}."
        )
    return entry["method"], settings


def _plain(value: Any) -> Any:
    """A config's own mapping types as plain values."""
    return value.to_dict() if hasattr(value, "to_dict") else value
