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
        source: the model folder read; None where there is none, or several.
        target: the folder written, or None.
        workdir: where results go, or None.
        answers: file of answers to score, or None.
        truth: files of ground truth, possibly none.
        baseline: file of answers to compare with, or None.
        sources: the model folders read where there are several.
    """

    config: Any
    source: pathlib.Path | None = None
    target: pathlib.Path | None = None
    workdir: pathlib.Path | None = None
    answers: pathlib.Path | None = None
    truth: tuple[pathlib.Path, ...] = ()
    baseline: pathlib.Path | None = None
    sources: tuple[pathlib.Path, ...] = ()

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
