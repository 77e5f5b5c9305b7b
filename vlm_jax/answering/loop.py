"""The loop from prompts to answers: host threads prepare, the device reads and decodes."""

import collections
import concurrent.futures
import dataclasses
import functools
import operator
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import jax
import numpy as np

from vlm_jax.ahead import threads
from vlm_jax.answering.meeting import Failure, Meeting, Prepared
from vlm_jax.answering.overflow import refuse_overflow
from vlm_jax.answering.plan import (
    Batching,
    BatchPlan,
    Bucket,
    Chunk,
    Sizes,
    UniqueQuestion,
    batch_rows,
    make_plan,
)
from vlm_jax.answering.store import DeviceStore
from vlm_jax.attention.steering import Readings, Steering
from vlm_jax.batch import Batch, Images
from vlm_jax.decoding import DecodeSettings, Generated, Generator, StepCounts
from vlm_jax.decoding.call import of_views
from vlm_jax.decoding.search import Search, search_of
from vlm_jax.decoding.strategies import Strategy
from vlm_jax.errors import PromptError
from vlm_jax.models import Params, Prefix
from vlm_jax.processing import Draft, ImageSource, Processor
from vlm_jax.processing.buckets import bucket

LOOKAHEAD = 2
"""Batches whose images are decoded and resized on the host while the device works."""

Made = TypeVar("Made")


@dataclasses.dataclass(frozen=True)
class Answer:
    """One sample's generated text.

    Attributes:
        index: which sample of the call.
        text: without special tokens.
        tokens: generated ids, the stop id left out.
        ended: whether the model stopped by itself (not at the limit).
        readings: with steering, each reading's mean over the decode rows, leaves [L, N].
        counts: where steering reallocates or classifies heads, how many at each step, leaves
            [steps, L].
        score: of beam search: the sum of log-probabilities over the length to the power of the
            length penalty; None elsewhere.
        prompt_tokens: tokens of its prompt, those of images counted; 0 of a reranker's answer.
        image_tokens: those of images alone.
    """

    index: int
    text: str
    tokens: tuple[int, ...]
    ended: bool
    readings: Readings | None = dataclasses.field(default=None, repr=False)
    counts: StepCounts | None = dataclasses.field(default=None, repr=False)
    score: float | None = None
    prompt_tokens: int = 0
    image_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Asking:
    """How the prompts of a call are answered.

    Attributes:
        settings: of decoding.
        logit_bias: float32 [V] added to the logits at every step.
        steering: what to do to attention; leaves [1, L, N], or [samples, L, N] for each its own.
        strategy: further views of each sample whose logits change its own, which are read whole;
            or a search.
        share_prefix: read what questions begin with, through their last image, once for all.
        on_error: "raise" stops at a sample that cannot be read, "yield" makes it a `Failure`.
        streams: what seeds each sample's random stream; its index by default.
        told: called with a sample's index and its text so far, every few tokens, where samples are
            one row each; a text that may yet turn out to be a stop string is held back.
    """

    settings: DecodeSettings
    logit_bias: np.ndarray | None = None
    steering: Steering | None = None
    strategy: Strategy | Search | None = None
    share_prefix: bool = True
    on_error: Literal["raise", "yield"] = "raise"
    streams: Sequence[int] | None = None
    told: Callable[[int, str], None] | None = None

    @property
    def rows(self) -> int:
        """How many samples are read at once at most."""
        return self.settings.batch_size or (8 if jax.default_backend() == "cpu" else 32)

    @property
    def width(self) -> int:
        """Rows of a sample in a batch."""
        return 1 if self.contrast is None else self.contrast.width

    @property
    def contrast(self) -> Strategy | None:
        """The strategy, if there is one that is no search."""
        return self.strategy if isinstance(self.strategy, Strategy) else None

    @property
    def one_steering(self) -> bool:
        """Whether all samples are steered alike."""
        return all(leaf.shape[0] == 1 for leaf in jax.tree.leaves(self.steering))

    @property
    def keeps_prefix(self) -> bool:
        """True if prefixes that were read without steering can be reused."""
        return self.steering is None or self.steering.keeps_prefix

    @property
    def shares_prefix(self) -> bool:
        """Whether what prompts begin with is read once for all."""
        if self.width > 1 or (self.steering is not None and not self.steering.shares_prefix):
            return False
        return self.share_prefix and (self.keeps_prefix or self.one_steering)

    def steering_of(self, samples: Sequence[int]) -> Steering | None:
        """Returns the steering of a batch's rows."""
        rows = np.asarray(samples)
        pick = lambda leaf: leaf if leaf.shape[0] == 1 else np.asarray(leaf)[rows]
        return jax.tree.map(pick, self.steering)


@dataclasses.dataclass(frozen=True)
class Engine:
    """A model as the loop needs it.

    Attributes:
        generator: its compiled programs.
        params: parameters, on the generator's mesh.
        processor: its words and pixels.
        prefixes: prefixes that earlier calls have read, by the key of their chunk.
        images: prefixes' tokens with the features of their images, likewise.
        buckets: static sizes that earlier calls have met, each with programs of its own.
    """

    generator: Generator
    params: Params
    processor: Processor
    prefixes: DeviceStore[Prefix]
    images: DeviceStore[Batch]
    buckets: set[Hashable]

    def longest_prompt(self, settings: DecodeSettings) -> int:
        """How many tokens a prompt may have that leaves room for its answer."""
        positions = self.processor.config.decoder.max_positions
        return max(positions - settings.max_new_tokens, 1)


def answer(
    engine: Engine,
    images: Sequence[Sequence[ImageSource]] | None,
    prompts: Sequence[str],
    asking: Asking,
) -> Iterator[Answer | Failure]:
    """Answers prompts, each as soon as its batch is done.

    Raises:
        PromptError: a sample cannot be read, and `asking.on_error` is "raise".
        UserError: activations overflow float16.
    """
    run = _Run(engine, asking, Meeting.of(engine.generator.mesh))
    drafts, failed = run.meeting.drafts(lambda note: run.measure(images, prompts, note))
    yield from failed
    plan = plan_answers(engine, drafts, asking)
    run.compile(plan.buckets)
    with threads(LOOKAHEAD) as pool:
        chunks = lambda chunk: None if run.has_read(chunk) else run.prepare(chunk)
        for chunk, prepared in _ahead(pool, plan.chunks, chunks):
            yield from run.continue_prefixes(chunk, prepared)
        for batching, prepared in _ahead(pool, plan.batches, run.prepare):
            yield from run.decode(batching, run.meeting.batch(prepared))


def plan_answers(engine: Engine, drafts: Iterable[Draft], asking: Asking) -> BatchPlan:
    """Plans who is read with whom."""
    limit, data = engine.longest_prompt(asking.settings), engine.generator.mesh.shape["data"]
    sizes = Sizes(
        rows=lambda count: batch_rows(count, asking.rows, data),
        length=lambda length: min(bucket(length), limit),
        groups=engine.processor.bucket_groups,
        words=engine.processor.bucket_words,
    )
    shares = asking.shares_prefix
    keeps = engine.prefixes.limit_bytes > 0 and asking.keeps_prefix
    return make_plan(
        drafts,
        sizes,
        once=asking.settings.greedy and asking.one_steering,
        shared=lambda questions: shares and (keeps or questions > 1),
    )


@dataclasses.dataclass(frozen=True)
class _Run:
    """One call of the loop."""

    engine: Engine
    asking: Asking
    meeting: Meeting

    def measure(
        self,
        images: Sequence[Sequence[ImageSource]] | None,
        prompts: Sequence[str],
        note: Callable[[int, PromptError], None],
    ) -> list[Draft]:
        """Measures the prompts; those that cannot be read go to `note` or are raised."""
        fail = note if self.asking.on_error == "yield" else None
        limit = self.engine.longest_prompt(self.asking.settings)
        system = self.asking.settings.system
        measure = self.engine.processor.drafts
        drafts = measure(images, prompts, max_length=limit, system=system, on_error=fail)
        if self.asking.contrast is None:
            return drafts
        whole = []
        for draft in drafts:
            try:
                made = self._views(self.asking.contrast, draft, prompts[draft.number])
            except PromptError as error:
                if fail is None:
                    raise
                fail(draft.number, error)
                continue
            whole.append(dataclasses.replace(draft, views=tuple(made)))
        return whole

    def _views(self, strategy: Strategy, draft: Draft, prompt: Any) -> list[Draft]:
        """Measures the further views of a sample."""
        if strategy.needs_image and not draft.images:
            raise PromptError(
                f"Sample {draft.number}: method {strategy.name!r} contrasts images, and the sample "
                "has none; give it one, or answer it without the method."
            )
        views = strategy.views(draft.images, prompt)
        if not views:
            return []
        made = self.engine.processor.drafts(
            [list(draft.images if view.images is None else view.images) for view in views],
            [prompt if view.prompt is None else view.prompt for view in views],
            max_length=self.engine.longest_prompt(self.asking.settings),
            system=self.asking.settings.system,
        )
        return [
            dataclasses.replace(found, number=draft.number, pixels=view.pixels)
            for found, view in zip(made, views)
        ]

    def keeps(self, chunk: Chunk) -> bool:
        """Whether an earlier call has read the prefixes of a chunk."""
        return self.asking.keeps_prefix and chunk.key in self.engine.prefixes

    def has_read(self, chunk: Chunk) -> bool:
        """Whether the images of a chunk need not be decoded again."""
        return self.keeps(chunk) or chunk.key in self.engine.images

    def compile(self, buckets: Sequence[Bucket]) -> None:
        """Compiles the programs of all buckets that no earlier call has met, side by side."""
        asking = self.asking
        # What makes programs of its own besides sizes; all values are traced.
        kind = (
            bucket(asking.settings.max_new_tokens),
            tuple(asking.settings.traced()),
            jax.tree.structure(search_of(asking.settings, asking.strategy)),
            asking.logit_bias is None,
            jax.tree.structure(asking.steering),
            asking.one_steering,
            jax.tree.structure(asking.contrast),
        )
        new = [size for size in buckets if (size, kind) not in self.engine.buckets]
        self.engine.buckets.update((size, kind) for size in new)
        if len(new) > 1:  # one is compiled by its first call as well
            with concurrent.futures.ThreadPoolExecutor() as pool:
                list(pool.map(self._warm, new))

    def _warm(self, size: Bucket) -> None:
        shapes = self.engine.processor.shapes
        places = size.length + (0 if size.prefix is None else size.prefix[1])
        before = {}
        if size.prefix is not None:
            before = {
                "prefix": shapes(*size.prefix),
                "owner_b": size.row_owners,
                "sharing": size.sharing,
            }
        self.engine.generator.warm(
            self.engine.params,
            shapes(size.rows * self.asking.width, size.length, size.groups, size.words),
            **before,
            images_apart=self.engine.images.limit_bytes > 0,
            **self._options([0] * size.rows, np.zeros((size.rows, places), np.int32)),
        )

    def prepare(self, batching: Batching | Chunk) -> Prepared:
        """Decodes images and lays out the prompts of a batch, or the prefixes of a chunk."""
        chunk = isinstance(batching, Chunk)
        questions = batching.prefixes if chunk else batching.questions
        part = "prefix" if chunk else "suffix" if batching.owners else "all"
        made, failures, samples = {}, {}, []
        for place, question in enumerate(questions):
            try:
                views = question.draft.all_views
                samples.append([self.engine.processor.read(view, part, made) for view in views])
            except PromptError as error:
                if self.asking.on_error == "raise":
                    raise
                failures[place] = Failure(question.draft.number, str(error))
                samples.append(None)
        good = [sample for sample in samples if sample is not None]
        if not good:
            return Prepared(None, failures)
        filled = batching.fill([sample or good[0] for sample in samples])
        sizes = {name: getattr(batching, name) for name in ("length", "groups", "words")}
        batch = self.engine.processor.pad([view for views in filled for view in views], **sizes)
        self._change_pixels(questions, batch)
        return Prepared(batch, failures)

    def _change_pixels(self, questions: Sequence[UniqueQuestion], batch: Batch) -> None:
        """Changes the pixels of views that say so, in place, in the rows of a batch on the host."""
        if not isinstance(batch.images, Images):
            return
        vision = self.engine.processor.config.vision
        drafts = [view for question in questions for view in question.draft.all_views]
        for row, draft in enumerate(drafts):
            if draft.pixels is None:
                continue
            real_gu = batch.images.ids_bgu[row] >= 0
            patches_pe = batch.images.patches_bgue[row][real_gu]
            shape = len(patches_pe), vision.num_channels, -1, vision.patch_size**2
            # Of the pixels alone: whoever shares the batch, an image is changed alike.
            seeds = self.asking.settings.seed, zlib.crc32(patches_pe.tobytes())
            changed = draft.pixels(patches_pe.reshape(shape), np.random.default_rng(seeds))
            batch.images.patches_bgue[row][real_gu] = changed.reshape(patches_pe.shape)

    def continue_prefixes(
        self, chunk: Chunk, ready: Callable[[], Prepared | None]
    ) -> Iterator[Answer | Failure]:
        """Answers all questions of a chunk; `ready` gives what a thread prepared of it."""
        failures: Mapping[int, Failure] = {}
        if self.keeps(chunk):
            prefix = self.engine.prefixes.find(chunk.key)
        else:
            prepared = self._read_images(chunk, ready)
            failures = prepared.failures
            if prepared.batch is None:
                for batching in chunk.batches:
                    for question, owner in zip(batching.questions, batching.owners):
                        yield from _fail(question, failures[owner])
                return
            prefix = self.engine.generator.read_prefix(
                self.engine.params, prepared.batch, self.asking.steering
            )
            # Rows of prefixes that failed hold other images: not to be kept under these keys.
            if self.asking.keeps_prefix and not failures:
                self.engine.prefixes.keep(chunk.key, prefix)
        for batching in chunk.batches:
            prepared = self.meeting.batch(functools.partial(self.prepare, batching))
            yield from self.decode(batching, prepared, prefix, failures)

    def _read_images(self, chunk: Chunk, ready: Callable[[], Prepared | None]) -> Prepared:
        """Returns a chunk's prefixes; where there is room to keep them, with features of images."""
        kept = self.engine.images
        if chunk.key in kept:
            return Prepared(kept.find(chunk.key), {})
        # What was kept when the thread looked may have had to go since.
        prepared = self.meeting.batch(lambda: ready() or self.prepare(chunk))
        if prepared.batch is None or not kept.limit_bytes:
            return prepared
        batch = self.engine.generator.read_images(self.engine.params, prepared.batch)
        if not prepared.failures:
            kept.keep(chunk.key, batch)
        return dataclasses.replace(prepared, batch=batch)

    def decode(
        self,
        batching: Batching,
        prepared: Prepared,
        prefix: Prefix | None = None,
        failed: Mapping[int, Failure] = {},
    ) -> Iterator[Answer | Failure]:
        """Answers the questions of a batch; `failed` are failures by prefix."""
        generated = None
        if prepared.batch is not None:
            generated = self._generate(batching, prepared.batch, prefix)
        texts = [] if generated is None else self._texts(generated)
        for number, (row, question) in enumerate(zip(batching.places, batching.questions)):
            failure = prepared.failures.get(number)
            if batching.owners:
                failure = failed.get(batching.owners[number])
            if failure is not None or generated is None:
                assert failure is not None
                yield from _fail(question, failure)
                continue
            length, ended = int(generated.lengths_b[row]), bool(generated.ended_b[row])
            steps = slice(length + ended)
            tokens, text = generated.tokens_bn[row, :length].tolist(), texts[row]
            if any(stop in text for stop in self._stops):
                tokens, text, ended = *self._until_stop(tokens, text), True
            for index in question.samples:
                yield Answer(
                    index,
                    text,
                    tuple(tokens),
                    ended,
                    jax.tree.map(operator.itemgetter(row), generated.readings),
                    jax.tree.map(operator.itemgetter((row, steps)), generated.counts),
                    None if generated.scores_b is None else float(generated.scores_b[row]),
                    question.draft.length,
                    sum(extent.tokens for extent in question.draft.extents),
                )

    @property
    def _stops(self) -> tuple[str, ...]:
        """The texts that end an answer: the settings' and the model's own."""
        return (*self.asking.settings.stop, *self.engine.processor.stops)

    def _until_stop(self, tokens: list[int], text: str) -> tuple[list[int], str]:
        """Returns an answer through the token that completes a stop string, and the text before it.

        The model may have gone on behind the string: the rows of a batch end on token ids.
        """
        stops = self._stops
        holds = lambda count: any(
            stop in self.engine.processor.decode([tokens[:count]], [count])[0] for stop in stops
        )
        count = next(count for count in range(1, len(tokens) + 1) if holds(count))
        return tokens[:count], text[: min(text.find(stop) for stop in stops if stop in text)]

    def _texts(self, generated: Generated) -> list[str]:
        return self.engine.processor.decode(generated.tokens_bn, generated.lengths_b)

    def _generate(self, batching: Batching, batch: Batch, prefix: Prefix | None) -> Generated:
        samples = batching.fill([question.samples[0] for question in batching.questions])
        before = {}
        if prefix is not None:
            before = {
                "prefix": prefix,
                "owner_b": batching.row_owners,
                "sharing": batching.sharing,
            }
        drafts = batching.fill([question.draft for question in batching.questions])
        places = batching.length + (0 if prefix is None else prefix.length)
        options = self._options(samples, self._prompts(drafts, places))
        generator, params = self.engine.generator, self.engine.params
        told = None if self.asking.told is None else functools.partial(self._tell, batching)
        made = generator(params, batch, **before, **options, told=told)
        steering = of_views(options["steering"], self.asking.width)
        refuse_overflow(generator, params, batch, made.tokens_bn[:, 0], steering, **before)
        return made

    def _tell(self, batching: Batching, tokens_bn: np.ndarray, lengths_b: np.ndarray) -> None:
        """Tells of the texts so far, less what a stop string may begin with and what may change.

        Bytes in a row are read as letters once all of them are there: what ends with some waits.
        """
        assert self.asking.told is not None
        held = max((len(stop) - 1 for stop in self._stops), default=0)
        waits_bn = ~np.isin(tokens_bn, self.engine.processor.whole_ids)
        lengths_b = np.array(lengths_b)
        for row, waits_n in enumerate(waits_bn):
            while lengths_b[row] and waits_n[lengths_b[row] - 1]:
                lengths_b[row] -= 1
        texts = self.engine.processor.decode(tokens_bn, lengths_b)
        for row, question in zip(batching.places, batching.questions):
            text = texts[row]
            ends = [text.find(stop) for stop in self._stops if stop in text]
            shown = text[: min([*ends, max(len(text) - held, 0)])]
            for index in question.samples:
                self.asking.told(index, shown)

    def _prompts(self, drafts: Sequence[Draft], places: int) -> np.ndarray:
        """Returns int32 [B, places] the tokens of whole prompts, right-aligned, -1 before them."""
        prompts_bp = np.full((len(drafts), places), -1, np.int32)
        for row, draft in zip(prompts_bp, drafts):
            tokens = draft.tokens(self.engine.processor.config.image_token_id)
            row[places - len(tokens) :] = tokens
        return prompts_bp

    def _options(self, samples: Sequence[int], prompts: Any) -> dict[str, Any]:
        """Returns the generator's arguments for rows of these samples."""
        asking, streams = self.asking, self.asking.streams
        return {
            "settings": asking.settings,
            "slots": bucket(asking.settings.max_new_tokens),
            "stop_ids": self.engine.processor.stop_ids,
            "pad_id": self.engine.processor.pad_id,
            "row_ids": samples if streams is None else [streams[sample] for sample in samples],
            "logit_bias": asking.logit_bias,
            "prompts": prompts,
            "steering": asking.steering_of(samples),
            "strategy": asking.strategy,
        }


def _fail(question: UniqueQuestion, failure: Failure) -> Iterator[Failure]:
    """Yields the failure of every sample that asks a question."""
    for index in question.samples:
        yield Failure(index, failure.reason)


def _ahead(
    pool: concurrent.futures.Executor,
    items: Sequence[Any],
    prepare: Callable[[Any], Made],
) -> Iterator[tuple[Any, Callable[[], Made]]]:
    """Yields items and where to get what threads make of them, `LOOKAHEAD` items ahead."""
    waiting: collections.deque = collections.deque()
    for item in items:
        waiting.append((item, pool.submit(prepare, item)))
        if len(waiting) > LOOKAHEAD:
            first, future = waiting.popleft()
            yield first, future.result
    for first, future in waiting:
        yield first, future.result
