"""The reference's numbers again, from programs that are compiled as users compile them."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("room", ["attention", "families", "models"])
def test_a_room_passes_with_every_optimisation(room):
    command = ["pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", f"tests/{room}"]
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
