"""Threads of XLA's CPU client, whose one pool serves all devices of a process."""

import os
import re

import jax

_ENOUGH = 16


def make_room(several_processes: bool = False) -> None:
    """Widens the pool where several CPU devices work together; must come before devices are used.

    Programs of several devices hold threads while they wait for one another, and batched linear
    algebra then waits for ever in a pool of as many threads as a small machine has cores. One
    device needs no more than the cores, and more slow it down: on two cores, 16 threads make a
    decode step a fifth longer (`NPROC=16 python -m benchmarks R6` shows it). What the environment
    says (NPROC, which XLA reads) stands.

    Args:
        several_processes: whether devices of other processes take part.
    """
    forced = re.findall(r"host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    devices = max(int(forced[-1]) if forced else 1, getattr(jax.config, "jax_num_cpu_devices", 1))
    if several_processes or devices > 1:
        os.environ.setdefault("NPROC", str(max(_ENOUGH, 2 * devices, os.cpu_count() or 1)))
