"""The (`data`, `model`) mesh."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from vlm_jax.errors import ConfigError


def make_mesh(
    data: int = -1, model: int = 1, devices: Sequence[Any] | None = None
) -> jax.sharding.Mesh:
    """Lays devices out as `data` x `model`.

    Args:
        data: replicas of the model, over which batches are split; -1 takes what is left.
        model: devices that share one replica's weights.
        devices: which; all of this process by default (other processes lay out their own).

    Returns:
        A mesh whose axes are `AxisType.Auto`: jit propagates shardings and inserts collectives.

    Raises:
        ConfigError: the sizes do not multiply to the number of devices.
    """
    devices = list(jax.local_devices() if devices is None else devices)
    if model > len(devices) and jax.process_count() > 1:
        raise ConfigError(
            f"A replica over model={model} devices would span processes, which have {len(devices)} "
            "devices each; set mesh.model to at most that."
        )
    if data == -1 and model > 0 and len(devices) % model == 0:
        data = len(devices) // model
    if data < 1 or model < 1 or data * model != len(devices):
        raise ConfigError(
            f"A mesh of data={data} x model={model} does not use {len(devices)} devices exactly; "
            "set mesh.data and mesh.model so that their product is the device count."
        )
    grid = np.array(devices).reshape(data, model)
    auto = (jax.sharding.AxisType.Auto,) * 2
    return jax.sharding.Mesh(grid, ("data", "model"), axis_types=auto)
