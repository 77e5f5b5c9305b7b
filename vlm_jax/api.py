"""The front door for Python: load a folder, generate, read logits."""

import os
import pathlib
from collections.abc import Hashable, Iterator, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vlm_jax import answering, checkpoint
from vlm_jax.answering import Answer, DeviceStore, Failure
from vlm_jax.attention.steering import Steering
from vlm_jax.batch import Batch
from vlm_jax.config import VLMConfig
from vlm_jax.decoding import Generator, Sampling
from vlm_jax.errors import PromptError
from vlm_jax.models import Params, Prefix, abstract
from vlm_jax.parallel import fetch, make_mesh, param_shardings
from vlm_jax.processing import MAX_IMAGE_PIXELS, ImageSource, Processor


class VLM:
    """A model, its words and pixels, on a mesh.

    Args:
        config: the architecture.
        params: parameters by path, on the mesh.
        processor: the folder's tokenizer and image processor.
        mesh: (`data`, `model`) mesh.

    Attributes:
        generator: the compiled programs, shared by edited copies (`with_params`).
        prefixes: prompts through their last image that earlier calls have read; none are kept
            until `keep_prefixes` gives them room.
        images: the features of these prompts' images, likewise, shared with copies whose decoder
            alone was edited.
        buckets: static sizes that calls have met so far; each has its programs.
    """

    def __init__(
        self,
        config: VLMConfig,
        params: Params,
        processor: Processor,
        mesh: Mesh,
        generator: Generator | None = None,
    ):
        self.config, self.params, self.processor, self.mesh = config, params, processor, mesh
        self.generator = generator or Generator(config, mesh)
        self.prefixes: DeviceStore[Prefix] = DeviceStore()
        self.images: DeviceStore[Batch] = DeviceStore()
        self.buckets: set[Hashable] = set()

    def keep_prefixes(self, limit_bytes: int) -> None:
        """Keeps what is read of prompts through their last image for later calls.

        Calls that differ in their questions, logit biases or in steering of the rows behind an
        image then decode and read each image once. Copies of the model whose decoder was edited
        read those rows anew, from what the tower made of the images here.

        Args:
            limit_bytes: device memory that these rows' keys and values may take, and the images'
                features as well; a copy takes it for keys and values again.
        """
        self.prefixes, self.images = DeviceStore(limit_bytes), DeviceStore(limit_bytes)

    def with_params(self, params: Params) -> "VLM":
        """Returns the same model with other weights; nothing is compiled again."""
        # Arithmetic on arrays may spell an equal sharding differently, which jit would recompile.
        placed = {path: jax.device_put(params[path], a.sharding) for path, a in self.params.items()}
        other = VLM(self.config, placed, self.processor, self.mesh, self.generator)
        other.keep_prefixes(self.prefixes.limit_bytes)
        if all(params[path] is a or path.startswith("decoder/") for path, a in self.params.items()):
            other.images = self.images
        other.buckets = self.buckets
        return other

    def generate(
        self,
        images: Sequence[Sequence[ImageSource]] | None,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> list[str]:
        """Answers prompts.

        Args:
            images: per sample, a list of PIL images or paths (None: no sample has any).
            prompts: per sample, the user's turn; it goes through the folder's chat template.
            max_new_tokens: limit of each answer.
            temperature: 0 is greedy.
            top_k, top_p, seed: see `vlm_jax.decoding.Sampling`.
            batch_size: samples read at once; 8 on CPU and 32 elsewhere by default.

        Returns:
            The answers, without special tokens.

        Raises:
            PromptError: naming the sample, and the file where one is to blame.
        """
        sampling = Sampling(temperature, top_k, top_p, seed)
        answers = self.answer(
            images, prompts, max_new_tokens=max_new_tokens, sampling=sampling, batch_size=batch_size
        )
        texts = {made.index: made.text for made in answers if isinstance(made, Answer)}
        return [texts[index] for index in range(len(prompts))]

    def answer(
        self,
        images: Sequence[Sequence[ImageSource]] | None,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 128,
        sampling: Sampling | None = None,
        batch_size: int | None = None,
        logit_bias: np.ndarray | None = None,
        steering: Steering | None = None,
        share_prefix: bool = True,
        on_error: Literal["raise", "yield"] = "raise",
        streams: Sequence[int] | None = None,
    ) -> Iterator[Answer | Failure]:
        """As `generate`, yielding each `Answer` as its batch is done, in any order, for long runs.

        Args:
            sampling: how tokens are chosen; greedy by default.
            logit_bias: float32 [V], added to the logits at every step.
            steering: what to do to attention: leaves [1, L, N], the same for all samples, or
                [samples, L, N].
            share_prefix: read what questions begin with, through their last image, once for all
                questions on it. Greedy answers to equal questions are made once in any case.
            on_error: "raise" stops at a sample that cannot be read; "yield" gives a `Failure` in
                place of its answer.
            streams: what seeds each sample's random stream; its index by default. Samples keep
                their draws when a part of a longer list is asked.
        """
        _check(images, prompts, max_new_tokens)
        if on_error not in ("raise", "yield"):
            raise ValueError(f"on_error must be 'raise' or 'yield', not {on_error!r}.")
        settings = answering.Settings(
            max_new_tokens,
            sampling or Sampling(),
            _batch_size(batch_size),
            logit_bias,
            steering,
            share_prefix,
            on_error,
            streams,
        )
        reader = answering.Reader(
            self.generator, self.params, self.processor, self.prefixes, self.images, self.buckets
        )
        return answering.answer(reader, images, prompts, settings)

    def logits(
        self, images: Sequence[Sequence[ImageSource]] | None, prompts: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Reads prompts without generating.

        Returns:
            Float32 logits [B, T, V], T the longest prompt's length (what lies beyond a shorter
            prompt means nothing), and the int32 lengths [B].
        """
        _check(images, prompts, 1)
        rows = answering.batch_rows(len(prompts), len(prompts), self.mesh.shape["data"])
        fill = lambda samples: [*samples, *samples[-1:] * (rows - len(prompts))]
        batch = self.processor.batch(None if images is None else fill(images), fill(prompts))
        lengths = np.asarray(batch.lengths_b)[: len(prompts)]
        logits = fetch(self.generator.logits(self.params, batch), self.mesh)
        return logits[: len(prompts), : lengths.max()], lengths


def _batch_size(asked: int | None) -> int:
    if asked is None:
        return 8 if jax.default_backend() == "cpu" else 32
    if asked < 1:
        raise PromptError(f"batch_size must be at least 1, not {asked}.")
    return asked


def _check(images, prompts, max_new_tokens: int) -> None:
    if isinstance(prompts, str) or not len(prompts):
        raise PromptError("prompts must be a list of at least one string.")
    if images is not None and len(images) != len(prompts):
        raise PromptError(
            f"There are {len(images)} lists of images for {len(prompts)} prompts; give each prompt "
            "its own list, empty where it has no image."
        )
    if max_new_tokens < 1:
        raise PromptError(f"max_new_tokens must be at least 1, not {max_new_tokens}.")


def load(
    folder: str | os.PathLike,
    *,
    dtype: str | None = None,
    mesh: Mesh | None = None,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
) -> VLM:
    """Loads a model folder, converted or as published on the Hugging Face hub.

    Args:
        folder: the folder.
        dtype: of the weights and activations ("float32", "bfloat16"); float32 on CPU and bfloat16
            elsewhere by default. Softmax, norms and logits are float32 always.
        mesh: where to put it; all devices as data replicas by default.
        max_image_pixels: images of more pixels, as they are or once resized, are refused.

    Raises:
        CheckpointError, ConfigError: naming what is wrong with the folder.
    """
    source = checkpoint.open_folder(pathlib.Path(folder))
    mesh = mesh or make_mesh()
    dtype = dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    shardings = param_shardings(abstract(source.config)[1], mesh)
    params = source.load(jnp.dtype(dtype), shardings)
    processor = Processor.from_folder(folder, source.config, max_image_pixels=max_image_pixels)
    return VLM(source.config, params, processor, mesh)
