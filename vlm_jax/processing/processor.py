"""Images and prompts to a `Batch`, tokens back to text. No torch anywhere."""

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vlm_jax.batch import Array, Batch
from vlm_jax.config import VLMConfig
from vlm_jax.errors import CheckpointError, PromptError, UserError
from vlm_jax.families import Family, find, read_config
from vlm_jax.foreign import utf8
from vlm_jax.processing import folder as folders
from vlm_jax.processing.bounds import with_pixels, with_tiles
from vlm_jax.processing.buckets import bucket
from vlm_jax.processing.chat import Chat, Turns, read_template
from vlm_jax.processing.cutters import Extent, Patches
from vlm_jax.processing.images import (
    MAX_IMAGE_PIXELS,
    ImageSource,
    check_nesting,
    pixel_limit,
)
from vlm_jax.processing.reader import Part, SampleReader
from vlm_jax.processing.samples import Draft, Sample, pad, shapes


class Processor:
    """Turns images and prompts into batches for one model, and token ids into text.

    Args:
        config: the model's architecture.
        tokenizer: transformers tokenizer.
        image_processor: transformers image processor of the PIL backend.
        template: Jinja chat template, or None if texts always come templated.
        question_tokenizer: of a Q-Former that reads the question; None for other models.
        stop_ids: ids that end an answer.
        generation: fields of the folder's `generation_config.json`.
        max_image_pixels: images of more pixels, as they are or once resized, are refused before
            they are decoded.
        max_tiles: tiles of an image's grid at most, of a model that cuts images into a grid of
            tiles (InternVL); 0 is what config.json says.
        min_pixels, max_pixels: fewest and most pixels that an image is resized to, of a model that
            takes images of any shape (Qwen2.5-VL, Qwen3-VL); 0 is what the folder says.

    Attributes:
        pad_id: what fills a row behind its tokens.
        image_token: text of the placeholder that stands for one image in a prompt.
        identity: the template and the settings of the image processor, as JSON values.
        stops: texts that end an answer, beside the ids that do.

    Raises:
        CheckpointError: tokenizer or image processor disagree with the architecture.
    """

    def __init__(
        self,
        config: VLMConfig,
        tokenizer,
        image_processor,
        *,
        template: str | None = None,
        question_tokenizer=None,
        stop_ids: Sequence[int] = (),
        generation: Mapping[str, Any] | None = None,
        max_image_pixels: int = MAX_IMAGE_PIXELS,
        max_tiles: int = 0,
        min_pixels: int = 0,
        max_pixels: int = 0,
    ):
        family = find(config.family)
        config = with_tiles(config, max_tiles)
        image_processor = with_pixels(family, image_processor, min_pixels, max_pixels)
        self.image_token, self._image_id = _placeholder(family, config, tokenizer)
        config = dataclasses.replace(config, image_token_id=self._image_id)
        self.config, self.tokenizer, self._family = config, tokenizer, family
        limits = {"max_image_pixels": max_image_pixels, "max_tiles": max_tiles}
        self.identity = {"template": template or "", "pixels": image_processor.to_dict() | limits}
        self._questions, self.stops = question_tokenizer, family.stops
        self.stop_ids, self.generation = tuple(stop_ids), dict(generation or {})
        pad = tokenizer.pad_token_id
        self.pad_id: int = pad if pad is not None else (tokenizer.eos_token_id or 0)
        self._cut = family.cutter(config, image_processor)
        image_text = family.image_text(
            config, self.image_token, lambda token, field: _token(tokenizer, token, field)
        )
        self._chat = Chat(tokenizer, template, self.image_token, image_text)
        limit = pixel_limit("max_image_pixels", max_image_pixels)
        self._reader = SampleReader(config, self._cut, self.image_token, limit)

    @classmethod
    def from_folder(
        cls, folder: str | os.PathLike, config: VLMConfig | None = None, **options
    ) -> "Processor":
        """Reads a converted or a Hugging Face model folder.

        Args:
            folder: holds `config.json`, tokenizer, image processor and chat template files.
            config: the architecture, if it was read already.
            options: `max_image_pixels`, `max_tiles`, `min_pixels`, `max_pixels`.

        Raises:
            CheckpointError: a file is missing, broken or of another model.
        """
        path = pathlib.Path(folder)
        config = config or read_config(path)
        family = find(config.family)
        tokenizer, questions = family.tokenizer(path), family.question_tokenizer
        return cls(
            config,
            tokenizer,
            family.image_processor(path),
            template=family.template(read_template(path, tokenizer)),
            question_tokenizer=folders.read_tokenizer(path / questions) if questions else None,
            stop_ids=folders.read_stop_ids(path, config, tokenizer),
            generation=folders.read_generation(path),
            **options,
        )

    def regions(self, width: int, height: int) -> np.ndarray | None:
        """Returns what each token of a sample's only image covers; see `Cutter.regions`."""
        return self._cut.among(1).regions(width, height)

    def template(self, prompt: Turns, images: int = 0, system: str = "") -> str:
        """Returns a user's turn with `images` images as the chat template writes it.

        Raises:
            PromptError, CheckpointError: it has no such form; see `batch`.
        """
        return self._chat.render(prompt, images, system=system)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of an already templated text, images still one placeholder each.

        The beginning of sequence is added unless the text begins with it.
        """
        utf8(text, "The templated text", PromptError)
        text = self._family.written(text, self.image_token)
        with _reading(text):
            return self._family.encode(self.tokenizer, text, self.image_token, self._image_id)

    def words(self, text: str) -> list[int]:
        """Returns what a Q-Former reads of a templated text: ids of its words; none for others."""
        if self._questions is None:
            return []
        with _reading(text):
            return self._questions.encode(text.replace(self.image_token, ""))

    def batch(
        self,
        images: Sequence[Sequence[ImageSource]] | None,
        prompts: Sequence[str],
        *,
        length: int | None = None,
        groups: int | None = None,
        max_length: int | None = None,
        first_sample: int = 0,
    ) -> Batch:
        """Puts each prompt, a user's turn, through the chat template and makes a batch of them.

        Args:
            images: per sample, a list of paths or PIL images (None: no sample has any).
            prompts: per sample, the user's words. A prompt that holds placeholders says where its
                images go; otherwise they come first.
            length: pad to exactly this many tokens; by default to the bucket of the longest.
            groups: pad images to exactly this many groups of patches; by default to a bucket.
            max_length: refuse longer prompts; by default what the model's positions allow.
            first_sample: what errors call the first sample, where this is a batch of many.

        Returns:
            A `Batch` of NumPy arrays.

        Raises:
            PromptError: naming the sample, and the file where one is to blame.
        """
        texts, images = self._texts(images, prompts, first_sample)
        rows = [(self.encode(text), self.words(text)) for text in texts]
        return self._batch(images, rows, length, groups, max_length, first_sample)

    def batch_answers(
        self,
        images: Sequence[Sequence[ImageSource]] | None,
        prompts: Sequence[str],
        answers: Sequence[str | Sequence[int]],
        *,
        system: str = "",
        length: int | None = None,
        groups: int | None = None,
        max_length: int | None = None,
        first_sample: int = 0,
    ) -> tuple[Batch, np.ndarray]:
        """As `batch`, each prompt followed by an answer, for teacher-forced scoring.

        Args:
            answers: per sample, the answer's text or its token ids.
            system: a system message before the first turn; the template's own where it is empty.

        Returns:
            The batch, and int32 [B] the index of each answer's first token.

        Raises:
            PromptError: there are not as many answers as prompts.
        """
        texts, images = self._texts(images, prompts, first_sample, system)
        if len(answers) != len(prompts):
            raise PromptError(f"There are {len(answers)} answers for {len(prompts)} prompts.")
        starts, rows = [], []
        for text, answer in zip(texts, answers):
            row = self.encode(text)
            if isinstance(answer, str):
                utf8(answer, "An answer", PromptError)
                answer = self.tokenizer.encode(answer, add_special_tokens=False)
            starts.append(len(answer))
            rows.append(([*row, *map(int, answer)], self.words(text)))
        batch = self._batch(images, rows, length, groups, max_length, first_sample)
        return batch, (np.asarray(batch.lengths_b) - np.asarray(starts)).astype(np.int32)

    def decode(
        self, tokens_bt: Array | Sequence[Sequence[int]], lengths_b: Array | None = None
    ) -> list[str]:
        """Returns the text of generated rows, without special tokens.

        Args:
            tokens_bt: rows of generated ids.
            lengths_b: real tokens in each row; by default a row ends before its first stop id.
        """
        rows = [np.asarray(row).tolist() for row in tokens_bt]
        if lengths_b is None:
            lengths = [next((i for i, t in enumerate(r) if t in self.stop_ids), None) for r in rows]
        else:
            lengths = np.asarray(lengths_b).tolist()
        rows = [row[:end] for row, end in zip(rows, lengths)]
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True)

    @functools.cached_property
    def whole_ids(self) -> np.ndarray:
        """The tokens behind which a text does not change: all but single bytes of letters which the
        vocabulary lacks, and special tokens, which are no text and may stand between these."""
        parts = {f"<0x{byte:02X}>" for byte in range(256)} | set(self.tokenizer.all_special_tokens)
        known = self.tokenizer.get_vocab().items()
        return np.array([number for name, number in known if name not in parts], np.int32)

    def drafts(
        self,
        images: Sequence[Sequence[ImageSource]] | None,
        prompts: Sequence[Turns],
        *,
        system: str = "",
        max_length: int | None = None,
        on_error: Callable[[int, PromptError], None] | None = None,
    ) -> list[Draft]:
        """Measures samples; arguments as for `batch`. Of image files only the headers are read.

        Args:
            system: a system message before the first turn; the template's own where it is empty.
            on_error: gets the number and the error of a sample that cannot be read, which is left
                out; by default the error is raised.
        """
        prompts = _strings(prompts, "prompts")
        # Benchmarks ask the same of many images: a text is tokenized once, a header read once.
        found, extents, tokenized = [], {}, {}
        for index, (prompt, group) in enumerate(zip(prompts, check_nesting(images, len(prompts)))):
            try:
                asked = repr(prompt), len(group)
                if asked not in tokenized:
                    where = f"Sample {index}: its prompt"
                    text = self._chat.render(prompt, len(group), where, system)
                    tokenized[asked] = self.encode(text), self.words(text)
                ids, words = tokenized[asked]
                draft = self._reader.draft(ids, group, index, extents, words)
                self._reader.check_length(draft, max_length, None)
            except PromptError as error:
                if on_error is None:
                    raise
                on_error(index, error)
            else:
                found.append(draft)
        return found

    def read(
        self, draft: Draft, part: Part = "all", made: dict[Hashable, Patches] | None = None
    ) -> Sample:
        """Lays out the tokens of a draft and decodes its images; see `SampleReader.read`."""
        return self._reader.read(draft, part, made)

    def pad(
        self, samples: Sequence[Sample], *, length: int = 0, groups: int = 0, words: int = 0
    ) -> Batch:
        """Makes a batch of samples, of at least this length and so many groups and words."""
        length = max(length, *(len(sample.sequence.tokens_t) for sample in samples))
        groups = max(groups, *(sum(p.groups for p in sample.patches) for sample in samples))
        words = max(words, *(len(sample.words) for sample in samples))
        return pad(samples, length, groups, words, self._cut, self.pad_id)

    def shapes(self, rows: int, length: int, groups: int = 0, words: int = 0) -> Batch:
        """Returns `ShapeDtypeStruct`s of what `pad` makes at these sizes."""
        return shapes(rows, length, groups, words, self._cut)

    def bucket_groups(self, groups: int) -> int:
        """Returns the static number of groups that images of so many groups are padded to."""
        return bucket(groups, self._cut.group_multiple)

    def bucket_words(self, words: int) -> int:
        """Returns the static number of words that questions of so many words are padded to."""
        former = self.config.qformer
        return 0 if former is None else min(bucket(words), former.max_positions)

    def _texts(
        self, images, prompts, first: int, system: str = ""
    ) -> tuple[list[str], list[list[ImageSource]]]:
        prompts = _strings(prompts, "prompts")
        nested = check_nesting(images, len(prompts), first)
        texts = [
            self._chat.render(prompt, len(group), f"Sample {index}: its prompt", system)
            for index, (prompt, group) in enumerate(zip(prompts, nested), first)
        ]
        return texts, nested

    def _batch(
        self,
        images,
        rows: list[tuple[list[int], list[int]]],
        length,
        groups,
        max_length,
        first: int,
    ) -> Batch:
        if not rows:
            raise PromptError("The batch is empty; give at least one prompt.")
        extents: dict[Hashable, Extent] = {}
        nested = check_nesting(images, len(rows), first)
        drafts = [
            self._reader.draft(ids, group, index, extents, words)
            for index, ((ids, words), group) in enumerate(zip(rows, nested), first)
        ]
        for draft in drafts:
            self._reader.check_length(draft, max_length, length)
        if length is None:
            limit = self.config.decoder.max_positions if max_length is None else max_length
            length = min(bucket(max(draft.length for draft in drafts)), limit)
        most = max(draft.groups for draft in drafts)
        if groups is None or not most:
            groups = self.bucket_groups(most)
        elif most > groups:
            raise PromptError(
                f"A sample's images fill {most} groups of patches, more than the {groups} asked "
                "for; give fewer or smaller images, or more groups."
            )
        # Questions about one image often share a batch: each image is decoded and cut once.
        made: dict[Hashable, Patches] = {}
        samples = [self.read(draft, "all", made) for draft in drafts]
        words = self.bucket_words(max(len(draft.words) for draft in drafts))
        return pad(samples, length, groups, words, self._cut, self.pad_id)


@contextlib.contextmanager
def _reading(text: str) -> Iterator[None]:
    """Makes one error of what a tokenizer's own rules do not survive, panics of its core included.

    A pattern of a tokenizer.json may try so many ways on a text that its engine gives up.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise PromptError(
            f"The prompt of {len(text)} characters is not read by the folder's tokenizer: {said}."
        ) from None


def _placeholder(family: Family, config: VLMConfig, tokenizer) -> tuple[str, int]:
    """Returns text and id of the placeholder that stands for an image in a prompt.

    Raises:
        CheckpointError: the tokenizer does not read the text as that one token.
    """
    found = family.placeholder(config, tokenizer)
    if found is not None:
        return found
    image = config.image_token_id
    if image is None:
        image = tokenizer.convert_tokens_to_ids(family.image_token)
    text = _token(tokenizer, image, "image_token_id")
    if tokenizer.encode(text, add_special_tokens=False) != [image]:
        raise CheckpointError(
            f"config.json has image_token_id {image}, but the tokenizer does not read its text "
            f"{text!r} as that one token; add it as a special token."
        )
    return text, image


def _token(tokenizer, token_id: int | None, field: str) -> str:
    known = token_id is not None and 0 <= token_id < len(tokenizer)
    token = tokenizer.convert_ids_to_tokens(token_id) if known else None
    if token is None:
        raise CheckpointError(
            f"config.json has {field} {token_id}, which the tokenizer of {len(tokenizer)} tokens "
            "does not know; config and tokenizer are of different models."
        )
    return token


def _strings(values: Sequence[Any], name: str) -> list[Any]:
    if isinstance(values, str):
        raise PromptError(f"{name} must be a list with one string per sample, not one string.")
    values = list(values)
    if not values:
        raise PromptError("The batch is empty; give at least one prompt.")
    return values
