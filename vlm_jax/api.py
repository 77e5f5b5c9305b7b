"""The front door for Python: load a folder, generate, read logits."""

import concurrent.futures
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vlm_jax import checkpoint
from vlm_jax.attention.steering import Readings, Steering
from vlm_jax.batch import Batch
from vlm_jax.config import VLMConfig
from vlm_jax.decoding import Generator, Sampling
from vlm_jax.errors import PromptError
from vlm_jax.models import Params, abstract
from vlm_jax.parallel import make_mesh, param_shardings
from vlm_jax.processing import ImageSource, Processor
from vlm_jax.processing.buckets import bucket

LOOKAHEAD = 2
"""Batches whose images are decoded and resized on the host while the device works."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """One sample's generated text.

    Attributes:
        index: which sample of the call.
        text: without special tokens.
        tokens: generated ids, the stop id left out.
        ended: whether the model stopped by itself (not at the limit).
        readings: with steering, each reading's mean over the decode rows, leaves [L, N].
    """

    index: int
    text: str
    tokens: tuple[int, ...]
    ended: bool
    readings: Readings | None = None


class VLM:
    """A model, its words and pixels, on a mesh.

    Args:
        config: the architecture.
        params: parameters by path, on the mesh.
        processor: the folder's tokenizer and image processor.
        mesh: (`data`, `model`) mesh.

    Attributes:
        generator: the compiled programs, shared by edited copies (`with_params`).
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

    def with_params(self, params: Params) -> "VLM":
        """Returns the same model with other weights; nothing is compiled again."""
        # Arithmetic on arrays may spell an equal sharding differently, which jit would recompile.
        placed = {path: jax.device_put(params[path], a.sharding) for path, a in self.params.items()}
        return VLM(self.config, placed, self.processor, self.mesh, self.generator)

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
        return [answer.text for answer in sorted(answers, key=lambda answer: answer.index)]

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
    ) -> Iterator[Answer]:
        """As `generate`, yielding each answer as its batch is done, for long runs.

        Args:
            sampling: how tokens are chosen; greedy by default.
            logit_bias: float32 [V], added to the logits at every step.
            steering: what to do to attention, the same for all samples (leaves [1, L, N]).
        """
        _check(images, prompts, max_new_tokens)
        rows = self._rows(len(prompts), batch_size)
        starts = range(0, len(prompts), rows)
        with concurrent.futures.ThreadPoolExecutor(LOOKAHEAD) as pool:
            prepare = lambda start: pool.submit(
                self._prepare, images, prompts, start, rows, max_new_tokens
            )
            pending = [prepare(start) for start in starts[:LOOKAHEAD]]
            for number, start in enumerate(starts):
                batch = pending.pop(0).result()
                if number + LOOKAHEAD < len(starts):
                    pending.append(prepare(starts[number + LOOKAHEAD]))
                real = min(rows, len(prompts) - start)
                generated = self.generator(
                    self.params,
                    batch,
                    max_new_tokens=max_new_tokens,
                    slots=bucket(max_new_tokens),
                    stop_ids=self.processor.stop_ids,
                    pad_id=self.processor.pad_id,
                    sampling=sampling,
                    row_ids=range(start, start + rows),
                    logit_bias=logit_bias,
                    steering=steering,
                )
                texts = self.processor.decode(generated.tokens_bn, generated.lengths_b)
                for row in range(real):
                    length = int(generated.lengths_b[row])
                    yield Answer(
                        start + row,
                        texts[row],
                        tuple(generated.tokens_bn[row, :length].tolist()),
                        bool(generated.ended_b[row]),
                        jax.tree.map(lambda leaf, row=row: leaf[row], generated.readings),
                    )

    def logits(
        self, images: Sequence[Sequence[ImageSource]] | None, prompts: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Reads prompts without generating.

        Returns:
            Float32 logits [B, T, V], T the longest prompt's length (what lies beyond a shorter
            prompt means nothing), and the int32 lengths [B].
        """
        _check(images, prompts, 1)
        rows = self._rows(len(prompts), len(prompts))
        batch = self._prepare(images, prompts, 0, rows, 0)
        lengths = np.asarray(batch.lengths_b)[: len(prompts)]
        logits = jax.device_get(self.generator.logits(self.params, batch))
        return logits[: len(prompts), : lengths.max()], lengths

    def _rows(self, samples: int, batch_size: int | None) -> int:
        """Rows of a batch: a power of two (few programs) and a multiple of the data axis."""
        default = 8 if jax.default_backend() == "cpu" else 32
        wanted = default if batch_size is None else batch_size
        if wanted < 1:
            raise PromptError(f"batch_size must be at least 1, not {batch_size}.")
        rows = min(wanted, 1 << (samples - 1).bit_length())
        data = self.mesh.shape["data"]
        return -(-rows // data) * data

    def _prepare(self, images, prompts, start: int, rows: int, new_tokens: int) -> Batch:
        """Makes a batch of exactly `rows` rows, the last sample repeated to fill it."""
        picked = [min(index, len(prompts) - 1) for index in range(start, start + rows)]
        return self.processor.batch(
            None if images is None else [images[index] for index in picked],
            [prompts[index] for index in picked],
            max_length=max(self.config.decoder.max_positions - new_tokens, 1),
            first_sample=start,
        )


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
) -> VLM:
    """Loads a model folder, converted or as published on the Hugging Face hub.

    Args:
        folder: the folder.
        dtype: of the weights and activations ("float32", "bfloat16"); float32 on CPU and bfloat16
            elsewhere by default. Softmax, norms and logits are float32 always.
        mesh: where to put it; all devices as data replicas by default.

    Raises:
        CheckpointError, ConfigError: naming what is wrong with the folder.
    """
    source = checkpoint.open_folder(pathlib.Path(folder))
    mesh = mesh or make_mesh()
    dtype = dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    shardings = param_shardings(abstract(source.config)[1], mesh)
    params = source.load(jnp.dtype(dtype), shardings)
    return VLM(source.config, params, Processor.from_folder(folder, source.config), mesh)
