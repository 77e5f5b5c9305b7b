"""Answers a call of a model: its treatments and the call's arguments become one run of `answering`.

`VLM.answer`, `VLM.generate` and `VLM.logits` call this.
"""

import contextlib
import copy
import dataclasses
import logging
from collections.abc import Iterator, Sequence

import numpy as np

from vlm_jax import answering
from vlm_jax.answering import Answer, Asking, Failure
from vlm_jax.attention.steering import Reallocation, Steering
from vlm_jax.decoding.search import Search
from vlm_jax.decoding.strategies import Strategy
from vlm_jax.errors import ConfigError, PromptError, UserError
from vlm_jax.processing import ImageSource
from vlm_jax.steering.combine import identity_like, merge
from vlm_jax.treatments import Reranked, Steered, TreatedModel, TwoPasses, bias_of, strategy_of

ImageLists = Sequence[Sequence[ImageSource]] | None
"""A list of images a sample; None where no sample has any."""

_log = logging.getLogger(__name__)


def answer(
    model: TreatedModel, images: ImageLists, prompts: Sequence[str], asked: Asking
) -> Iterator[Answer | Failure]:
    """Yields answers as their batches are done; see `VLM.answer`.

    Args:
        model: its treatments act besides what is asked.
        images, prompts: as many lists of images as prompts.
        asked: what the call wants.

    Raises:
        PromptError: images and prompts do not go together, or a sample cannot be read and
            `asked.on_error` is "raise".
        ConfigError: the call and a treatment set the same thing.
    """
    check_samples(images, prompts)
    if asked.on_error not in ("raise", "yield"):
        raise ValueError(f"on_error must be 'raise' or 'yield', not {asked.on_error!r}.")
    asked = dataclasses.replace(
        asked,
        settings=asked.settings.following(model.processor.generation),
        steering=all_steering(model, asked.steering),
        strategy=_one_strategy(model, asked.strategy),
        logit_bias=_sum(asked.logit_bias, bias_of(model.treatments)),
    )
    for one in (one for one in model.treatments if isinstance(one, TwoPasses)):
        untreated = copy.copy(model)
        untreated.treatments, untreated.steering = (), None
        wanted = {field.name: getattr(asked, field.name) for field in dataclasses.fields(asked)}
        del wanted["told"]  # the first of two passes is nobody's answer
        return one.answer(untreated, images, prompts, **wanted)
    engine = answering.Engine(
        model.generator, model.params, model.processor, model.prefixes, model.images, model.buckets
    )
    for one in (one for one in model.treatments if isinstance(one, Reranked)):
        if asked.strategy is not None or asked.logit_bias is not None:
            raise ConfigError(
                f"method {one.method!r} ranks what the model itself draws: it takes neither a "
                "strategy nor a bias of logits."
            )
        return answering.answer_hosted(
            engine,
            [list(own) for own in images or [[]] * len(prompts)],
            prompts,
            asked.settings,
            one.reranker,
            asked.steering,
            asked.streams,
            asked.on_error,
        )
    contrast = asked.contrast
    if contrast is not None and (brought := contrast.steering(model.config)) is not None:
        named = [] if asked.steering is None else [("steering", asked.steering)]
        asked = dataclasses.replace(asked, steering=merge([*named, (contrast.name, brought)]))
    return answering.answer(engine, images, prompts, asked)


def logits(
    model: TreatedModel, images: ImageLists, prompts: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns float32 logits [B, T, V] of prompts and their int32 lengths [B]; see `VLM.logits`.

    Raises:
        PromptError: images and prompts do not go together, or a sample cannot be read.
    """
    check_samples(images, prompts)
    rows = answering.batch_rows(len(prompts), len(prompts), model.mesh.shape["data"])
    fill = lambda samples: [*samples, *samples[-1:] * (rows - len(prompts))]
    batch = model.processor.batch(None if images is None else fill(images), fill(prompts))
    lengths = np.asarray(batch.lengths_b)[: len(prompts)]
    found = model.generator.logits(model.params, batch, model.steering)
    return found[: len(prompts), : lengths.max()], lengths


def room(model: TreatedModel, images: ImageLists, prompts: Sequence[str], wanted: int) -> int:
    """Returns how many tokens answers may have: what is wanted, or what there is room for.

    A model of 256 positions, asked for 256 tokens after prompts of 61 and 70 tokens, has room for
    186. What is cut is logged. Samples that cannot be read, or leave no room at all, fail on their
    own later.

    Args:
        model: is asked.
        images, prompts: what it is asked.
        wanted: `max_new_tokens`; half of the model's positions are never cut.
    """
    positions = model.config.decoder.max_positions
    if wanted <= positions // 2:
        return wanted
    longest = 0
    for index, prompt in enumerate(prompts):
        group = None if images is None else [list(images[index])]
        with contextlib.suppress(UserError):
            (draft,) = model.processor.drafts(group, [prompt])
            longest = max(longest, draft.length if draft.length < positions else 0)
    left = positions - longest
    if wanted > left:
        _log.warning(
            "max_new_tokens=%d is cut to %d: the model has %d positions, of which the longest "
            "prompt takes %d.",
            wanted,
            left,
            positions,
            longest,
        )
    return min(wanted, left)


def check_samples(images: ImageLists, prompts: Sequence[str]) -> None:
    """Refuses prompts that are no list, and lists of images that are not one a prompt.

    Raises:
        PromptError: saying how many there are.
    """
    if isinstance(prompts, str) or not len(prompts):
        raise PromptError("prompts must be a list of at least one string.")
    if images is not None and len(images) != len(prompts):
        raise PromptError(
            f"There are {len(images)} lists of images for {len(prompts)} prompts; give each prompt "
            "its own list, empty where it has no image."
        )


def reading_masses(model: TreatedModel) -> Steering | None:
    """Returns steering that changes nothing and has masses read; None if the model reads them."""
    if model.steering is not None and model.steering.reallocation is not None:
        return None
    shape = 1, model.config.decoder.num_layers, model.config.decoder.num_heads
    blank = np.ones(shape, np.float32)
    return Steering(reallocation=identity_like(Reallocation(blank, blank, blank)))


def all_steering(model: TreatedModel, steering: Steering | None) -> Steering | None:
    """Returns a call's steering with the model's own; None if there is neither.

    Raises:
        ConfigError: both set the same part.
    """
    if model.steering is None or steering is None:
        return steering if model.steering is None else model.steering
    names = " and ".join(one.method for one in model.treatments if isinstance(one, Steered))
    return merge([(names, model.steering), ("steering", steering)])


def _one_strategy(
    model: TreatedModel, strategy: Strategy | Search | None
) -> Strategy | Search | None:
    """Returns a call's strategy, or the model's own."""
    own = strategy_of(model.treatments)
    if own is not None and strategy is not None:
        raise ConfigError(
            f"this model is treated by {own.name!r} already; call one that is not with "
            f"strategy={strategy.name!r}."
        )
    return strategy if own is None else own


def _sum(one: np.ndarray | None, other: np.ndarray | None) -> np.ndarray | None:
    return other if one is None else one if other is None else one + other
