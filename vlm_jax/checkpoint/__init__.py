"""Model folders: read, written and copied with replaced tensors; Orbax underneath; atomic.

`open_folder` opens a folder of any known format as a `ModelFolder`; `save` writes one of our own.
The room knows nothing of other formats: they register themselves as entry points.
"""

from vlm_jax.checkpoint.atomic import new_folder
from vlm_jax.checkpoint.converted import SOURCE_LAYOUT, ConvertedFolder, FolderWriter, save
from vlm_jax.checkpoint.folder import (
    MANIFEST,
    ModelFolder,
    Replacement,
    TensorInfo,
    check_finite,
    companion_files,
    open_folder,
    write_files,
)

__all__ = [
    "MANIFEST",
    "SOURCE_LAYOUT",
    "ConvertedFolder",
    "FolderWriter",
    "ModelFolder",
    "Replacement",
    "TensorInfo",
    "check_finite",
    "companion_files",
    "new_folder",
    "open_folder",
    "save",
    "write_files",
]
