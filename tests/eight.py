"""A process with eight host devices, which runs functions for the tests of meshes.

The number of host devices is fixed when jax starts, and a start takes seconds: all tests of a
session share one process, and what it has compiled.

    eight(answers, folder, 2, 4)  # tests.parallel.answers.answers(folder, 2, 4), over there
"""

import contextlib
import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

from tests import children

DEVICES = 8
ENVIRONMENT = children.ENVIRONMENT | {
    "XLA_FLAGS": os.environ.get("XLA_FLAGS", "")
    + f" --xla_force_host_platform_device_count={DEVICES}",
    # XLA's pool needs room for all devices to wait for one another.
    "NPROC": str(2 * DEVICES),
    "OPENBLAS_NUM_THREADS": "1",
}


class Eight:
    """Calls functions of test modules in the process."""

    def __init__(self, process: multiprocessing.Process, pipe: Connection):
        self._process, self._pipe = process, pipe

    def __call__(self, function: Callable, *args: Any, timeout: float = 280) -> Any:
        """Returns what the function returns there; its error is raised here with its traceback."""
        self._pipe.send((function, args))
        if not self._pipe.poll(timeout):
            self._process.kill()
            raise TimeoutError(f"{function.__name__} took longer than {timeout} s: a deadlock?")
        worked, result = self._pipe.recv()
        assert worked, f"{function.__name__} failed on eight devices:\n{result}"
        return result


@contextlib.contextmanager
def started() -> Iterator[Eight]:
    """Yields the process with eight devices, and ends it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    with mock.patch.dict(os.environ, ENVIRONMENT):
        process.start()
    theirs.close()  # so that its end is seen here
    try:
        yield Eight(process, ours)
    finally:
        ours.close()
        process.join(10)
        process.kill()


def _serve(pipe: Connection) -> None:
    import jax

    from tests.compiles import forget_many

    assert jax.device_count() == DEVICES, jax.devices()
    with contextlib.suppress(EOFError):  # the tests are over
        while True:
            function, args = pipe.recv()
            try:
                pipe.send((True, function(*args)))
            except BaseException:
                pipe.send((False, traceback.format_exc()))
            forget_many()
