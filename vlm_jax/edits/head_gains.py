"""Static head gains as weights: each head's rows of the output projection times its gain."""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vlm_jax.checkpoint import ModelFolder
from vlm_jax.errors import EditError
from vlm_jax.steering.heads import shape_of

CERTIFICATE = "head_gains.json"


def fold_gains(
    source: ModelFolder,
    target: str | os.PathLike[str],
    gain_ln: np.ndarray,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Writes a copy of a model folder in which heads have gains, at no cost when it runs.

    `head_gains.json` beside the weights lists the gains. Biases stay: they are no head's.

    Args:
        source: the model.
        target: the new folder; must not exist.
        gain_ln: finite [L, N].
        about: what else the certificate should say, as JSON values.

    Raises:
        EditError: the gains are of another shape or not finite, or the source has gains already.
        CheckpointError: the target cannot be written.
    """
    replace, certificate = gains_edit(source, gain_ln, about)
    source.copy(target, replace, {CERTIFICATE: certificate}, recipe=certificate)


def gains_edit(
    source: ModelFolder, gain_ln: np.ndarray, about: Mapping[str, Any] | None = None
) -> tuple[dict[str, Callable[[], np.ndarray]], bytes]:
    """Returns what `fold_gains` changes: path -> what makes its tensor, and the certificate."""
    shape = shape_of(source.config)
    gain_ln = np.asarray(gain_ln, np.float64)
    if gain_ln.shape != shape:
        raise EditError(
            f"gains are {list(gain_ln.shape)}, but {source.path} has {shape[0]} layers of "
            f"{shape[1]} heads."
        )
    if not np.isfinite(gain_ln).all():
        raise EditError("a gain is NaN or infinite; gains must be finite.")
    if (source.path / CERTIFICATE).exists():
        raise EditError(f"{source.path} has head gains already ({CERTIFICATE}); fold the original.")
    replace = {}
    for layer in np.flatnonzero((gain_ln != 1).any(axis=1)):
        path = f"decoder/layers/{layer}/wo_nhd"
        replace[path] = lambda path=path, gain_n=gain_ln[layer]: _scaled(source, path, gain_n)
    certificate = {"kind": "head gains", **(about or {}), "gain_ln": gain_ln.tolist()}
    return replace, (json.dumps(certificate, indent=1) + "\n").encode()


def _scaled(source: ModelFolder, path: str, gain_n: np.ndarray) -> np.ndarray:
    # Rounded once, by the copy.
    return source.read(path).astype(np.float64) * gain_n[:, None, None]
