"""Answers put together of segments: the device draws continuations, a reranker keeps some."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vlm_jax.answering.loop import Answer, Engine
from vlm_jax.answering.plan import batch_rows
from vlm_jax.attention.steering import Steering
from vlm_jax.batch import Batch
from vlm_jax.config import VLMConfig
from vlm_jax.decoding import DecodeSettings
from vlm_jax.decoding.rerankers import Continuation, Reranker
from vlm_jax.errors import PromptError
from vlm_jax.models import Network, Params, abstract, merge
from vlm_jax.parallel import batch_sharding, fetch, put
from vlm_jax.processing import ImageSource
from vlm_jax.processing.buckets import bucket


def ranking(
    engine: Engine, settings: DecodeSettings, reranker: Reranker, steering: Steering | None
) -> "Callable[..., _Ranked]":
    """Returns what makes a question of images, a prompt, its index and its seed.

    An answer grows by a segment of all candidates at a time. Every segment reads its prompt and
    what was said anew, `reranker.rows` rows at once.

    Args:
        engine: the model.
        settings: of decoding; temperature and top_k are the reranker's.
        reranker: what keeps candidates.
        steering: leaves [1, L, N].
    """
    pieces = engine.processor.decode([[token] for token in range(_vocabulary(engine))])
    ends = np.flatnonzero(reranker.ends(pieces)).tolist()
    return functools.partial(
        _Ranked,
        engine=engine, settings=settings, reranker=reranker, steering=steering, ends=ends,
    )  # fmt: skip


def _vocabulary(engine: Engine) -> int:
    return min(len(engine.processor.tokenizer), engine.processor.config.decoder.vocab_size)


@dataclasses.dataclass(frozen=True)
class _Drawn:
    """A continuation, and the text of its last segment."""

    whole: Continuation
    segment: str


@dataclasses.dataclass(frozen=True)
class _Ranked:
    """One question."""

    engine: Engine
    images: Sequence[ImageSource]
    prompt: str
    settings: DecodeSettings
    reranker: Reranker
    steering: Steering | None
    ends: Sequence[int]
    index: int
    seed: int

    def answer(self) -> Answer:
        """Returns the best answer: draws segments until as many are complete as are drawn of one.

        Raises:
            PromptError: the sample has not one image.
        """
        if len(self.images) != 1:
            raise PromptError(
                f"Sample {self.index}: candidates are ranked by one image, but the sample has "
                f"{len(self.images)}."
            )
        alive, complete, draw = [Continuation()], [], 0
        limit = self.settings.max_new_tokens
        while alive and len(complete) < self.reranker.samples:
            pool = self._scored(self._drawn(alive, draw), draw)
            done = [one for one in pool if one.ended or len(one.tokens) >= limit]
            complete += done
            pool = [one for one in pool if one not in done]
            alive = sorted(pool, key=self.reranker.rank, reverse=True)[: self.reranker.candidates]
            draw += 1
        best = max(complete, key=self.reranker.rank)
        return Answer(self.index, best.text, best.tokens, best.ended)

    def _batch(self, answers: Sequence[Sequence[int]], rows: int) -> tuple[Batch, np.ndarray]:
        """Returns the prompt with each of some answers behind it, the last one repeated."""
        many = [*answers, *[answers[-1]] * (rows - len(answers))]
        longest = max(len(answer) for answer in many)
        return self.engine.processor.batch_answers(
            [list(self.images)] * rows,
            [self.prompt] * rows,
            many,
            system=self.settings.system,
            length=bucket(self._length + bucket(max(longest, 1))),
            first_sample=self.index,
        )

    @functools.cached_property
    def _length(self) -> int:
        """Tokens of the prompt."""
        (draft,) = self.engine.processor.drafts(
            [list(self.images)], [self.prompt], system=self.settings.system
        )
        return draft.length

    @functools.cached_property
    def _rows(self) -> int:
        data = self.engine.generator.mesh.shape["data"]
        return batch_rows(self.reranker.rows, self.reranker.rows, data)

    def _drawn(self, alive: Sequence[Continuation], draw: int) -> list[_Drawn]:
        """Draws a segment behind each candidate; equal ones of a candidate count once."""
        parents = [one for one in alive for _ in range(self.reranker.samples)]
        batch, _ = self._batch([one.tokens for one in parents], self._rows)
        left = self.settings.max_new_tokens - max(len(one.tokens) for one in alive)
        processor, limit = self.engine.processor, min(self.reranker.segment_tokens, max(left, 1))
        numbers = np.arange(self._rows) + self._rows * (draw + 1000 * self.seed)
        made = self.engine.generator(
            self.engine.params,
            batch,
            self.settings.replace(
                max_new_tokens=limit,
                temperature=self.reranker.temperature,
                top_k=self.reranker.top_k,
                min_new_tokens=0,
            ),
            slots=bucket(self.reranker.segment_tokens),
            stop_ids=[*processor.stop_ids, *self.ends],
            pad_id=processor.pad_id,
            row_ids=numbers.tolist(),
            prompts=np.where(np.asarray(batch.kinds_bt) == 0, -1, np.asarray(batch.tokens_bt)),
            steering=self.steering,
        )
        found: dict[tuple[int, str], _Drawn] = {}
        for row, parent in enumerate(parents):
            count = int(made.lengths_b[row]) + int(made.ended_b[row])
            new = made.tokens_bn[row, :count].tolist()
            ended = bool(new) and new[-1] in set(processor.stop_ids)
            tokens = (*parent.tokens, *(new[:-1] if ended else new))
            (text,) = processor.decode([list(tokens)], np.array([len(tokens)]))
            whole = dataclasses.replace(parent, tokens=tokens, text=text, ended=ended)
            one = _Drawn(whole, text[len(parent.text) :])
            found.setdefault((row // self.reranker.samples, text), one)
        return self._told(list(found.values()))

    def _told(self, made: Sequence[_Drawn]) -> list[_Drawn]:
        """Returns continuations with the log probability of all their tokens."""
        batch, starts = self._batch([one.whole.tokens for one in made], self._rows)
        mesh = self.engine.generator.mesh
        placed = put((batch, starts.astype(np.int32)), batch_sharding(mesh))
        program = _log_probability(self.engine.processor.config)
        sums = fetch(program(self.engine.params, *placed, self.steering), mesh)
        return [
            _Drawn(dataclasses.replace(one.whole, log_probability=float(found)), one.segment)
            for one, found in zip(made, sums)
        ]

    def _scored(self, made: Sequence[_Drawn], draw: int) -> list[Continuation]:
        """Returns continuations with scores of their new segments; empty ones have none."""
        asked = [one for one in made if one.segment.strip()]
        scores: list[float] = []
        if asked:
            segments = [one.segment for one in asked]
            scores = self.reranker.scores(self.images[0], segments, draw)
        given = {one: (score,) for one, score in zip(asked, scores)}
        return [
            dataclasses.replace(one.whole, scores=one.whole.scores + given.get(one, ()))
            for one in made
        ]


@functools.cache
def _log_probability(config: VLMConfig) -> Callable[..., Array]:
    """Returns a program that gives float32 [B], the log probability of what follows prompts."""
    graphdef = abstract(config)[0]

    def read(params: Params, batch: Batch, starts_b: Array, steering: Steering | None) -> Array:
        model: Network = merge(graphdef, params)
        hidden_btd = model.read(batch, steering)[0]

        def of_sample(sample: tuple[Array, Array, Array, Array]) -> Array:
            hidden_td, tokens_t, start, length = sample
            log_p_tv = jax.nn.log_softmax(model.decoder.logits(hidden_td), axis=-1)
            places_t = jnp.arange(1, len(tokens_t))
            log_p_t = jnp.take_along_axis(log_p_tv[:-1], tokens_t[1:, None], axis=1)[:, 0]
            return jnp.sum(jnp.where((places_t >= start) & (places_t < length), log_p_t, 0.0))

        tokens_bt, lengths_b = jnp.asarray(batch.tokens_bt), jnp.asarray(batch.lengths_b)
        return jax.lax.map(of_sample, (hidden_btd, tokens_bt, starts_b, lengths_b))

    return jax.jit(read)
