"""One device keeps the threads it has cores for; several get room to wait for one another."""

import os
import subprocess
import sys

import pytest

THREADS = """
import os, jax
from vlm_jax.parallel import make_mesh
make_mesh()
names = [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
print(jax.local_device_count(), sum("XLAEigen" in name for name in names))
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="reads threads from /proc")
@pytest.mark.parametrize(("flags", "nproc"), [("", ""), ("=1", ""), ("=8", ""), ("=8", "20")])
def test_the_pool_has_a_thread_a_core_or_room_for_several_devices(flags, nproc):
    kept = {name: value for name, value in os.environ.items() if name != "NPROC"}
    count = f"--xla_force_host_platform_device_count{flags}" if flags else ""
    added = {"XLA_FLAGS": count, "JAX_PLATFORMS": "cpu"} | ({"NPROC": nproc} if nproc else {})
    done = subprocess.run(
        [sys.executable, "-c", THREADS],
        env=kept | added,
        check=True,
        capture_output=True,
        text=True,
    )
    devices, threads = map(int, done.stdout.split())
    assert devices == int(flags[1:] or 1)
    cores = len(os.sched_getaffinity(0))
    assert threads == (int(nproc) if nproc else cores if devices == 1 else max(16, cores))
