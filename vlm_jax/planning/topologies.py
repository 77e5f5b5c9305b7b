"""Accelerators that need not be there: devices that programs can be compiled for.

    v5e:4x4      a slice of 16 TPU v5e, 4 chips a host; v6e:2x2, v5p:2x2x1 likewise
    h100:8       8 GPUs of one machine; h200:1
    cpu:8        host devices of this process, for trying out

TPUs need the package libtpu (the extra `plan-tpu`), GPUs JAX's CUDA plug-in (`plan-gpu`); neither
needs a device.
"""

import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import re
from typing import Any

import jax

from vlm_jax.errors import ConfigError
from vlm_jax.planning.chips import CHIPS, Chip
from vlm_jax.settings import nearest

GENERATIONS = {
    "v5e": "TPU v5e", "v5p": "TPU v5p", "v6e": "TPU v6e", "h100": "H100 SXM", "h200": "H200",
}  # fmt: skip
"""First part of a topology's name -> the chip of `CHIPS`."""

SLICES = {
    "v5e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v6e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4"),
    "h100": ("1", "2", "4", "8"),
    "h200": ("1", "2", "4", "8"),
}
"""What is rented of each generation, smallest first (Google Cloud's lists of slices)."""

_DIMS = {"v5e": 2, "v6e": 2, "v5p": 3, "h100": 1, "h200": 1, "cpu": 1}
_SINGLE_HOSTS = {"v5e": (8,), "v6e": (8,)}  # more chips than 4 on one machine
# Silences libtpu's search for the machine's metadata, which a planning machine does not have; and
# several plans at once do not take a TPU away from one another.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_GPUS = {
    "h100": ("NVIDIA H100 80GB HBM3", 3_352_320_000_000, 84_929_347_584),
    "h200": ("NVIDIA H200", 4_800_000_000_000, 150_754_820_096),
}
"""Name, bytes/s and bytes of memory as the driver reports them."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices that programs can be compiled for.

    Attributes:
        name: such as "v5e:4x4".
        devices: in the order in which a mesh takes them.
        chip: its peaks; None of a CPU.
        hosts: machines that they belong to.
    """

    name: str
    devices: tuple[Any, ...]
    chip: Chip | None
    hosts: int

    @property
    def generation(self) -> str:
        """The first part of the name."""
        return self.name.partition(":")[0]

    def of_replica(self, model: int) -> tuple[Any, ...]:
        """Returns the devices of the mesh that one process of a job lays out.

        Every process has a mesh of its own devices; where a replica takes more than these, it has
        all devices of some processes (`vlm_jax.parallel.processes.replica_team`). The devices of
        one machine among several are those of a machine by itself (`_machine`).

        Raises:
            ConfigError: the topology has fewer devices, or a replica is no whole processes.
        """
        own = len(self.devices) // self.hosts
        if model <= own:
            return self.devices if self.hosts == 1 else self._machine()
        if model > len(self.devices) or model % own:
            raise ConfigError(
                f"config.mesh.model={model}: {self.name} has {len(self.devices)} devices, {own} a "
                "machine; a replica takes some of one machine, or all of several."
            )
        return self.devices[:model]

    def _machine(self) -> tuple[Any, ...]:
        """Returns the devices of one of several machines, as a topology of that machine has them.

        The first machine of v5e:4x4 has the devices 0, 1, 4 and 5. libtpu (to 0.0.48) takes these
        for places among the program's four, and ends with an INTERNAL error of its own ("device_id
        < kMaxDeviceCount") wherever all of them take part in a collective. By itself the machine
        has the devices 0 to 3.
        """
        own = [device.coords for device in self.devices if device.process_index == 0]
        shape = [1 + max(along) - min(along) for along in zip(*own)][: _DIMS[self.generation]]
        return topology(f"{self.generation}:{'x'.join(map(str, shape))}").devices


def topology(name: str) -> Topology:
    """Returns the devices of a name.

    Raises:
        ConfigError: there is no such topology, or what it needs is not installed.
    """
    generation, shape = parse(name)
    count = math.prod(shape)
    if generation == "cpu":
        devices = jax.devices("cpu")
        if len(devices) < count:
            raise ConfigError(
                f"topology {name!r} needs {count} host devices, and this process has "
                f"{len(devices)}; set XLA_FLAGS=--xla_force_host_platform_device_count={count}."
            )
        return Topology(name, tuple(devices[:count]), None, 1)
    devices = _tpus(name, generation, shape) if generation[0] == "v" else _gpus(generation, count)
    hosts = len({device.process_index for device in devices})
    return Topology(name, tuple(devices), CHIPS[GENERATIONS[generation]], hosts)


def parse(name: str) -> tuple[str, tuple[int, ...]]:
    """Returns generation and shape: "v5e:4x4" is ("v5e", (4, 4)).

    Raises:
        ConfigError: the name is of no such form.
    """
    generation, _, shape = name.lower().partition(":")
    if generation not in _DIMS:
        raise ConfigError(
            f"There is no topology {name!r}{nearest(generation, _DIMS)}; name one such as v5e:2x2, "
            f"of {', '.join(_DIMS)}."
        )
    dims = _DIMS[generation]
    if not re.fullmatch(r"[1-9]\d{0,3}" + r"x[1-9]\d{0,3}" * (dims - 1), shape):
        example = {1: "8", 2: "2x4", 3: "2x2x1"}[dims]
        raise ConfigError(f"topology {name!r} has no shape; write {generation}:{example}.")
    return generation, tuple(map(int, shape.split("x")))


def _tpus(name: str, generation: str, shape: tuple[int, ...]) -> list[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            f"topology {name!r} is compiled for by libtpu, which is not installed: "
            "pip install 'vlm_jax[plan-tpu]'."
        )
    from jax.experimental import topologies

    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    options: dict[str, Any] = {}
    count = math.prod(shape)
    if count < 4 or count in _SINGLE_HOSTS.get(generation, ()):
        options["chips_per_host_bounds"] = (*shape, *[1] * (3 - len(shape)))
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{generation}:{'x'.join(map(str, shape))}", **options
        )
    except Exception as error:  # whatever libtpu makes of a shape that is not there
        raise ConfigError(
            f"topology {name!r} is not known to libtpu "
            f"{importlib.metadata.version('libtpu')}: {str(error).splitlines()[0]} Smaller ones of "
            f"{generation} are {', '.join(SLICES[generation])}."
        ) from None
    return list(found.devices)


def _gpus(generation: str, count: int) -> list[Any]:
    if importlib.util.find_spec("jax_cuda12_plugin") is None:
        raise ConfigError(
            f"topology '{generation}:{count}' is compiled for by JAX's CUDA plug-in, which is not "
            "installed: pip install 'vlm_jax[plan-gpu]'."
        )
    from jax.experimental import topologies

    kind, bandwidth, memory = _GPUS[generation]
    target = _GPU_TARGET.format(kind=kind, bandwidth=bandwidth, memory=memory)
    try:
        found = topologies.get_topology_desc(
            platform="cuda", target_config=target, topology=f"1x1x{count}"
        )
    except NotImplementedError:  # the plug-in saw no device and left
        raise ConfigError(
            f"topology '{generation}:{count}' is compiled for without a GPU only by a process that "
            "was told to look for none; start it with JAX_PLATFORMS=cpu in the environment."
        ) from None
    return list(found.devices)


# A GpuTargetConfig as XLA prints that of an H100: an H200 differs in its memory alone.
_GPU_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: {memory} shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: 9 minor: 0 }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 28 }}
runtime_version {{ major: 12 minor: 9 }}
device_description_str: "{kind}"
"""
