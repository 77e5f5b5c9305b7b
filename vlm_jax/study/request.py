"""The arguments of a job."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from vlm_jax.errors import ConfigError, UserError
from vlm_jax.evals.exports import layouts
from vlm_jax.settings import number, one_of, read, setting, whole

DTYPES = ("", "float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Top-level settings of a config that every job reads; `configs/base.py` explains them."""

    seed: int = setting(0, whole, low=0, high=2**32 - 1)
    dtype: str = setting("", one_of, known=DTYPES)
    prefix_cache_mb: float = setting(1024, number, low=0)
    max_failures: float = setting(0.01, number, low=0)
    control_draws: int = setting(19, whole, low=1, high=100_000)
    bootstrap_draws: int = setting(2000, whole, low=1, high=100_000)
    layouts: tuple[str, ...] = setting((), layouts)


@dataclasses.dataclass(frozen=True)
class Request:
    """The arguments of one call of a job.

    Attributes:
        config: a ConfigDict of settings; `configs/base.py` lists them.
        source: the model folder read; None where there is none, or several.
        target: the folder written, or None.
        workdir: where results go, or None.
        answers: file of answers to score, or None.
        truth: files of ground truth, possibly none.
        baseline: file of answers to compare with, or None.
        sources: the model folders read where there are several.
        changed: dotted names of the settings that were given on the command line.

    Raises:
        ConfigError: a setting of `RunSettings` cannot be; said before any work.
    """

    config: Any
    source: pathlib.Path | None = None
    target: pathlib.Path | None = None
    workdir: pathlib.Path | None = None
    answers: pathlib.Path | None = None
    truth: tuple[pathlib.Path, ...] = ()
    baseline: pathlib.Path | None = None
    sources: tuple[pathlib.Path, ...] = ()
    changed: tuple[str, ...] = ()

    def __post_init__(self):
        named = [field.name for field in dataclasses.fields(RunSettings)]
        given = {name: self.config[name] for name in named if name in (self.config or ())}
        read(RunSettings, given, "config")

    @property
    def exports(self) -> tuple[str, ...]:
        """Layouts of other harnesses in which answers are written too."""
        return layouts("config.layouts", self.config.get("layouts", ()))

    def need(self, name: str) -> Any:
        """Returns a path that the job cannot do without.

        Raises:
            UserError: it was not given.
        """
        value = getattr(self, name)
        if name == "source" and self.sources:
            raise UserError(f"This job reads one model; --source names {len(self.sources)}.")
        if not value:
            raise UserError(f"This job needs --{name}.")
        return value

    def refuse_edit(self, why: str, used: Sequence[str] = ()) -> None:
        """Refuses a setting of `config.edit` on the command line that nothing would read.

        Args:
            why: nothing reads it.
            used: settings of `config.edit` that are read nevertheless.

        Raises:
            ConfigError: naming the first such setting.
        """
        for name in self.changed:
            section, _, setting = name.partition(".")
            if section == "edit" and setting not in used:
                raise ConfigError(f"config.{name} changes nothing: {why}.")


def several(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns the paths of a flag that names one, or several separated by commas."""
    return [path] if path.exists() else [pathlib.Path(one) for one in str(path).split(",")]
