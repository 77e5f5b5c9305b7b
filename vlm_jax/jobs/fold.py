"""Writes factors that are known before a model runs into its weights."""

import os
from typing import Any

import numpy as np

from vlm_jax import checkpoint
from vlm_jax.edits.energy_rescale import ENERGIES, fold_energy
from vlm_jax.edits.head_gains import fold_gains
from vlm_jax.errors import ConfigError
from vlm_jax.settings import number, one_of, refuse_unknown
from vlm_jax.steering.combine import PARTS
from vlm_jax.steering.layers import layer_range
from vlm_jax.study.arms import ArmReader
from vlm_jax.study.request import Request

ENERGY = "energy_rescale"
_ENERGY_SETTINGS = {"layers": None, "energy": "frobenius", "xi": 0.01}


def run(request: Request) -> None:
    """Folds `config.fold`, a method whose gains are fixed, into the weights of `--target`."""
    if not request.config.get("fold"):
        raise ConfigError("config.fold names no method; use --config=fold or --config=fold:gains.")
    source = checkpoint.open_folder(request.need("source"))
    target = request.need("target")
    gain_ln = fold_method(source, target, request.config)
    print(f"Folded gains of {int((gain_ln != 1).sum())} heads into {target}")


def fold_method(
    source: checkpoint.ModelFolder, target: str | os.PathLike[str], config: Any
) -> np.ndarray:
    """Writes a copy of a model folder whose heads have the gains of the method `config.fold`.

    The method "energy_rescale" scales queries by their heads' energy instead
    (`steering.energy.fold_energy`): `layers` are the first and last, all by default, `energy` is a
    word of `ENERGIES`, and `xi` its stabiliser.

    Returns:
        The factors [L, N].

    Raises:
        ConfigError: the section is no method, or one whose gains are not fixed.
        EditError, CheckpointError: see `steering.fold.fold_gains`, `steering.energy.fold_energy`.
    """
    if getattr(config.fold, "get", {}.get)("method") == ENERGY:
        return _fold_energy(source, target, dict(config.fold))
    arm = ArmReader.of(config, source).arm("fold", config.fold, "config.fold")
    steering = arm.settings[0].steering
    parts = [part for part in PARTS if steering is not None and getattr(steering, part) is not None]
    if steering is None or steering.head_gains is None or arm.edits or len(parts) > 1:
        acts = "edits queries and keys" if arm.edits else f"acts by {' and '.join(parts)}"
        raise ConfigError(
            f"config.fold {acts}, but weights can hold gains that are fixed and nothing else; use "
            "functional_heads or policy with mode='dataset_static'."
        )
    gain_ln = np.asarray(steering.head_gains.gain)[0]
    fold_gains(source, target, gain_ln, {"methods": [dict(entry) for entry in arm.methods]})
    return gain_ln


def _fold_energy(
    source: checkpoint.ModelFolder, target: str | os.PathLike[str], section: dict[str, Any]
) -> np.ndarray:
    given = {key: value for key, value in section.items() if key != "method"}
    refuse_unknown(given, _ENERGY_SETTINGS, f"config.fold, method {ENERGY!r},")
    values = {**_ENERGY_SETTINGS, **given}
    depth = source.config.decoder.num_layers
    layers = values["layers"]
    chosen = range(depth) if layers is None else layer_range("config.fold.layers", layers, depth)
    energy = one_of("config.fold.energy", values["energy"], ENERGIES)
    xi = number("config.fold.xi", values["xi"], 0)
    return fold_energy(source, target, chosen, energy, xi)
