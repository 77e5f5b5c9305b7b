"""Which processes belong together, and a process by itself."""

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
        (("host:1", 2, 2), "--process_id must be from 0 to 1 for --num_processes=2, not 2"),
        (("host:1", 0, 0), "--num_processes must be at least 1, not 0"),
    ],
)
def test_impossible_flags_are_refused_before_anything_is_tried(given, message):
    with pytest.raises(ConfigError, match=message):
        processes.start(*given)


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


def _fail():
    raise UserError("of its own")
