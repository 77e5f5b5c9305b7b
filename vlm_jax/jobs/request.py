"""What a job is asked."""

import dataclasses
import pathlib
from typing import Any

from vlm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Request:
    """One call of a job.

    Attributes:
        config: a ConfigDict of settings; `configs/base.py` lists them.
        source: the model folder read, or None.
        target: the folder written, or None.
        workdir: where results go, or None.
        answers: file of answers to score, or None.
        truth: files of ground truth, possibly none.
        baseline: file of answers to compare with, or None.
    """

    config: Any
    source: pathlib.Path | None = None
    target: pathlib.Path | None = None
    workdir: pathlib.Path | None = None
    answers: pathlib.Path | None = None
    truth: tuple[pathlib.Path, ...] = ()
    baseline: pathlib.Path | None = None

    def need(self, name: str) -> Any:
        """Returns a path that the job cannot do without.

        Raises:
            UserError: it was not given.
        """
        value = getattr(self, name)
        if not value:
            raise UserError(f"This job needs --{name}.")
        return value
