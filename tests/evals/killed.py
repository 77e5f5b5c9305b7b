"""Run as a module: a slow run over a fake benchmark, to be killed at any moment.

Writes go to disk in two halves with a pause between, and so do renames, so that a kill finds lines
that are cut short and files that have not got their names.
"""

import os
import pathlib
import sys
import time

from tests.evals.fakes import COUNT, FakeModel, Numbers
from vlm_jax.evals import answer_log, runner

PAUSE = 0.001


def main(path: str) -> None:
    write, replace = os.write, os.replace

    def slow_write(file: int, data: bytes) -> int:
        half = len(data) // 2
        done = write(file, data[:half])
        time.sleep(PAUSE)
        return done + write(file, data[half:])

    def slow_replace(source, target) -> None:
        time.sleep(5 * PAUSE)
        replace(source, target)
        time.sleep(5 * PAUSE)

    os.write, os.replace = slow_write, slow_replace
    answer_log.SYNC_SECONDS = 0.01
    found = runner.run(
        FakeModel(fails={5, 31}, shuffled=True),
        Numbers(),
        pathlib.Path(path),
        identity={"model": "fake"},
        max_failures=3,
    )
    assert len(found.judged) == COUNT - 2


if __name__ == "__main__":
    main(*sys.argv[1:])
