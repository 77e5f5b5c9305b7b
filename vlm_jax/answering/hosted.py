"""Answers by a method that acts on the host, between calls of the model: one prompt at a time."""

from collections.abc import Iterator, Sequence

from vlm_jax.answering.corrected import correcting
from vlm_jax.answering.loop import Answer, Engine
from vlm_jax.answering.meeting import Failure
from vlm_jax.answering.ranked import ranking
from vlm_jax.attention.steering import Steering
from vlm_jax.decoding import DecodeSettings
from vlm_jax.decoding.rerankers import HostMethod, Reranker
from vlm_jax.decoding.rerankers.halc import HALC
from vlm_jax.errors import PromptError
from vlm_jax.processing import ImageSource


def answer_hosted(
    engine: Engine,
    images: Sequence[Sequence[ImageSource]],
    prompts: Sequence[str],
    settings: DecodeSettings,
    method: HostMethod,
    steering: Steering | None = None,
    streams: Sequence[int] | None = None,
    on_error: str = "raise",
) -> Iterator[Answer | Failure]:
    """Yields the answers to prompts, in their order.

    Args:
        engine: the model.
        images, prompts: see `VLM.answer`.
        settings: of decoding, as far as the method leaves them to its user.
        method: how answers come about.
        steering: leaves [1, L, N].
        streams: what seeds each sample's draws; its index by default.
        on_error: see `VLM.answer`.

    Raises:
        PromptError: a sample has not one image, or cannot be read, and `on_error` is "raise".
        ConfigError: the settings do not go with the method, or its functions return what cannot be.
    """
    if isinstance(method, Reranker):
        question = ranking(engine, settings, method, steering)
    else:
        assert isinstance(method, HALC)
        question = correcting(engine, settings, method, steering)
    for index, (own, prompt) in enumerate(zip(images, prompts)):
        seed = index if streams is None else streams[index]
        try:
            yield question(images=own, prompt=prompt, index=index, seed=seed).answer()
        except PromptError as error:
            if on_error == "raise":
                raise
            yield Failure(index, str(error))
