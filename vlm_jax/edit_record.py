"""The certificate beside edited weights: which bytes the edited tensors must have.

What an edit reports about itself is the editor's affair; this room reads the hashes alone. They are
of the array bytes in our layout, so that a Hugging Face folder and a converted one of the same
model agree.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from vlm_jax.errors import CheckpointError
from vlm_jax.foreign import convert, read_json

CERTIFICATE = "qk_certificate.json"
# A safetensors file under another suffix: loaders that read every *.safetensors of a folder (vLLM
# does) must not take it for weights.
SIDECAR = "qk_edit.sidecar"


@dataclasses.dataclass(frozen=True)
class EditRecord:
    """A certificate that was read from a folder.

    Attributes:
        path: its file.
        fields: all that it says.
        tensors: our path -> `before` and `after`, SHA-256 of an edited tensor's bytes.
    """

    path: pathlib.Path
    fields: Mapping[str, Any]
    tensors: Mapping[str, Mapping[str, str]]

    def check(self, path: str, array: np.ndarray) -> None:
        """Refuses a tensor whose bytes are not those that were certified.

        Args:
            path: of the parameter; one that was not edited passes.
            array: in our layout and its stored dtype.

        Raises:
            CheckpointError: they differ.
        """
        hashes = self.tensors.get(path)
        if hashes is not None and digest(array) != hashes["after"]:
            raise CheckpointError(
                f"tensor {path!r} of {self.path.parent} is not the one that {self.path.name} "
                "certifies: the weights were changed after the edit, or belong to another one. "
                "Make the edit again from the original folder; if the change is meant, remove "
                f"{self.path.name}, and {SIDECAR} with it."
            )


def digest(array: np.ndarray) -> str:
    """SHA-256 of an array's bytes, in the order of its dims."""
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return hashlib.sha256(raw.data).hexdigest()


class _Hashes(msgspec.Struct):
    before: str
    after: str


class _Known(msgspec.Struct):
    """What this room reads of a certificate."""

    tensors: dict[str, _Hashes]
    edit: dict[str, Any] = {}


def read_certificate(folder: pathlib.Path) -> EditRecord | None:
    """Reads a folder's certificate; None where there is none.

    Raises:
        CheckpointError: it cannot be read, or lacks its hashes.
    """
    path = folder / CERTIFICATE
    if not os.path.lexists(path):
        return None
    try:
        fields = read_json(path)
        known = convert(fields, _Known, str(path))
    except CheckpointError as error:
        raise CheckpointError(
            f"{path} is damaged ({error}) The edited weights cannot be checked: make the edit "
            "again."
        ) from None
    return EditRecord(path, fields, {n: msgspec.to_builtins(h) for n, h in known.tensors.items()})
