"""Several processes: how they find one another, share a model, agree, and wait.

Each process answers its share of the examples on a mesh of its own devices, so nothing is sent
while a model runs; or, where a replica of the model needs the devices of several processes, each
such team does (`replica_team`). Work that makes a folder (convert, export, edit, ...) is done by
process 0. Nothing here touches a device unless `start` has joined several processes.
"""

import glob
import importlib.util
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

from vlm_jax.errors import ConfigError
from vlm_jax.parallel import host, watch
from vlm_jax.parallel.team import Team, devices_of, team

T = TypeVar("T")

_TPU_VM = "the TPU machines"
_ELSE = (
    "Give each process --coordinator=<host:port>, --num_processes and --process_id, or "
    "--num_processes=1 to run it alone."
)

_MOST = 1 << 20  # processes

_others_wait = False  # while process 0 works for all


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
    host.make_room()
    if num_processes == 1:
        return
    if num_processes is not None and num_processes < 1:
        raise ConfigError(f"--num_processes must be at least 1, not {num_processes}.")
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    known = {name: value for name, value in given.items() if value not in (None, "")}
    if known and len(known) < len(given):
        lacking = next(name for name in given if name not in known)
        raise ConfigError(
            f"--{next(iter(known))} is given without --{lacking}; several processes need "
            "--coordinator=<host:port>, --num_processes and --process_id, or none of them on a "
            "cluster that says so itself."
        )
    if coordinator is not None and num_processes is not None and process_id is not None:
        _join(coordinator, num_processes, process_id)
        return
    cluster = _cluster(os.environ)
    found = None if cluster is None else _ask(cluster)
    if found is None:
        return
    try:
        _join(*found)
    except ConfigError as error:
        raise ConfigError(f"On {cluster}: {error} {_ELSE}") from error


def _join(coordinator: str, num_processes: int, process_id: int) -> None:
    """Meets the other processes and starts the runtime with them.

    Raises:
        ConfigError: the numbers are impossible, or the processes did not meet.
    """
    _check(coordinator, num_processes, process_id)
    host.make_room(several_processes=True)
    watch.meet(coordinator, num_processes, process_id).begin()
    # Its handler would swallow SIGTERM; a run that is killed goes on anyway.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except (RuntimeError, ValueError, OSError) as error:
        raise ConfigError(
            f"The processes could not meet at {coordinator}: {_first_line(error)}."
        ) from error


def _ask(cluster: str) -> tuple[str, int, int] | None:
    """Returns what a cluster says: "host:port" of process 0, how many there are, which one this is.

    It is read as `jax.distributed.initialize` reads it, but before: of processes that do not come,
    the runtime tells by ending the others with a dump.

    Returns:
        The three; None for a TPU machine whose metadata name no pod.

    Raises:
        ConfigError: the cluster's variables are incomplete or no numbers.
    """
    from jax._src.clusters import ClusterEnv

    try:
        address = os.environ.get("JAX_COORDINATOR_ADDRESS")
        unset = address, None, None, None, None, int(watch.MEETING_SECONDS)
        address, number, which, _ = ClusterEnv.auto_detect_unset_distributed_params(*unset)
    except KeyError as error:
        reason = f"{error.args[0]} is not set"
    except Exception as error:  # readers of variables, of metadata, of an API
        reason = _first_line(error)
    else:
        if address is not None and number is not None and which is not None:
            return address, number, which
        if cluster == _TPU_VM:
            return None
        reason = "it does not say where process 0 is, how many there are and which one this is"
    raise ConfigError(f"On {cluster} the processes cannot be found: {reason}. {_ELSE}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


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
    return _everyone().exchange(value)


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
    """Does work in every process and gives the results of all; see `Team.agree`."""
    return _everyone().agree(work)


def replica_team(model: int) -> Team:
    """Returns the processes that hold one replica of the model with this one.

    A replica that fits the devices of a process is its own; a larger one takes all devices of some
    processes of consecutive numbers.

    Args:
        model: devices of a replica.

    Raises:
        ConfigError: processes cannot be put together so, or the others do not take part.
    """
    if count() == 1 or model <= jax.local_device_count():
        return team((index(),))
    own, sizes = jax.local_device_count(), {len(d) for d in devices_of(range(count()))}
    span = model // own
    if model % own or count() % span or sizes != {own}:
        fitting = [n * own for n in range(1, count() + 1) if count() % n == 0]
        raise ConfigError(
            f"config.mesh.model={model} devices of a replica are no whole processes of which "
            f"{count()} make equal teams, with {' or '.join(map(str, sorted(sizes)))} devices "
            f"each; set config.mesh.model to one of {', '.join(map(str, fitting))}, or to fewer "
            f"than {own}."
        )
    if _others_wait:
        raise ConfigError(
            f"config.mesh.model={model} needs {span} processes, but this job is done by process 0 "
            f"alone, which has {own} devices; set config.mesh.model to at most that."
        )
    first = index() // span * span
    return team(tuple(range(first, first + span)))


def by_primary(work: Callable[[], object]) -> None:
    """Does work in process 0 while the others wait; an error in it is an error in all."""

    def turn() -> None:
        global _others_wait
        if not primary():
            return
        _others_wait = count() > 1
        try:
            work()
        finally:
            _others_wait = False

    agree(turn)


def _everyone() -> Team:
    return team(tuple(range(count())))


def _check(coordinator: str, num_processes: int, process_id: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port[:9]) < 1 << 16:
        raise ConfigError(f"--coordinator must be <host:port>, not {coordinator!r}.")
    if num_processes > _MOST:
        raise ConfigError(f"--num_processes must be at most {_MOST}, not {num_processes}.")
    if not 0 <= process_id < num_processes:
        raise ConfigError(
            f"--process_id must be from 0 to {num_processes - 1} for --num_processes="
            f"{num_processes}, not {process_id}."
        )


def _cluster(environment: Mapping[str, str]) -> str | None:
    """The cluster whose processes this one belongs to; None for a process alone.

    `_ask` reads addresses and numbers from the same variables; here they only decide whether to.
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
    """Whether a variable counts more than one process.

    Raises:
        ConfigError: it is no number.
    """
    value = environment.get(name, "1").strip()
    if not value.isdecimal():
        raise ConfigError(f"{name}={value!r} is no number of processes. {_ELSE}")
    return value.lstrip("0")[:9] not in ("", "1")


def _is_tpu_vm(environment: Mapping[str, str]) -> bool:
    """Whether this is a machine with TPU chips, which its metadata may call one of a pod."""
    if "tpu" not in environment.get("JAX_PLATFORMS", "tpu") or "TPU_SKIP_MDS_QUERY" in environment:
        return False
    chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None
