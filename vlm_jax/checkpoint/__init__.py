"""Model folders: read, written and copied with replaced tensors; Orbax underneath; atomic.

`open_folder` opens a folder of any known format as a `ModelFolder`; `save` writes one of our own.
The room knows nothing of other formats: they register themselves as entry points.
"""

from vlm_jax.checkpoint.atomic import identity_of, new_folder, resumable_folder
from vlm_jax.checkpoint.card import edited_card, original_card, trained_card
from vlm_jax.checkpoint.converted import SOURCE_LAYOUT, ConvertedFolder, FolderWriter, save
from vlm_jax.checkpoint.folder import (
    MANIFEST,
    Extra,
    ModelFolder,
    Replacement,
    TensorInfo,
    check_finite,
    companion_files,
    not_the_same,
    place,
    with_extra,
    write_files,
)
from vlm_jax.checkpoint.opening import open_folder
from vlm_jax.edit_record import CERTIFICATE, SIDECAR, EditRecord, digest

__all__ = [
    "CERTIFICATE",
    "MANIFEST",
    "SIDECAR",
    "SOURCE_LAYOUT",
    "ConvertedFolder",
    "EditRecord",
    "Extra",
    "FolderWriter",
    "ModelFolder",
    "Replacement",
    "TensorInfo",
    "check_finite",
    "companion_files",
    "digest",
    "edited_card",
    "identity_of",
    "new_folder",
    "not_the_same",
    "open_folder",
    "original_card",
    "place",
    "resumable_folder",
    "save",
    "trained_card",
    "with_extra",
    "write_files",
]
