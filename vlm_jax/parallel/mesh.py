"""The (`data`, `model`) mesh."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from vlm_jax.errors import ConfigError
from vlm_jax.parallel import host
from vlm_jax.parallel.processes import replica_team
from vlm_jax.parallel.team import devices_of

F = TypeVar("F", bound=Callable[..., Any])


def make_mesh(
    data: int = -1, model: int = 1, devices: Sequence[Any] | None = None
) -> jax.sharding.Mesh:
    """Lays devices out as `data` x `model`.

    Args:
        data: replicas of the model, over which batches are split; -1 takes what is left.
        model: devices that share one replica's weights.
        devices: which; by default all of this process (other processes lay out their own), or of
            the processes that share a replica with it (`replica_team`).

    Returns:
        A mesh whose axes are `AxisType.Auto`: jit propagates shardings and inserts collectives.

    Raises:
        ConfigError: the sizes do not multiply to the number of devices.
    """
    if devices is None:
        host.make_room()
        shared = replica_team(model)
        owned = [jax.local_devices()] if shared.alone else devices_of(shared.members)
        devices = [device for own in owned for device in own]
    if data == -1 and model > 0 and len(devices) % model == 0:
        data = len(devices) // model
    if data < 1 or model < 1 or data * model != len(devices):
        raise ConfigError(
            f"A mesh of data={data} x model={model} does not use {len(devices)} devices exactly; "
            "set config.mesh.data and config.mesh.model so that their product is the device count."
        )
    grid = np.array(devices).reshape(data, model)
    auto = (jax.sharding.AxisType.Auto,) * 2
    return jax.sharding.Mesh(grid, ("data", "model"), axis_types=auto)


def knows_mesh(function: F, mesh: jax.sharding.Mesh) -> F:
    """Returns a function that, when it is traced, has the mesh in scope.

    What the partitioner cannot split well says itself what each device of the mesh in scope does:
    kernels of our own, and the towers that read images. And what is compiled for devices of another
    machine is to attend as there. For a single device of this machine that is none of TPU the
    function itself is returned.
    """
    platform = mesh.devices.flat[0].platform
    if mesh.size == 1 and platform != "tpu" and platform == jax.default_backend():
        return function

    @functools.wraps(function)
    def in_scope(*args: Any, **static: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args, **static)

    return in_scope  # type: ignore[return-value]
