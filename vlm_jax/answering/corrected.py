"""Answers whose words are looked at again: decoded on the devices, corrected by the host."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vlm_jax.answering.loop import Answer, Engine
from vlm_jax.answering.plan import batch_rows
from vlm_jax.attention.steering import Steering
from vlm_jax.batch import Batch
from vlm_jax.decoding import DecodeSettings
from vlm_jax.decoding.rerankers.halc import FIELDS, HALC, Box, fields_of_view
from vlm_jax.errors import ConfigError, PromptError
from vlm_jax.processing import ImageSource
from vlm_jax.processing.buckets import bucket
from vlm_jax.processing.images import load_image


def correcting(
    engine: Engine, settings: DecodeSettings, halc: HALC, steering: Steering | None
) -> "Callable[..., _Corrected]":
    """Returns what makes a question of images, a prompt, its index and its seed.

    Args: as of `ranking`.

    Raises:
        ConfigError: answers are to be drawn.
    """
    if not settings.greedy:
        raise ConfigError("method 'halc' decodes greedily; set temperature to 0.")
    return functools.partial(
        _Corrected, engine=engine, settings=settings, halc=halc, steering=steering
    )


@dataclasses.dataclass(frozen=True)
class _Corrected:
    """One question."""

    engine: Engine
    images: Sequence[ImageSource]
    prompt: str
    settings: DecodeSettings
    halc: HALC
    steering: Steering | None
    index: int
    seed: int

    def answer(self) -> Answer:
        """Returns the answer: decodes, looks at the first noun that was not looked at, and goes on.

        Raises:
            PromptError: the sample has not one image.
        """
        if len(self.images) != 1:
            raise PromptError(
                f"Sample {self.index}: nouns are looked for in one image, but the sample has "
                f"{len(self.images)}."
            )
        random = np.random.default_rng((self.halc.seed, self.seed))
        tokens: list[int] = []
        looked = 0
        while True:
            drafted, ended = self._draft(tokens)
            whole = [*tokens, *drafted]
            corrected = self._correct(whole, looked, random)
            if corrected is None:
                return Answer(self.index, self._text(whole), tuple(whole), ended)
            tokens, looked = corrected
            if len(tokens) < looked:  # the last word is gone; the model would say it again
                return Answer(self.index, self._text(tokens), tuple(tokens), True)

    @functools.cached_property
    def image(self) -> Any:
        """The image that nouns are looked for in."""
        return load_image(self.images[0], f"Sample {self.index}")

    def _draft(self, tokens: Sequence[int]) -> tuple[list[int], bool]:
        """Returns what the model says next, and whether it ends there."""
        left = self.settings.max_new_tokens - len(tokens)
        if left < 1:
            return [], False
        data = self.engine.generator.mesh.shape["data"]
        batch = self._batch([self.images[0]] * data, tokens)
        least = max((self.settings.min_new_tokens or 0) - len(tokens), 0)
        made = self.engine.generator(
            self.engine.params,
            batch,
            self.settings.replace(max_new_tokens=left, min_new_tokens=least),
            slots=bucket(self.settings.max_new_tokens),
            stop_ids=self.engine.processor.stop_ids,
            pad_id=self.engine.processor.pad_id,
            prompts=np.where(np.asarray(batch.kinds_bt) == 0, -1, np.asarray(batch.tokens_bt)),
            steering=self.steering,
            strategy=self.halc.strategy,
        )
        return made.tokens_bn[0, : int(made.lengths_b[0])].tolist(), bool(made.ended_b[0])

    def _correct(
        self, whole: list[int], looked: int, random: np.random.Generator
    ) -> tuple[list[int], int] | None:
        """Returns tokens to go on from, and how many need no look; None where all stays.

        Where the last word is removed, more need no look than there are.

        Args:
            whole: the answer as it was decoded.
            looked: tokens of it that need no look.
            random: draws what is drawn.
        """
        for start, end, word in self._words(whole):
            if start < looked or not self.halc.wants(word, random):
                continue
            place = self.halc.box(self.image, word, random)
            if place is None:
                continue
            box, found = place
            said = whole[:start]
            scores_jv = self.halc.contrasts(self._look(said, box))
            candidates = list(dict.fromkeys(scores_jv.argmax(axis=1).tolist()))
            texts = [self._text([*said, one]) for one in candidates]
            best = candidates[self.halc.best(texts, self.images[0])]
            if best != whole[start]:
                return [*said, best], start + 1
            if not found:
                gone = [self._unknown] * (end - start) if self.halc.repo_bug else []
                kept = [*said, *gone, *whole[end : end + 1]]
                return kept, max(len(kept), start + 1)
        return None

    def _look(self, said: Sequence[int], box: Box) -> np.ndarray:
        """Returns float32 [fields, V], the logits of the next token by each field of view."""
        fields = fields_of_view(box, self.halc.growth)
        crops = [_crop(self.image, one) for one in fields]
        rows = batch_rows(FIELDS, FIELDS, self.engine.generator.mesh.shape["data"])
        batch = self._batch(crops + crops[-1:] * (rows - FIELDS), said)
        logits = self.engine.generator.next_logits(self.engine.params, batch, self.steering)
        return np.asarray(logits)[:FIELDS]

    def _batch(self, images: Sequence[Any], said: Sequence[int]) -> Batch:
        """Returns the prompt about each of some images, with what was said behind it."""
        return self.engine.processor.batch_answers(
            [[image] for image in images],
            [self.prompt] * len(images),
            [list(said)] * len(images),
            system=self.settings.system,
            first_sample=self.index,
        )[0]

    def _words(self, tokens: Sequence[int]) -> list[tuple[int, int, str]]:
        """Returns where words begin and end among tokens, and the words, without marks and plural.

        A word ends before a token that begins with a space or holds a full stop.
        """
        texts = [self._text(tokens[:count]) for count in range(len(tokens) + 1)]
        pieces = [after[len(before) :] for before, after in itertools.pairwise(texts)]
        begins = [
            n for n, piece in enumerate(pieces) if not n or piece[:1].isspace() or "." in piece
        ]
        found = []
        for start, end in zip(begins, [*begins[1:], len(tokens)]):
            word = re.sub(r"[.,'\])]+$", "", "".join(pieces[start:end]).strip())
            found.append((start, end, word.removesuffix("s")))
        return found

    def _text(self, tokens: Sequence[int]) -> str:
        return self.engine.processor.decode([list(tokens)], np.array([len(tokens)]))[0]

    @property
    def _unknown(self) -> int:
        """The token that stands for what a vocabulary lacks."""
        found = self.engine.processor.tokenizer.unk_token_id
        return 0 if found is None else int(found)


def _crop(image: Any, box: Box) -> Any:
    """Returns a part of an image, of a pixel at least."""
    left, right = round(box[0] * image.width), round(box[2] * image.width)
    top, bottom = round(box[1] * image.height), round(box[3] * image.height)
    left, top = min(left, image.width - 1), min(top, image.height - 1)
    return image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
