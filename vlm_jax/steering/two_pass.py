"""Functional heads in two passes: classes from the unsteered prompt, gains in a run of their own.

In one pass a layer's ratios are read on a stream that shallower gains have changed already. Here
each example's classes come from an unsteered reading of its prompt and hold for its whole answer.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from vlm_jax.attention.steering import HeadGains, Readings, Steering
from vlm_jax.steering.functional import Classes, classifier


class Model(Protocol):
    """What is needed of a model; `vlm_jax.VLM` is one."""

    mesh: Any

    def answer(self, images: Any, prompts: Any, **settings: Any) -> Iterator[Any]:
        """See `vlm_jax.VLM.answer`."""
        ...


def answer_in_two_passes(
    model: Model,
    images: Sequence[Sequence[Any]],
    prompts: Sequence[str],
    classes: Classes,
    *,
    rows: str = "q",
    batch_size: int = 8,
    **settings: Any,
) -> Iterator[Any]:
    """Answers prompts as `VLM.answer` does, heads gained by the classes of an unsteered pass.

    Args:
        model: the model.
        images, prompts: samples.
        classes: thresholds and gains (`functional.read_classes`).
        rows: whose attention is read; see `VisualGains`.
        batch_size: samples read at once, rounded up to the mesh's data axis.
        settings: other settings of `VLM.answer`.

    Yields:
        Answers, in order.
    """
    data = model.mesh.shape["data"]
    size = -(-batch_size // data) * data
    read = classifier(classes, rows)
    for start in range(0, len(prompts), size):
        # Whole batches, so that row n of the steering is row n of the batch.
        picked = [min(start + row, len(prompts) - 1) for row in range(size)]
        asked = [images[index] for index in picked], [prompts[index] for index in picked]
        first = {**settings, "max_new_tokens": 1, "steering": read, "batch_size": size}
        seen = sorted(model.answer(*asked, **first), key=lambda answer: answer.index)
        gain_bln = np.stack([prefill_gains(classes, answer.readings) for answer in seen])
        steering = Steering(head_gains=HeadGains(gain_bln))
        made = model.answer(*asked, **settings, steering=steering, batch_size=size)
        for answer in made:
            if start + answer.index < len(prompts):
                yield dataclasses.replace(answer, index=start + answer.index)


def prefill_gains(classes: Classes, readings: Readings) -> np.ndarray:
    """Returns float32 gains [L, N] from the readings of one example's prompt."""
    perception = np.asarray(readings.perception_bn) > 0.5
    reasoning = np.asarray(readings.reasoning_bn) > 0.5
    gain_ln = np.where(reasoning, classes.reasoning_gain, classes.neutral_gain)
    return np.where(perception, classes.perception_gain, gain_ln).astype(np.float32)
