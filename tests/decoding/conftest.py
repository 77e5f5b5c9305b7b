"""A small batch with images, answered greedily once, shared by the tests of this room."""

import dataclasses

import numpy as np
import pytest

from tests.reference import IMAGES, PROMPTS
from vlm_jax.batch import Batch
from vlm_jax.decoding import DecodeSettings, Generated

SLOTS = 16


@dataclasses.dataclass(frozen=True)
class Asked:
    """Two samples, the batch of their prompts and their greedy answers without stop ids."""

    images: list
    prompts: list[str]
    batch: Batch
    greedy: Generated


def generate(vlm, batch: Batch, **options) -> Generated:
    """The generator with defaults that all tests here share, so that they share programs too."""
    names = [field.name for field in dataclasses.fields(DecodeSettings)]
    changes = {name: options.pop(name) for name in names if name in options}
    settings = DecodeSettings(**{"max_new_tokens": SLOTS} | changes)
    options = {"slots": SLOTS, "pad_id": 3} | options
    return vlm.generator(vlm.params, batch, settings, **options)


@pytest.fixture(scope="session")
def asked(vlm) -> Asked:
    """The tiny model of each family in turn."""
    images, prompts = [IMAGES[0], IMAGES[2]], [PROMPTS[0], PROMPTS[2]]
    batch = vlm.processor.batch(images, prompts)
    greedy = generate(vlm, batch)
    assert np.all(greedy.lengths_b == SLOTS)
    assert not greedy.ended_b.any()
    return Asked(images, prompts, batch, greedy)
