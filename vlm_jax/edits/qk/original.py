"""An edited folder seen as it was before the edit, whose change its sidecar takes back."""

import os
import pathlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from vlm_jax.checkpoint import (
    CERTIFICATE,
    SIDECAR,
    EditRecord,
    Extra,
    ModelFolder,
    Replacement,
    digest,
    original_card,
    place,
)
from vlm_jax.edits.qk import sidecar_file
from vlm_jax.errors import CheckpointError, UserError

_REVERSIBLE = re.compile(r"decoder/layers/\d+/(wq_dnh|bq_nh)")


class OriginalFolder(ModelFolder):
    """The weights that an edited folder was made from, bit for bit, without the source at hand.

    Every tensor that is read is checked against the certificate, before and after the change is
    taken back.

    Args:
        edited: the folder, with a certificate and a sidecar.

    Raises:
        CheckpointError: it is not edited, or its sidecar is missing.
    """

    def __init__(self, edited: ModelFolder):
        if edited.certificate is None:
            raise CheckpointError(
                f"{edited.path} is not edited (it has no {CERTIFICATE}): there is nothing to take "
                "back."
            )
        if not (edited.path / SIDECAR).exists():
            raise CheckpointError(
                f"{edited.path} has no {SIDECAR}: without it the edit cannot be taken back. Use "
                "the folder that was edited."
            )
        self._edited, self._of = edited, edited.certificate
        for path in self._of.tensors:
            if path not in edited.tensors or not _REVERSIBLE.fullmatch(path):
                raise CheckpointError(
                    f"{self._of.path} certifies {path!r}, which is no query weight or bias of this "
                    "folder; the file is damaged or belongs to another one."
                )
        self.path, self.config, self.tensors = edited.path, edited.config, edited.tensors

    @property
    def edit(self) -> EditRecord:
        """The certificate of the edit that is taken back."""
        return self._of

    @property
    def certificate(self) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """None: seen this way, nothing is edited."""
        return None

    def stream(self, paths: Iterable[str] | None = None) -> Iterator[tuple[str, np.ndarray]]:
        """See `ModelFolder`."""
        for path, array in self._edited.stream(paths):
            yield path, self._taken_back(path, array) if path in self._of.tensors else array

    def load(
        self,
        dtype: np.typing.DTypeLike | None = None,
        shardings: Mapping[str, jax.sharding.Sharding] | None = None,
    ) -> dict[str, jax.Array]:
        """See `ModelFolder`."""
        params = self._edited.load(dtype, shardings)
        for path in self._of.tensors:
            old = params[path]
            array = self.read(path)
            params[path] = place(array, path, old.dtype, old.sharding, self.path)
        return params

    def copy(
        self,
        target: str | os.PathLike[str],
        replace: Mapping[str, Replacement],
        extra_files: Mapping[str, Extra] | None = None,
        *,
        restored: Collection[str] = (),
        recipe: bytes | None = None,
    ) -> None:
        """See `ModelFolder`."""
        back = {path: self._reader(path) for path in self._of.tensors}
        if recipe is not None or not replace:
            # The certificate says which bytes come back, whatever file brings them.
            recipe = self._of.path.read_bytes() + (recipe or b"")
        self._edited.copy(
            target,
            {**back, **replace},
            {
                CERTIFICATE: None,
                SIDECAR: None,
                **original_card(self._edited, CERTIFICATE),
                **(extra_files or {}),
            },
            restored={*restored, *(back.keys() - replace.keys())},
            recipe=recipe,
        )

    def sources(self) -> list[pathlib.Path]:
        """See `ModelFolder`."""
        return self._edited.sources()

    def companions(self) -> dict[str, pathlib.Path]:
        """See `ModelFolder`."""
        files = self._edited.companions()
        for name, content in original_card(self._edited, CERTIFICATE).items():
            if content is None:
                del files[name]
            elif isinstance(content, pathlib.Path):
                files[name] = content
        return {name: path for name, path in files.items() if name not in (CERTIFICATE, SIDECAR)}

    def _reader(self, path: str) -> Any:
        return lambda: self.read(path)

    def _taken_back(self, path: str, array: np.ndarray) -> np.ndarray:
        prefix, name = path.rsplit("/", 1)  # `_REVERSIBLE`
        own = (other for other in ("wq_dnh", "bq_nh") if f"{prefix}/{other}" in self.tensors)
        dtypes = {other: self.tensors[f"{prefix}/{other}"].dtype for other in own}
        try:
            sidecar = sidecar_file.read(self.path, int(prefix.rsplit("/", 1)[1]), dtypes)
            revert = sidecar.revert_weights if name == "wq_dnh" else sidecar.revert_bias
            original = revert(array)
        except UserError:
            raise
        except (ValueError, IndexError, TypeError, OverflowError) as error:
            raise CheckpointError(
                f"{self.path / SIDECAR} is damaged ({type(error).__name__}: {error}); use the "
                "folder that was edited."
            ) from None
        if digest(original) != self._of.tensors[path]["before"]:
            raise CheckpointError(
                f"{self.path / SIDECAR} does not bring {path!r} back to what {CERTIFICATE} says it "
                "was; the file belongs to another edit. Use the folder that was edited."
            )
        return original
