"""AIR's rescale of query-key products by their spectral energy, as an edit of query weights.

AIR begins by rescaling W_QK "adaptively by its spectral energy", with a constant xi = 0.01 (arXiv
2603.24058, Algorithm 1, line 1). The formula is in no source that is open, so this is a reading of
it, after the form that the released AIR* has on logits (`EnergyRescale`): with E_n the energy of
head n's product, W *= clip(sqrt(mean_n E / (E_n + xi)), 0.8, 1.25), the mean over the heads of the
layer. The factor goes into the queries, weights and biases, so that every logit of the head has it,
whatever rotation stands between queries and keys; the edited folder costs nothing when it runs.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_jax.attention.parts.energy_rescale import ENERGY_FACTORS
from vlm_jax.checkpoint import ModelFolder, edited_card
from vlm_jax.edits.base import MadeEdit, Replacements, WeightEdit
from vlm_jax.errors import EditError
from vlm_jax.settings import number, one_of, setting
from vlm_jax.steering.heads import shape_of
from vlm_jax.steering.layers import layer_range

CERTIFICATE = "energy_rescale.json"
ENERGIES = ("frobenius", "symmetrised")


def product_energies(
    wq_dnh: np.ndarray, wk_dkh: np.ndarray, energy: str = "frobenius"
) -> np.ndarray:
    """Returns the energy of each head's product W = W_Q^T W_K, float64 [N], without forming it.

    Args:
        wq_dnh, wk_dkh: weights of one layer, biases left out.
        energy: "frobenius" is ||W||^2; "symmetrised" is tr(S^2) with S = (W + W^T) / 2, which no
            head has below zero, as tr(W^2) may be.
    """
    heads, group = wq_dnh.shape[1], wq_dnh.shape[1] // wk_dkh.shape[1]
    keys = [np.ascontiguousarray(wk_dkh[:, n], np.float64) for n in range(wk_dkh.shape[1])]
    found = np.empty(heads)
    for n in range(heads):
        q_dh, k_dh = np.ascontiguousarray(wq_dnh[:, n], np.float64), keys[n // group]
        squared = np.sum((q_dh.T @ q_dh) * (k_dh.T @ k_dh))
        if energy == "symmetrised":
            core_hh = k_dh.T @ q_dh
            squared = (squared + np.sum(core_hh * core_hh.T)) / 2
        found[n] = squared
    return found


def energy_scale(energy_n: np.ndarray, xi: float = 0.01) -> np.ndarray:
    """Returns the factor of each head's product, by its energy against its layer's mean."""
    return np.clip(np.sqrt(energy_n.mean() / (energy_n + xi)), *ENERGY_FACTORS)


def fold_energy(
    source: ModelFolder,
    target: str | os.PathLike[str],
    layers: Sequence[int],
    energy: str = "frobenius",
    xi: float = 0.01,
    about: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """Writes a copy of a model folder whose query weights are rescaled by their heads' energy.

    `energy_rescale.json` beside the weights lists energies and factors.

    Args:
        source: the model.
        target: the new folder; must not exist.
        layers: which layers.
        energy: a word of `ENERGIES`.
        xi: added to each energy.
        about: what else the certificate should say, as JSON values.

    Returns:
        The factors [L, N]; 1 in other layers.

    Raises:
        EditError: the source's query weights are edited or rescaled already.
        CheckpointError: the target cannot be written.
    """
    replace, certificate, scale_ln = energy_edit(source, layers, energy, xi, about)
    listed = ", ".join(map(str, layers))
    what = f"Queries of layers {listed} rescaled by their heads' {energy} energy, xi={xi:g}."
    card = edited_card(source, CERTIFICATE, what)
    source.copy(target, replace, {CERTIFICATE: certificate, **card}, recipe=certificate)
    return scale_ln


def energy_edit(
    source: ModelFolder,
    layers: Sequence[int],
    energy: str = "frobenius",
    xi: float = 0.01,
    about: Mapping[str, Any] | None = None,
) -> tuple[Replacements, bytes, np.ndarray]:
    """Returns what `fold_energy` changes: path -> what makes its tensor, certificate, factors.

    Raises:
        EditError: the folder is edited or rescaled already.
    """
    if source.certificate is not None:
        raise EditError(
            f"{source.path} has edited query weights, which its certificate speaks for; rescale "
            "the original folder, and edit that."
        )
    if (source.path / CERTIFICATE).exists():
        raise EditError(f"{source.path} is rescaled already ({CERTIFICATE}); rescale the original.")
    scale_ln, energy_ln = np.ones(shape_of(source.config)), np.zeros(shape_of(source.config))
    replace = {}
    for layer in layers:
        prefix = f"decoder/layers/{layer}/"
        wq_dnh, wk_dkh = (source.read(prefix + name) for name in ("wq_dnh", "wk_dkh"))
        energy_ln[layer] = product_energies(wq_dnh, wk_dkh, energy)
        scale_ln[layer] = energy_scale(energy_ln[layer], xi)
        for path in (prefix + "wq_dnh", prefix + "bq_nh"):
            if path in source.tensors:
                scale_n1 = scale_ln[layer][:, None]
                # Rounded once, by the copy.
                replace[path] = lambda path=path, scale_n1=scale_n1: (
                    source.read(path).astype(np.float64) * scale_n1
                )
    certificate = {
        "kind": "energy rescale",
        **(about or {}),
        "layers": list(layers),
        "energy": energy,
        "xi": xi,
        "energy_ln": energy_ln.tolist(),
        "scale_ln": scale_ln.tolist(),
    }
    return replace, (json.dumps(certificate, indent=1) + "\n").encode(), scale_ln


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnergySettings:
    """Settings of the edit.

    Attributes:
        layers: first and last layer; None is all.
        energy: "frobenius" is ||W||^2 of the product; "symmetrised" is tr(S^2), S = (W + W^T) / 2.
        xi: added to each energy.
    """

    layers: Any = None
    energy: str = setting("frobenius", one_of, known=ENERGIES)
    xi: float = setting(0.01, number, low=0)


def _make(source: ModelFolder, settings: EnergySettings) -> MadeEdit:
    depth, given = source.config.decoder.num_layers, settings.layers
    layers = range(depth) if given is None else layer_range("layers", given, depth)
    asked = layers, settings.energy, settings.xi
    replace, certificate, _ = energy_edit(source, *asked)
    write = lambda source, target: fold_energy(source, target, *asked)
    return MadeEdit(replace, lambda: certificate, write)


EDIT = WeightEdit(
    "Brings heads to the mean energy of their layer, in their query weights.",
    EnergySettings,
    _make,
)
