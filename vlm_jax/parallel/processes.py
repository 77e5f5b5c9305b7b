"""Several processes: how they find one another, agree, and wait.

Each process answers its share of the examples on a mesh of its own devices, so nothing is sent
while a model runs. Work that makes a folder (convert, export, edit, ...) is done by process 0.
Nothing here touches a device unless `start` has joined several processes.
"""

import glob
import importlib.util
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from vlm_jax.errors import ConfigError, UserError

T = TypeVar("T")

_TPU_VM = "the TPU machines"

_SMALLEST = 1 << 10  # bytes of a message: sizes are rounded up to powers of two, to compile rarely
_failed = False  # in this process or another, and all have been told


def start(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the processes of a job; must come before anything else that uses a device.

    Without arguments the environment decides: TPU pods and slices, SLURM, Open MPI, GKE and other
    Kubernetes indexed jobs, as `jax.distributed.initialize` finds them. Elsewhere, and with
    `num_processes=1`, the process stays alone.

    Args:
        coordinator: "host:port" of process 0, which the others can reach.
        num_processes: how many there are.
        process_id: which one this is, from 0.

    Raises:
        ConfigError: the arguments are incomplete or impossible, or the processes did not meet.
    """
    if num_processes == 1:
        return
    if num_processes is not None and num_processes < 1:
        raise ConfigError(f"--num_processes must be at least 1, not {num_processes}.")
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    known = {name: value for name, value in given.items() if value not in (None, "")}
    cluster = None if known else _cluster(os.environ)
    if not known and cluster is None:
        return
    if known and len(known) < len(given):
        lacking = next(name for name in given if name not in known)
        raise ConfigError(
            f"--{next(iter(known))} is given without --{lacking}; several processes need "
            "--coordinator=<host:port>, --num_processes and --process_id, or none of them on a "
            "cluster that says so itself."
        )
    _check(coordinator, num_processes, process_id)
    # Its handler would swallow SIGTERM; a run that is killed goes on anyway.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except (RuntimeError, ValueError, OSError) as error:
        if cluster == _TPU_VM and isinstance(error, ValueError):
            return  # its metadata name no pod
        where = f"on {cluster}" if cluster else f"at {coordinator}"
        raise ConfigError(
            f"The processes could not meet {where}: {str(error).splitlines()[0]}. Give each "
            "process --coordinator=<host:port>, --num_processes and --process_id, or "
            "--num_processes=1 to run it alone."
        ) from error


def index() -> int:
    """Which process this is, from 0."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def count() -> int:
    """How many processes there are."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def primary() -> bool:
    """Whether this is process 0, which writes and prints for all."""
    return index() == 0


def exchange(value: Any) -> list[Any]:
    """Gives every process the JSON values of all, by process; all of them must call it."""
    if count() == 1:
        return [value]
    message = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = np.ravel(multihost_utils.process_allgather(np.int32(message.size)))
    room = max(_SMALLEST, 1 << (int(lengths.max()) - 1).bit_length())
    padded = np.zeros(room, np.uint8)
    padded[: message.size] = message
    gathered = np.reshape(multihost_utils.process_allgather(padded), (count(), room))
    return [
        json.loads(one[:length].astype(np.uint8).tobytes())
        for one, length in zip(gathered, lengths)
    ]


def barrier(name: str) -> None:
    """Waits until every process has come here.

    Args:
        name: of the place; all processes give the same.

    Raises:
        UserError: a process failed before it came here.
    """
    places = agree(lambda: name)
    if set(places) != {name}:
        raise RuntimeError(f"processes wait for one another at different places: {places}")


def agree(work: Callable[[], T]) -> list[T]:
    """Does work in every process and gives the results of all, by process.

    An error in one process is an error in all, wherever they are, so that none waits for one that
    is gone; an outer call may therefore hold inner ones.

    Args:
        work: gives a JSON value.

    Raises:
        UserError: another process failed; an error of this one passes as it is.
    """
    global _failed
    try:
        value = work()
    except Exception as error:
        if not _failed:
            _failed = count() > 1
            exchange({"error": str(error) or type(error).__name__})
        raise
    messages = exchange({"value": value})
    for process, message in enumerate(messages):
        if "error" in message:
            _failed = True
            raise UserError(f"process {process} failed: {message['error']}")
    return [message["value"] for message in messages]


def by_primary(work: Callable[[], object]) -> None:
    """Does work in process 0 while the others wait; an error in it is an error in all."""

    def turn() -> None:
        if primary():
            work()

    agree(turn)


def _check(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    if coordinator is None or num_processes is None or process_id is None:
        return
    if not coordinator.rpartition(":")[0] or not coordinator.rpartition(":")[2].isdigit():
        raise ConfigError(f"--coordinator must be <host:port>, not {coordinator!r}.")
    if not 0 <= process_id < num_processes:
        raise ConfigError(
            f"--process_id must be from 0 to {num_processes - 1} for --num_processes="
            f"{num_processes}, not {process_id}."
        )


def _cluster(environment: Mapping[str, str]) -> str | None:
    """The cluster whose processes this one belongs to; None for a process alone.

    `jax.distributed` reads addresses and numbers from the same variables; here they only decide
    whether to ask it.
    """
    if "SLURM_STEP_NODELIST" in environment and _several(environment, "SLURM_NTASKS"):
        return "SLURM"
    if _several(environment, "OMPI_COMM_WORLD_SIZE"):
        return "Open MPI"
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES", "")
    if "," in hosts or _several(environment, "MEGASCALE_NUM_SLICES"):
        return "the TPU slice"
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys():
        return "Kubernetes"
    return _TPU_VM if _is_tpu_vm(environment) else None


def _several(environment: Mapping[str, str], name: str) -> bool:
    value = environment.get(name, "")
    return value.isdigit() and int(value) > 1


def _is_tpu_vm(environment: Mapping[str, str]) -> bool:
    """Whether this is a machine with TPU chips, which its metadata may call one of a pod."""
    if "tpu" not in environment.get("JAX_PLATFORMS", "tpu") or "TPU_SKIP_MDS_QUERY" in environment:
        return False
    chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None
