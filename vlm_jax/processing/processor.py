"""Images and prompts to a `Batch`, tokens back to text. No torch anywhere."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL.Image import Image

from vlm_jax.batch import Array, Batch, Images
from vlm_jax.config import QwenVisionConfig, VLMConfig, read_config
from vlm_jax.errors import CheckpointError, PromptError
from vlm_jax.processing import folder as folders
from vlm_jax.processing.buckets import bucket
from vlm_jax.processing.chat import Chat, read_template
from vlm_jax.processing.images import (
    MAX_IMAGE_PIXELS,
    ImageSource,
    check_nesting,
    describe,
    load_image,
)
from vlm_jax.processing.patches import Clip, Patches, Qwen
from vlm_jax.processing.positions import Sequences, expand


class Processor:
    """The words and pixels of one model folder.

    Args:
        config: the model's architecture.
        tokenizer: transformers tokenizer.
        image_processor: transformers image processor of the PIL backend.
        template: Jinja chat template, or None if texts always come templated.
        stop_ids: ids that end an answer.
        max_image_pixels: images with more pixels are refused before they are decoded.

    Attributes:
        pad_id: what fills a row behind its tokens.
        image_token: text of the placeholder that stands for one image in a prompt.

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
        stop_ids: Sequence[int] = (),
        max_image_pixels: int = MAX_IMAGE_PIXELS,
    ):
        self.config, self.tokenizer = config, tokenizer
        self.stop_ids = tuple(stop_ids)
        self.max_image_pixels = max_image_pixels
        self.image_token = _token(tokenizer, config.image_token_id, "image_token_id")
        if tokenizer.encode(self.image_token, add_special_tokens=False) != [config.image_token_id]:
            raise CheckpointError(
                f"config.json has image_token_id {config.image_token_id}, but the tokenizer does "
                f"not read its text {self.image_token!r} as that one token; add it as a special "
                "token."
            )
        pad = tokenizer.pad_token_id
        self.pad_id: int = pad if pad is not None else (tokenizer.eos_token_id or 0)
        if isinstance(config.vision, QwenVisionConfig):
            self._cut: Clip | Qwen = Qwen(config.vision, image_processor)
            start = _token(tokenizer, config.vision_start_id, "vision_start_token_id")
            end = _token(tokenizer, config.vision_end_id, "vision_end_token_id")
            image_text = start + self.image_token + end
        else:
            self._cut = Clip(config.vision, image_processor)
            image_text = self.image_token + "\n"
        self._chat = Chat(tokenizer, template, self.image_token, image_text)

    @classmethod
    def from_folder(
        cls, folder: str | os.PathLike, config: VLMConfig | None = None, **options
    ) -> "Processor":
        """Reads a converted or a Hugging Face model folder.

        Args:
            folder: holds `config.json`, tokenizer, image processor and chat template files.
            config: the architecture, if it was read already.
            options: `max_image_pixels`.

        Raises:
            CheckpointError: a file is missing, broken or of another model.
        """
        path = pathlib.Path(folder)
        config = config or read_config(path)
        tokenizer = folders.read_tokenizer(path)
        return cls(
            config,
            tokenizer,
            folders.read_image_processor(path),
            template=read_template(path, tokenizer),
            stop_ids=folders.read_stop_ids(path, config, tokenizer),
            **options,
        )

    def template(self, prompt: str, images: int = 0) -> str:
        """Returns a user's turn with `images` images as the chat template writes it."""
        return self._chat.render(prompt, images)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of an already templated text, images still one placeholder each.

        The beginning of sequence is added unless the text begins with it.
        """
        bos = self.tokenizer.bos_token
        special = bos is None or not text.startswith(bos)
        return self.tokenizer.encode(text, add_special_tokens=special)

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
        rows = [self.encode(text) for text in texts]
        return self._batch(images, rows, length, groups, max_length, first_sample)

    def batch_texts(
        self,
        images: Sequence[Sequence[ImageSource]] | None,
        texts: Sequence[str],
        *,
        length: int | None = None,
        groups: int | None = None,
        max_length: int | None = None,
        first_sample: int = 0,
    ) -> Batch:
        """As `batch`, of texts that are templated already and hold a placeholder per image."""
        rows = [self.encode(text) for text in _strings(texts, "texts")]
        return self._batch(images, rows, length, groups, max_length, first_sample)

    def batch_answers(
        self,
        images: Sequence[Sequence[ImageSource]] | None,
        prompts: Sequence[str],
        answers: Sequence[str | Sequence[int]],
        *,
        length: int | None = None,
        groups: int | None = None,
        max_length: int | None = None,
        first_sample: int = 0,
    ) -> tuple[Batch, np.ndarray]:
        """As `batch`, each prompt followed by an answer, for teacher-forced scoring.

        Args:
            answers: per sample, the answer's text or its token ids.

        Returns:
            The batch, and int32 [B] the index of each answer's first token.
        """
        texts, images = self._texts(images, prompts, first_sample)
        if len(answers) != len(prompts):
            raise PromptError(f"There are {len(answers)} answers for {len(prompts)} prompts.")
        starts, rows = [], []
        for text, answer in zip(texts, answers):
            row = self.encode(text)
            if isinstance(answer, str):
                answer = self.tokenizer.encode(answer, add_special_tokens=False)
            starts.append(len(answer))
            rows.append([*row, *map(int, answer)])
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

    def _texts(self, images, prompts, first: int) -> tuple[list[str], list[list[ImageSource]]]:
        prompts = _strings(prompts, "prompts")
        nested = check_nesting(images, len(prompts), first)
        texts = [
            self._chat.render(prompt, len(group), f"Sample {index}: its prompt")
            for index, (prompt, group) in enumerate(zip(prompts, nested), first)
        ]
        return texts, nested

    def _batch(
        self, images, rows: list[list[int]], length, groups, max_length, first: int
    ) -> Batch:
        if not rows:
            raise PromptError("The batch is empty; give at least one prompt.")
        nested = check_nesting(images, len(rows), first)
        for index, (row, group) in enumerate(zip(rows, nested), first):
            placeholders = row.count(self.config.image_token_id)
            if placeholders != len(group):
                raise PromptError(
                    f"Sample {index}: its text has {placeholders} {self.image_token} "
                    f"placeholder(s) but {len(group)} image(s) were given; they must be as many."
                )
        patches = self._patches(nested, first)
        sequences = [self._expand(row, cut) for row, cut in zip(rows, patches)]
        limit = self.config.decoder.max_positions if max_length is None else max_length
        for index, (sequence, group) in enumerate(zip(sequences, nested), first):
            self._check_length(len(sequence.tokens_t), limit, length, index, group)
        if length is None:
            length = min(bucket(max(len(s.tokens_t) for s in sequences)), limit)
        return self._pad(sequences, length, self._images(patches, groups))

    def _patches(self, nested: list[list[ImageSource]], first: int) -> list[list[Patches]]:
        # Questions about one image often share a batch: each image is decoded and cut once.
        made: dict[str | int, Patches] = {}
        patches = []
        for sample, group in enumerate(nested, first):
            patches.append([])
            for number, source in enumerate(group):
                key = id(source) if isinstance(source, Image) else str(source)
                if key not in made:
                    where = f"Sample {sample}, image {number}"
                    made[key] = self._patch(source, where)
                patches[-1].append(made[key])
        return patches

    def _patch(self, source: ImageSource, where: str) -> Patches:
        image = load_image(source, where, self.max_image_pixels)
        try:
            return self._cut(image)
        except CheckpointError:
            raise
        except ValueError as error:
            raise PromptError(
                f"{where} ({describe(source)}, {image.width}x{image.height} pixels) was refused by "
                f"the image processor: {error}"
            ) from None

    def _check_length(
        self, tokens: int, limit: int, length: int | None, sample: int, group: list[ImageSource]
    ) -> None:
        images = f" ({len(group)} image(s) included)" if group else ""
        if tokens > limit:
            raise PromptError(
                f"Sample {sample}: its prompt is {tokens} tokens long{images}, more than the "
                f"{limit} allowed (the model has {self.config.decoder.max_positions} positions); "
                "shorten it, give fewer or smaller images, or ask for fewer new tokens."
            )
        if length is not None and tokens > length:
            raise PromptError(
                f"Sample {sample}: its prompt is {tokens} tokens long{images}, more than the "
                f"length of {length} asked for; shorten it or ask for more."
            )

    def _expand(self, row: list[int], patches: list[Patches]) -> Sequences:
        slots, used = [], 0
        for cut in patches:
            slots.append(cut.slots_m + used)
            used += cut.groups * self._cut.slots_per_group
        return expand(
            row,
            self.config.image_token_id,
            slots,
            [cut.grid for cut in patches],
            self.config.decoder.mrope_section is not None,
        )

    def _images(self, patches: list[list[Patches]], groups: int | None) -> Images | None:
        most = max(sum(cut.groups for cut in row) for row in patches)
        if not most:
            return None
        if groups is None:
            groups = bucket(most, self._cut.group_multiple)
        elif most > groups:
            raise PromptError(
                f"A sample's images fill {most} groups of patches, more than the {groups} asked "
                "for; give fewer or smaller images, or more groups."
            )
        shape = (len(patches), groups, self._cut.patches_per_group)
        patches_bgue = np.zeros((*shape, self._cut.patch_features), np.float32)
        ids_bgu = np.full(shape, -1, np.int32)
        positions_bgu2 = np.zeros((*shape, 2), np.int32)
        for sample, row in enumerate(patches):
            used = 0
            for number, cut in enumerate(row):
                here = sample, slice(used, used + cut.groups)
                cut.fill(patches_bgue[here])
                ids_bgu[here] = np.where(cut.index_gu >= 0, number, -1)
                positions_bgu2[here] = cut.positions_gu2
                used += cut.groups
        return Images(patches_bgue, ids_bgu, positions_bgu2)

    def _pad(self, sequences: list[Sequences], length: int, images: Images | None) -> Batch:
        size = len(sequences)
        tokens_bt = np.full((size, length), self.pad_id, np.int32)
        kinds_bt = np.zeros((size, length), np.int8)
        slots_bt = np.zeros((size, length), np.int32)
        positions_bt3 = np.zeros((size, length, 3), np.int32)
        for row, sequence in enumerate(sequences):
            end = len(sequence.tokens_t)
            tokens_bt[row, :end] = sequence.tokens_t
            kinds_bt[row, :end] = sequence.kinds_t
            slots_bt[row, :end] = sequence.slots_t
            positions_bt3[row, :end] = sequence.positions_t3
        return Batch(
            tokens_bt=tokens_bt,
            kinds_bt=kinds_bt,
            positions_bt3=positions_bt3,
            slots_bt=slots_bt,
            lengths_b=np.array([len(s.tokens_t) for s in sequences], np.int32),
            next_position_b=np.array([s.next_position for s in sequences], np.int32),
            images=images,
        )


def _token(tokenizer, token_id: int | None, field: str) -> str:
    token = None if token_id is None else tokenizer.convert_ids_to_tokens(token_id)
    if token is None:
        raise CheckpointError(
            f"config.json has {field} {token_id}, which the tokenizer of {len(tokenizer)} tokens "
            "does not know; config and tokenizer are of different models."
        )
    return token


def _strings(values: Sequence[str], name: str) -> list[str]:
    if isinstance(values, str):
        raise PromptError(f"{name} must be a list with one string per sample, not one string.")
    values = list(values)
    if not values:
        raise PromptError("The batch is empty; give at least one prompt.")
    return values
