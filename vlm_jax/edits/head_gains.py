"""Static head gains as weights: each head's rows of the output projection times its gain."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from vlm_jax.checkpoint import ModelFolder, edited_card
from vlm_jax.edits.base import MadeEdit, Replacements, WeightEdit
from vlm_jax.errors import ConfigError, EditError
from vlm_jax.steering.config import read_method
from vlm_jax.steering.heads import shape_of
from vlm_jax.steering.named import identified

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
    heads = int((np.asarray(gain_ln) != 1).sum())
    methods = [str(one.get("method")) for one in (about or {}).get("methods", ())]
    of = f", of {' and '.join(methods)}" if methods else ""
    card = edited_card(source, CERTIFICATE, f"Fixed gains of {heads} heads{of}.")
    source.copy(target, replace, {CERTIFICATE: certificate, **card}, recipe=certificate)


def gains_edit(
    source: ModelFolder, gain_ln: np.ndarray, about: Mapping[str, Any] | None = None
) -> tuple[Replacements, bytes]:
    """Returns what `fold_gains` changes: path -> what makes its tensor, and the certificate.

    Raises:
        EditError: a gain is not finite, their shape is not [layers, heads] of the folder, or it has
            gains already.
    """
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedGains:
    """Settings of the edit.

    Attributes:
        gains: array [layers, heads], or a method of fixed gains and its settings.
    """

    gains: Any = None


def fixed_gains(source: ModelFolder, gains: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Returns gains [L, N], and what their certificate says of where they are from.

    Args:
        source: the model.
        gains: see `FixedGains`.

    Raises:
        ConfigError: nothing is given, or the method does more than fixed gains can.
    """
    if not isinstance(gains, Mapping):
        if gains is None or isinstance(gains, str):
            raise ConfigError(
                "method 'head_gains' needs gains: an array [layers, heads], or a method of fixed "
                "gains such as {'method': 'functional_heads', 'mode': 'dataset_static', "
                "'heads': 'identified'}."
            )
        try:
            return np.asarray(gains, np.float64), {}
        except (TypeError, ValueError):
            raise ConfigError(
                f"gains must be numbers, as many in each of their rows, not {gains!r}."
            ) from None
    steering = read_method(identified(gains, source.path), source.config)
    parts = list(steering.parts)
    if steering.head_gains is None or len(parts) > 1:
        raise ConfigError(
            f"gains: {gains.get('method')!r} acts by {' and '.join(parts)}, but weights can hold "
            "gains that are fixed and nothing else; use functional_heads or policy with "
            "mode='dataset_static'."
        )
    return np.asarray(steering.head_gains.gain)[0], {"methods": [dict(sorted(gains.items()))]}


def _make(source: ModelFolder, settings: FixedGains) -> MadeEdit:
    gain_ln, about = fixed_gains(source, settings.gains)
    replace, certificate = gains_edit(source, gain_ln, about)
    write = lambda source, target: fold_gains(source, target, gain_ln, about)
    return MadeEdit(replace, lambda: certificate, write)


EDIT = WeightEdit("Scales heads by fixed gains, in their output weights.", FixedGains, _make)
