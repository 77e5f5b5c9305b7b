"""Base classes of weight edits: their settings, and the tensors that they replace in a folder."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vlm_jax.checkpoint import ModelFolder

Replacements = Mapping[str, Callable[[], np.ndarray]]
"""Our path -> function that gives the edited tensor."""


@dataclasses.dataclass(frozen=True)
class MadeEdit:
    """An edit computed for one model folder, ready to be applied or written.

    Attributes:
        replace: what makes each tensor that changes, in its stored dtype or a wider one.
        document: gives the certificate's file once all tensors were made.
        write: writes the edited copy of a folder to a target, as a job does.
    """

    replace: Replacements
    document: Callable[[], bytes]
    write: Callable[[ModelFolder, str | os.PathLike[str]], Any]


@dataclasses.dataclass(frozen=True)
class WeightEdit:
    """One way to edit weights: `EDIT` of its module.

    Attributes:
        line: what it does, in one sentence.
        settings: dataclass of its settings.
        make: of a folder and settings, works the edit out; reads no more than it needs.
        random_control: value of the setting `control` that draws at random what is edited; "" if
            there is none.
    """

    line: str
    settings: type
    make: Callable[[ModelFolder, Any], MadeEdit]
    random_control: str = ""

    def defaults(self) -> dict[str, Any]:
        """Returns its settings and their defaults."""
        return {field.name: field.default for field in dataclasses.fields(self.settings)}
