"""How answers are decoded: one value from a config, or Python keywords, to the compiled loop.

A new setting is a field here and whatever acts on it; configs, the command line, `VLM.answer`, the
identity of answers and the programs take it from the field.
"""

import dataclasses
from typing import Any

import numpy as np

from vlm_jax.errors import ConfigError
from vlm_jax.settings import number, read, setting, whole


def _share(name: str, value: Any) -> float:
    """Returns a number above 0 and at most 1."""
    found = number(name, value, low=0, high=1)
    if not found:
        raise ConfigError(f"{name} must be above 0 and at most 1, not {value!r}.")
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeSettings:
    """Every setting of decoding that is the same for all samples of a call.

    Sampling is in the order of transformers: temperature, then top-k, then top-p of what is left.

    Attributes:
        max_new_tokens: limit of each answer.
        temperature: 0 is greedy.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the smallest set whose probability reaches p; 1 keeps all.
        seed: of the run. Each sample draws from its own stream, so that its answer does not depend
            on the batch it is in.
        batch_size: samples read at once; 0 is 8 on CPU and 32 elsewhere. Answers do not depend on
            it.

    Raises:
        ConfigError: a value is out of range.
    """

    max_new_tokens: int = setting(128, whole, low=1)
    temperature: float = setting(0.0, number, low=0)
    top_k: int = setting(0, whole, low=0)
    top_p: float = setting(1.0, _share)
    seed: int = setting(0, whole, low=0)
    batch_size: int = setting(0, whole, low=0)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            checked = field.metadata["check"](field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, checked)

    @classmethod
    def of_config(cls, config: Any) -> "DecodeSettings":
        """Returns the settings of a job's config, which has them at its top level."""
        names = [field.name for field in dataclasses.fields(cls) if field.name in config]
        return read(cls, {name: config[name] for name in names}, "config")

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Returns each setting's default, for configs to start from."""
        return dataclasses.asdict(cls())

    def replace(self, **changes: Any) -> "DecodeSettings":
        """Returns the settings with some changed.

        Raises:
            ConfigError: one is unknown or out of range.
        """
        return read(DecodeSettings, {**dataclasses.asdict(self), **changes}, "generation")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0

    @property
    def identity(self) -> dict[str, Any]:
        """What makes an answer what it is, as JSON values."""
        named = dataclasses.asdict(self)
        del named["batch_size"]
        return named

    def traced(self) -> dict[str, np.generic]:
        """Returns the numbers that the compiled loop reads, by name; those that act alone.

        Which names are there makes a program, their values do not.
        """
        if self.greedy:
            return {}
        return {
            "temperature": np.float32(self.temperature),
            "top_k": np.int32(self.top_k),
            "top_p": np.float32(self.top_p),
        }
