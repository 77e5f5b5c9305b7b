"""Processes that do not come, or are gone, are one line and end the others."""

import contextlib
import socket
import subprocess
import sys
import threading

import pytest

from tests.children import ENVIRONMENT, ROOT
from vlm_jax.errors import ConfigError
from vlm_jax.parallel import watch


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def test_a_process_0_that_is_not_there_is_one_line():
    place = f"localhost:{free_port()}"
    with pytest.raises(ConfigError, match=f"Process 0 cannot be reached at --coordinator={place}"):
        watch.meet(place, 2, 1, seconds=0.3)
    with pytest.raises(ConfigError, match="cannot be reached"):
        watch.meet("no.such.host.invalid:7", 2, 1, seconds=0.0)


def test_a_port_that_is_taken_is_one_line():
    with socket.create_server(("", 0)) as taken:
        place = f"localhost:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=r"Port \d+ of --coordinator=.* cannot be used here"):
            watch.meet(place, 2, 0, seconds=0.3)


def test_a_process_that_does_not_come_is_named():
    with pytest.raises(ConfigError, match=r"Of 3 processes 1, 2 did not come .* within 0.3 s"):
        watch.meet(f"localhost:{free_port()}", 3, 0, seconds=0.3)


def test_numbers_that_do_not_fit_are_refused():
    place, said = f"localhost:{free_port()}", []

    def other() -> None:
        with contextlib.suppress(ConfigError):
            watch.meet(place, 3, 1, seconds=5.0)

    def first() -> None:
        try:
            watch.meet(place, 2, 0, seconds=5.0)
        except ConfigError as error:
            said.append(str(error))

    threads = [threading.Thread(target=one) for one in (first, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said[0].startswith("A process came with --num_processes=3 --process_id=1")


@pytest.mark.parametrize("killed", [0, 1])
def test_the_others_end_when_one_is_killed(killed):
    place = f"localhost:{free_port()}"
    command = [sys.executable, "-m", "tests.parallel.waiting", place]
    started = [
        subprocess.Popen(
            [*command, str(n), *(["sleep"] if n == killed else [])],
            cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for n in range(2)
    ]  # fmt: skip
    try:
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "met\n"
        started[killed].kill()
        _, said = started[1 - killed].communicate(timeout=60)
    finally:
        for process in started:
            process.kill()
            process.communicate()
    assert started[1 - killed].returncode == 1
    lines = [line for line in said.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, said
    assert lines[0].startswith(f"error: process {killed} is gone")
    assert "Traceback" not in said
