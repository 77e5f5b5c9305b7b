"""Writes factors that are known before a model runs into its weights."""

import json
import os
from typing import Any

import numpy as np

from vlm_jax import checkpoint
from vlm_jax.edits import EDITS
from vlm_jax.edits.head_gains import fold_gains
from vlm_jax.errors import ConfigError
from vlm_jax.settings import read
from vlm_jax.study.arms import ArmReader
from vlm_jax.study.request import Request

ENERGY = "energy_rescale"


def run(request: Request) -> None:
    """Folds `config.fold`, a method whose gains are fixed, into the weights of `--target`.

    Raises:
        ConfigError: it names no method, or one whose gains are not fixed.
    """
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
    (`vlm_jax.edits.energy_rescale`).

    Returns:
        The factors [L, N].

    Raises:
        ConfigError: the section is no method, or one whose gains are not fixed.
        EditError, CheckpointError: see `vlm_jax.edits`.
    """
    if getattr(config.fold, "get", {}.get)("method") == ENERGY:
        return _fold_energy(source, target, dict(config.fold))
    arm = ArmReader.of(config, source).arm("fold", config.fold, "config.fold")
    steering = arm.draws[0].steering
    parts = [] if steering is None else list(steering.parts)
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
    edit = EDITS.find(ENERGY)
    given = {key: value for key, value in section.items() if key != "method"}
    chosen = read(edit.settings, given, "config.fold")
    try:
        made = edit.make(source, chosen)
    except ConfigError as error:
        raise ConfigError(f"config.fold: {error}") from None
    made.write(source, target)
    return np.asarray(json.loads(made.document())["scale_ln"])
