"""One ragged batch of several odd images through both models, shared by the tests of this room."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.reference import IMAGES, PROMPTS, prompt_ids
from vlm_jax.batch import Batch
from vlm_jax.decoding import Generator


@dataclasses.dataclass(frozen=True)
class Read:
    """A batch, our logits [B, T, V] and the reference's, per sample [T, V]."""

    batch: Batch
    ours: np.ndarray
    theirs: list[np.ndarray]


def error(ours: np.ndarray, theirs: list[np.ndarray]) -> float:
    """The largest difference over the real places of all samples."""
    return max(np.abs(row[: len(t)] - t).max() for row, t in zip(ours, theirs))


def forward(vlm, batch, config=None) -> np.ndarray:
    """Our logits, optionally of another architecture with the same parameters."""
    generator = vlm.generator if config is None else Generator(config, vlm.mesh)
    return jax.device_get(generator.logits(vlm.params, batch))


@pytest.fixture(scope="session")
def read(vlm, reference) -> Read:
    """The tiny model of each family in turn."""
    batch = vlm.processor.batch(IMAGES, PROMPTS)
    theirs = [reference.logits(prompt_ids(batch, i), IMAGES[i]) for i in range(len(PROMPTS))]
    return Read(batch, forward(vlm, batch), theirs)
