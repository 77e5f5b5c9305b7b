"""Writes gains that are known before a model runs into its weights."""

import os
from typing import Any

import numpy as np

from vlm_jax import checkpoint
from vlm_jax.errors import ConfigError
from vlm_jax.jobs.arms import ArmReader
from vlm_jax.steering.combine import PARTS
from vlm_jax.steering.fold import fold_gains


def fold_method(
    source: checkpoint.ModelFolder, target: str | os.PathLike[str], config: Any
) -> np.ndarray:
    """Writes a copy of a model folder whose heads have the gains of the method `config.fold`.

    Returns:
        The gains [L, N].

    Raises:
        ConfigError: the section is no method, or one whose gains are not fixed.
        EditError, CheckpointError: see `steering.fold.fold_gains`.
    """
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
