"""Which processes belong together, and a process by itself."""

import jax
import pytest

from vlm_jax.errors import ConfigError, UserError
from vlm_jax.parallel import processes

SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "1"}
INDEXED = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}


@pytest.mark.parametrize(
    ("environment", "cluster"),
    [
        ({}, None),
        (SLURM | {"SLURM_NTASKS": "2"}, "SLURM"),
        (SLURM | {"SLURM_NTASKS": "1"}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, None),  # a batch script outside any step
        ({"OMPI_COMM_WORLD_SIZE": "8"}, "Open MPI"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0"}, "the TPU slice"),
        ({"TPU_WORKER_HOSTNAMES": "a"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "the TPU slice"),
        (INDEXED, "Kubernetes"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
    ],
)
def test_the_environment_says_whether_there_are_others(environment, cluster):
    assert processes._cluster(environment | {"JAX_PLATFORMS": "cpu"}) == cluster


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("host:1", None, None), "--coordinator is given without --num_processes"),
        ((None, 2, 0), "--num_processes is given without --coordinator"),
        ((None, None, 1), "--process_id is given without --coordinator"),
        (("host", 2, 0), "--coordinator must be <host:port>, not 'host'"),
        (("host:\u00b2", 2, 0), "--coordinator must be <host:port>"),
        (("host:65536", 2, 0), "--coordinator must be <host:port>"),
        (("host:1", 2, 2), "--process_id must be from 0 to 1 for --num_processes=2, not 2"),
        (("host:1", 0, 0), "--num_processes must be at least 1, not 0"),
    ],
)
def test_impossible_flags_are_refused_before_anything_is_tried(given, message):
    with pytest.raises(ConfigError, match=message):
        processes.start(*given)


SLURM = {
    "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "7",
    "SLURM_PROCID": "1", "SLURM_LOCALID": "0",
}  # fmt: skip
MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "4096.0;tcp://10.0.0.1:8"}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (SLURM | {"SLURM_NTASKS": "\u00b2"}, "SLURM_NTASKS='\u00b2' is no number of processes"),
        (SLURM | {"SLURM_NTASKS": "9" * 30}, "--num_processes must be at most"),
        (SLURM | {"SLURM_PROCID": "2"}, "On SLURM: --process_id must be from 0 to 1"),
        (SLURM | {"SLURM_PROCID": "x"}, "On SLURM the processes cannot be found: invalid literal"),
        (SLURM | {"SLURM_STEP_NODELIST": ""}, "--coordinator must be <host:port>, not ':6"),
        ({"SLURM_STEP_NODELIST": "n1", "SLURM_NTASKS": "2"}, "does not say where process 0 is"),
        (MPI, "On Open MPI the processes cannot be found: OMPI_COMM_WORLD_RANK is not set"),
        (MPI | {"OMPI_MCA_orte_hnp_uri": "x"}, "On Open MPI the processes cannot be found"),
        ({"MEGASCALE_NUM_SLICES": "two"}, "MEGASCALE_NUM_SLICES='two' is no number"),
        (SLURM, "On SLURM: Process 0 cannot be reached at --coordinator=n1:61447"),
    ],
)
def test_what_a_cluster_says_wrongly_is_one_line(environment, message, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    meet = processes.watch.meet
    monkeypatch.setattr(processes.watch, "meet", lambda *given: meet(*given, seconds=0.01))
    with pytest.raises(ConfigError, match=message) as error:
        processes.start()
    assert "--num_processes=1 to run it alone" in str(error.value)


def test_a_process_alone_is_the_first_of_one_and_waits_for_nobody():
    processes.start()
    processes.start(num_processes=1)
    assert (processes.index(), processes.count(), processes.primary()) == (0, 1, True)
    assert processes.exchange({"a": [1]}) == [{"a": [1]}]
    processes.barrier("here")
    assert processes.agree(lambda: 3) == [3]
    done = []
    processes.by_primary(lambda: done.append(1))
    assert done == [1]
    with pytest.raises(UserError, match="of its own"):
        processes.agree(_fail)


@pytest.mark.parametrize(
    ("own", "members"), [(1, (1,)), (4, (1,)), (8, (0, 1)), (16, (0, 1, 2, 3)), (-1, (1,))]
)
def test_a_large_replica_takes_whole_processes(pod, own, members):
    assert processes.replica_team(own).members == members
    assert processes.replica_team(own).leads == (own < 8)


@pytest.mark.parametrize("model", [6, 12, 32])
def test_a_replica_that_is_no_whole_processes_is_refused(pod, model):
    with pytest.raises(ConfigError, match=f"mesh.model={model} .* one of 4, 8, 16, or to fewer"):
        processes.replica_team(model)


def test_a_replica_of_several_processes_needs_the_others(pod, monkeypatch):
    monkeypatch.setattr(processes, "agree", lambda work: [work()])
    monkeypatch.setattr(processes, "primary", lambda: True)
    with pytest.raises(ConfigError, match=r"mesh\.model=8 needs 2 processes, but this job is done"):
        processes.by_primary(lambda: processes.replica_team(8))
    assert processes.replica_team(8).members == (0, 1)


@pytest.fixture
def pod(monkeypatch):
    """Process 1 of four, with four devices each."""
    monkeypatch.setattr(processes, "count", lambda: 4)
    monkeypatch.setattr(processes, "index", lambda: 1)
    monkeypatch.setattr(processes, "devices_of", lambda members: [range(4)] * len(list(members)))
    monkeypatch.setattr(jax, "local_device_count", lambda: 4)
    monkeypatch.setattr(jax, "process_index", lambda: 1)


def _fail():
    raise UserError("of its own")
