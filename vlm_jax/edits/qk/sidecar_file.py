"""The sidecar file of an edited folder: each layer's change in low-rank form."""

import os
import pathlib
from collections.abc import Mapping

import numpy as np
import safetensors
import safetensors.numpy

from vlm_jax.checkpoint import SIDECAR
from vlm_jax.edits.qk.sidecar import Sidecar
from vlm_jax.errors import CheckpointError
from vlm_jax.foreign import open_regular

_VERSION = "1"
# Stored as bits: the safetensors package cannot give bfloat16 back to NumPy.
_IN_WEIGHTS_DTYPE = "undo_value"
_IN_BIAS_DTYPE = "undo_bias_eh"


def to_bytes(sidecars: Mapping[int, Sidecar]) -> bytes:
    """The file's content, of sidecars by layer."""
    arrays = {}
    for layer, sidecar in sorted(sidecars.items()):
        for name, array in sidecar.arrays().items():
            if name in (_IN_WEIGHTS_DTYPE, _IN_BIAS_DTYPE):
                array = array.view(f"u{array.dtype.itemsize}")
            arrays[f"layers/{layer}/{name}"] = np.array(array, order="C")  # 0-d stays 0-d
    return safetensors.numpy.save(arrays, {"format_version": _VERSION})


def read(folder: pathlib.Path, layer: int, dtypes: Mapping[str, np.dtype]) -> Sidecar:
    """One layer's sidecar.

    Args:
        folder: the edited folder.
        layer: its index.
        dtypes: stored dtypes of `wq_dnh` and, where there is one, `bq_nh`.

    Raises:
        CheckpointError: the file is missing or damaged, or knows no such layer.
        EditError: it was written by another version.
    """
    path = folder / SIDECAR
    prefix = f"layers/{layer}/"
    try:
        if os.path.lexists(path):
            open_regular(path).close()  # a pipe would be waited for
        with safetensors.safe_open(path, framework="numpy") as file:
            version = (file.metadata() or {}).get("format_version")
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            arrays = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} does not exist: without it the edit cannot be taken back. Use the folder that "
            "was edited."
        ) from None
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}); use the folder that was edited."
        ) from None
    if version != _VERSION or not arrays:
        raise CheckpointError(
            f"{path} has format version {version!r} and {len(arrays)} arrays of layer {layer}, "
            f"where version {_VERSION!r} with that layer is needed; use the folder that was edited."
        )
    for name, owner in ((_IN_WEIGHTS_DTYPE, "wq_dnh"), (_IN_BIAS_DTYPE, "bq_nh")):
        if name in arrays:
            arrays[name] = arrays[name].view(dtypes[owner])
    return Sidecar.from_arrays(arrays)
