"""Opens a model folder, whatever format it is of."""

import os
import pathlib

from vlm_jax.beside import attribute
from vlm_jax.checkpoint.converted import ConvertedFolder
from vlm_jax.checkpoint.folder import MANIFEST, ModelFolder
from vlm_jax.errors import CheckpointError
from vlm_jax.plugins import installed

_FORMATS = "vlm_jax.formats"  # entry-point group: path -> ModelFolder, or None if it is not theirs


def open_folder(path: str | os.PathLike[str]) -> ModelFolder:
    """Opens a converted folder, or one of a format that an installed package knows.

    Raises:
        CheckpointError: there is no such folder, or no format recognises it.
    """
    folder = pathlib.Path(path)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder.")
    if (folder / MANIFEST).exists():
        return ConvertedFolder(folder)
    formats = installed(_FORMATS)
    for entry in formats:
        own = attribute(entry.value)  # not what else of its name lies on the path
        opened = (entry.load() if own is None else own)(folder)
        if opened is not None:
            return opened
    known = ", ".join(sorted({entry.name for entry in formats})) or "none: is vlm_jax installed?"
    raise CheckpointError(
        f"{folder} is no model folder: it has neither {MANIFEST} (a converted model) nor a format "
        f"that is known here ({known}). A Hugging Face folder has config.json and *.safetensors."
    )
