"""Token ids and images to samples: measured from headers, then decoded, cut and laid out."""

import contextlib
from collections.abc import Hashable, Iterator, Sequence
from typing import Literal

import numpy as np

from vlm_jax.config import VLMConfig
from vlm_jax.errors import CheckpointError, PromptError
from vlm_jax.families import find
from vlm_jax.processing.cutters import Cutter, Extent, Patches
from vlm_jax.processing.images import (
    ImageSource,
    check_pixels,
    describe,
    image_key,
    image_size,
    load_image,
)
from vlm_jax.processing.positions import expand
from vlm_jax.processing.samples import Draft, Sample

Part = Literal["all", "prefix", "suffix"]


class SampleReader:
    """Makes samples of ids and images; knows no words.

    Args:
        config: the model's architecture.
        cut: cuts images into patches.
        image_token: text of an image's placeholder, for errors.
        max_image_pixels: images of more pixels, as they are or once resized, are refused before
            they are decoded.
    """

    def __init__(self, config: VLMConfig, cut: Cutter, image_token: str, max_image_pixels: int):
        self._config, self._cut, self._image_token = config, cut, image_token
        self._max_pixels = max_image_pixels
        assert config.image_token_id is not None  # `Processor` has looked it up
        self._image_id = config.image_token_id
        self._most_images = find(config.family).most_images

    def draft(
        self,
        ids: Sequence[int],
        images: Sequence[ImageSource],
        number: int,
        extents: dict[Hashable, Extent],
        words: Sequence[int] = (),
    ) -> Draft:
        """Measures a sample; of image files only the headers are read.

        Args:
            ids: of the templated text, one placeholder an image.
            images: the sample's images.
            number: what errors call the sample.
            extents: what is known of images already, by image key; new ones are added.
            words: the question's, as of `Draft`.

        Raises:
            PromptError: placeholders and images are not as many, there are more images than the
                model takes, an image cannot be read, or a question is too long for the Q-Former.
        """
        token = self._image_id
        places = [place for place, id in enumerate(ids) if id == token]
        if len(places) != len(images):
            raise PromptError(
                f"Sample {number}: its text has {len(places)} {self._image_token} "
                f"placeholder(s) but {len(images)} image(s) were given; they must be as many."
            )
        if self._most_images is not None and len(images) > self._most_images:
            raise PromptError(
                f"Sample {number} has {len(images)} images, but {self._config.family} takes "
                f"{self._most_images} a sample; ask about each image by itself."
            )
        former = self._config.qformer
        if former is not None and len(words) > former.max_positions > 0:
            raise PromptError(
                f"Sample {number}: its question is {len(words)} words long to the Q-Former, more "
                f"than its {former.max_positions} positions; shorten it."
            )
        keys, cut = [], self._cut.among(len(images))
        for order, source in enumerate(images):
            where = _where(number, order)
            key = image_key(source, where)
            # An image that is cut otherwise among others is another image.
            keys.append(key if cut is self._cut else (key, "among many"))
            if keys[-1] not in extents:
                width, height = image_size(source, where, self._max_pixels)
                with refusals(where, source, width, height):
                    # A small file may be large once it is resized; nothing is allocated before.
                    wide, high = cut.resized(width, height)
                    named = f"{where} ({describe(source)}, {width}x{height} pixels)"
                    check_pixels(named, "is resized to", wide, high, self._max_pixels)
                    extents[keys[-1]] = cut.extent(width, height)
        return Draft(
            number=number,
            ids=tuple(ids),
            images=tuple(images),
            image_keys=tuple(keys),
            extents=tuple(extents[key] for key in keys),
            prefix_ids=places[-1] + 1 if places else 0,
            words=tuple(words),
        )

    def check_length(self, draft: Draft, limit: int | None, length: int | None) -> None:
        """Refuses a prompt of more than `limit` tokens (None: the model's positions) or `length`.

        Raises:
            PromptError: naming the sample and both numbers.
        """
        limit = self._config.decoder.max_positions if limit is None else limit
        images = f" ({len(draft.images)} image(s) included)" if draft.images else ""
        if draft.length > limit:
            raise PromptError(
                f"Sample {draft.number}: its prompt is {draft.length} tokens long{images}, more "
                f"than the {limit} allowed (the model has {self._config.decoder.max_positions} "
                "positions); shorten it, give fewer or smaller images, or ask for fewer new tokens."
            )
        if length is not None and draft.length > length:
            raise PromptError(
                f"Sample {draft.number}: its prompt is {draft.length} tokens long{images}, more "
                f"than the length of {length} asked for; shorten it or ask for more."
            )

    def read(
        self, draft: Draft, part: Part = "all", made: dict[Hashable, Patches] | None = None
    ) -> Sample:
        """Lays out the tokens of a draft and decodes its images.

        Args:
            part: the whole prompt; its "prefix", which ends with the last image; or the "suffix"
                after that, for which nothing is decoded.
            made: patches by image key, of images that were cut already; new ones are added.

        Raises:
            PromptError: naming the sample and the image that cannot be decoded.
        """
        slots, used = [], 0
        for extent in draft.extents:
            # Below 0 are learned tokens, which belong to no group.
            slots.append(np.where(extent.slots_m < 0, extent.slots_m, extent.slots_m + used))
            used += extent.groups * self._cut.slots_per_group
        sequence = expand(
            draft.ids,
            self._image_id,
            slots,
            [extent.grid for extent in draft.extents],
            self._config.decoder.mrope_section is not None,
        )
        end = draft.length - draft.suffix_length
        if part == "suffix":
            return Sample(sequence.slice(end, None))
        made, cut = {} if made is None else made, self._cut.among(len(draft.images))
        for order, (source, key) in enumerate(zip(draft.images, draft.image_keys)):
            if key not in made:
                where = _where(draft.number, order)
                made[key] = self._patches(cut, source, where, draft.extents[order])
        patches = [made[key] for key in draft.image_keys]
        sequence = sequence.slice(0, end) if part == "prefix" else sequence
        return Sample(sequence, patches, draft.words)

    def _patches(self, cut: Cutter, source: ImageSource, where: str, extent: Extent) -> Patches:
        image = load_image(source, where, self._max_pixels)
        with refusals(where, source, image.width, image.height):
            patches = cut(image)
        if patches.groups != extent.groups:
            raise PromptError(
                f"{where} ({describe(source)}) fills {patches.groups} groups of patches where its "
                f"header promised {extent.groups}; the file changed while it was read."
            )
        return patches


def _where(sample: int, image: int) -> str:
    return f"Sample {sample}, image {image}"


@contextlib.contextmanager
def refusals(where: str, source: ImageSource, width: int, height: int) -> Iterator[None]:
    """Turns what an image processor says of an image into a message that names the image.

    Raises:
        PromptError: the image processor refused it.
    """
    try:
        yield
    except (CheckpointError, PromptError, MemoryError):
        raise
    except Exception as error:  # image processors raise errors of any type on odd settings
        raise PromptError(
            f"{where} ({describe(source)}, {width}x{height} pixels) was refused by the image "
            f"processor: {error}"
        ) from None
