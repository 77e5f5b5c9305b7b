"""The benchmarks, one file each: found by the file's name, or in another package by entry point.

[project.entry-points."vlm_jax.benchmarks"]
parity = "my_package.parity:Parity"
"""

from collections.abc import Mapping
from typing import Any

from vlm_jax.errors import ConfigError
from vlm_jax.evals.base import Suite
from vlm_jax.plugins import Plugins, subclass, usable

SUITES = Plugins[type[Suite]](
    __name__,
    "vlm_jax.benchmarks",
    "kind of benchmark",
    "SUITE",
    also=("vlm_jax.testbed.suites",),
    check=subclass(Suite),
)


def benchmarks() -> dict[str, str]:
    """Returns every kind of benchmark there is, with one line on it."""
    return {name: SUITES.line(name) for name in SUITES.names()}


def kinds() -> dict[str, type[Suite]]:
    """Returns the class of every kind of benchmark; what another package breaks is left out."""
    return usable(SUITES.names(), SUITES.find)


def read_benchmarks(sections: Mapping[str, Any], family: str) -> dict[str, Suite]:
    """Returns the benchmarks of a config by name.

    Raises:
        ConfigError: there is none, or one is misnamed or misdescribed.
    """
    if not sections:
        raise ConfigError(
            "config.benchmarks is empty; use --config=configs/testbed.py, configs/chair.py or "
            "configs/pope.py."
        )
    return {name: read_benchmark(name, section, family) for name, section in sections.items()}


def read_benchmark(name: str, section: Mapping[str, Any], family: str = "llava") -> Suite:
    """Returns the benchmark that a config section describes.

    Args:
        name: of the benchmark in the config.
        section: `kind`, a name that `benchmarks` lists, and that kind's settings.
        family: of the model; sets the size of testbed scenes.

    Raises:
        ConfigError: its kind or one of its settings is unknown, or a value cannot be.
    """
    where = f"config.benchmarks.{name}"
    if not isinstance(section, Mapping) and not hasattr(section, "items"):
        raise ConfigError(f"{where} is a section: give {where}.kind=<name>, not {section!r}.")
    values = dict(section)
    kind = SUITES.find(values.pop("kind", None), f"{where}.kind")
    return kind.read(values, where, family)
