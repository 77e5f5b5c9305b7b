"""Tests again, in a process whose programs are compiled as users compile them."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def passes(*words: str) -> None:
    """Runs tests with every optimisation of the compiler."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("which", ["neutral and llava", pytest.param("", marks=pytest.mark.slow)])
def test_programs_that_should_give_the_same_bits_do(which):
    passes("-m", "bits", "-k", which, "tests/decoding/test_steered.py")


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("room", "which"),
    [("attention", "float32"), ("families", "logits"), ("models", "reference")],
)
def test_a_room_gives_the_numbers_of_the_reference(room, which):
    passes("-m", "not slow", "-k", which, f"tests/{room}")
