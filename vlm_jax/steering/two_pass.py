"""Functional heads in two passes: classes from the unsteered prompt, gains in a run of their own.

In one pass a layer's ratios are read on a stream that shallower gains have changed already. Here
each example's classes come from an unsteered reading of its prompt and hold for its whole answer.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from vlm_jax.attention.steering import HeadGains, Readings, Steering, VisualGains
from vlm_jax.errors import ConfigError

_SAMPLES = 256  # read ahead of their answers


class ReadingModel(Protocol):
    """What is needed of a model; `vlm_jax.VLM` is one."""

    @property
    def answer(self) -> Callable[..., Iterator[Any]]:
        """See `vlm_jax.VLM.answer`."""
        ...


def answer_in_two_passes(
    model: ReadingModel,
    images: Sequence[Sequence[Any]] | None,
    prompts: Sequence[str],
    *,
    steering: Steering,
    streams: Sequence[int] | None = None,
    **settings: Any,
) -> Iterator[Any]:
    """Answers prompts as `VLM.answer` does, heads gained by the classes of an unsteered pass.

    Args:
        model: reads every prompt unsteered before it answers.
        images, prompts, streams: see `VLM.answer`.
        steering: leaves [1, L, N], `visual_gains` among its parts.
        settings: other settings of `VLM.answer`.

    Yields:
        Answers; their readings say the classes that the first pass found.

    Raises:
        ConfigError: the steering reads no classes.
    """
    if steering.visual_gains is None:
        raise ConfigError(
            "two passes need gains by class; a control with fixed gains, or another method, runs "
            "in one."
        )
    number = streams or range(len(prompts))
    for start in range(0, len(prompts), _SAMPLES):
        picked = list(range(start, min(start + _SAMPLES, len(prompts))))
        yield from _answer(model, images, prompts, steering, picked, number, settings)


def _answer(model, images, prompts, steering, picked, number, settings) -> Iterator[Any]:
    """Answers some of the prompts."""
    part: VisualGains = steering.visual_gains
    ask = lambda samples: (
        None if images is None else [images[n] for n in samples],
        [prompts[n] for n in samples],
    )
    found_in = {}
    first = {**settings, "max_new_tokens": 1, "steering": unit_gains(part)}
    for found in model.answer(*ask(picked), **first):
        if hasattr(found, "readings"):
            found_in[picked[found.index]] = found.readings
        else:
            yield dataclasses.replace(found, index=picked[found.index])
    samples = sorted(found_in)
    if not samples:
        return
    gain_bln = np.stack([class_gains(part, found_in[n]) for n in samples])
    if steering.head_gains is not None:
        gain_bln = gain_bln * np.asarray(steering.head_gains.gain)
    second = dataclasses.replace(
        steering, visual_gains=None, head_gains=HeadGains(gain_bln.astype(np.float32))
    )
    options = {**settings, "steering": second, "streams": [number[n] for n in samples]}
    for answer in model.answer(*ask(samples), **options):
        index = samples[answer.index]
        if hasattr(answer, "readings"):
            classes = {name: getattr(found_in[index], name) for name in _CLASSES}
            readings = dataclasses.replace(answer.readings, **classes)
            answer = dataclasses.replace(answer, readings=readings)
        yield dataclasses.replace(answer, index=index)


_CLASSES = ("perception_bn", "reasoning_bn")


def unit_gains(part: VisualGains) -> Steering:
    """Returns a steering that reads the same classes and changes nothing."""
    ones = np.ones(np.shape(part.perception_gain), np.float32)
    return Steering(
        visual_gains=dataclasses.replace(
            part, perception_gain=ones, reasoning_gain=ones, mode="dynamic"
        )
    )


def class_gains(part: VisualGains, readings: Readings) -> np.ndarray:
    """Returns float32 gains [L, N] from the readings of one example's prompt."""
    perception, reasoning = (np.asarray(getattr(readings, name)) > 0.5 for name in _CLASSES)
    gain_ln = np.where(reasoning, np.asarray(part.reasoning_gain)[0], 1.0)
    return np.where(perception, np.asarray(part.perception_gain)[0], gain_ln).astype(np.float32)
