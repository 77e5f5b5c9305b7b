"""Counts what XLA compiles, and forgets it."""

import contextlib
import gc
import pathlib
from collections.abc import Iterator

import jax

_MAPS = pathlib.Path("/proc/self/maps")


@contextlib.contextmanager
def counted() -> Iterator[list[str]]:
    """Yields a list that grows by one with each compilation inside the block."""
    events: list[str] = []

    def listen(event: str, duration: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def forget_many() -> None:
    """Drops compiled programs once there are many.

    XLA's CPU backend takes hundreds of memory maps for a program. Linux allows a process 65,530,
    past which XLA crashes; the programs of all tests together come there.
    """
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
        gc.collect()
