"""The certificate beside edited weights: which bytes the edited tensors must have.

What an edit reports about itself is the editor's affair; this room reads the hashes alone. They are
of the array bytes in our layout, so that a Hugging Face folder and a converted one of the same
model agree.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from vlm_jax.errors import CheckpointError

CERTIFICATE = "qk_certificate.json"
# A safetensors file under another suffix: loaders that read every *.safetensors of a folder (vLLM
# does) must not take it for weights.
SIDECAR = "qk_edit.sidecar"


@dataclasses.dataclass(frozen=True)
class Certificate:
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


def read_certificate(folder: pathlib.Path) -> Certificate | None:
    """Reads a folder's certificate; None where there is none.

    Raises:
        CheckpointError: it cannot be read, or lacks its hashes.
    """
    path = folder / CERTIFICATE
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        tensors = {name: dict(hashes) for name, hashes in fields["tensors"].items()}
        complete = all({"before", "after"} <= hashes.keys() for hashes in tensors.values())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from None
    if not complete:
        raise _damaged(path, "a tensor lacks its hash")
    return Certificate(path, fields, tensors)


def _damaged(path: pathlib.Path, fault: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged ({fault}): the edited weights cannot be checked. Make the edit again."
    )
