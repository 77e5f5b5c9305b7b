"""A shipped model, which answers in words and has the heads of `--job=identify` beside it."""

import pytest

import vlm_jax
from vlm_jax.testbed.suites.testbed_chair import TestbedChair


@pytest.fixture(scope="session")
def shipped_llava():
    """The shipped LLaVA, as users load it."""
    return vlm_jax.load("llava-0")


@pytest.fixture(scope="session")
def scenes():
    """Three drawn scenes as PIL images."""
    return [example.images[0] for example in TestbedChair(count=3).examples()]
