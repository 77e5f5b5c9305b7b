"""Samples before they are a batch: measured (`Draft`), images cut (`Sample`), then padded."""

import dataclasses
import itertools
from collections.abc import Callable, Hashable, Sequence

import jax
import numpy as np

from vlm_jax.batch import Batch, Images
from vlm_jax.processing.cutters import Cutter, Extent, Patches
from vlm_jax.processing.images import ImageSource
from vlm_jax.processing.positions import Sequences


@dataclasses.dataclass(frozen=True)
class Draft:
    """A sample measured before its images are decoded: its ids and the extents of its images.

    Attributes:
        number: what errors call the sample.
        ids: token ids of the templated text, one placeholder an image.
        images: the sample's images.
        image_keys: equal for equal images (`images.image_key`).
        extents: what the images become.
        prefix_ids: how many of `ids` end with the last placeholder; 0 without images.
        words: ids of the question for a Q-Former that reads it; none for other models.
        views: further readings of the sample that a decoding strategy asks for.
        pixels: changes a view's normalised pixels [patches, C, frames, pixels of a patch and
            channel] of all images, if something is to change them.
    """

    number: int
    ids: tuple[int, ...]
    images: tuple[ImageSource, ...]
    image_keys: tuple[Hashable, ...]
    extents: tuple[Extent, ...]
    prefix_ids: int
    words: tuple[int, ...] = ()
    views: tuple["Draft", ...] = ()
    pixels: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None

    @property
    def all_views(self) -> tuple["Draft", ...]:
        """The sample itself and its views."""
        return self, *self.views

    @property
    def length(self) -> int:
        """Tokens of the prompt, image tokens counted."""
        return len(self.ids) + sum(extent.tokens - 1 for extent in self.extents)

    def tokens(self, image_token_id: int | None) -> list[int]:
        """Returns the ids of the whole prompt, an image's placeholder once for each of its tokens.

        With placeholder 9 and an image of three tokens, ids 5 9 6 are 5 9 9 9 6.
        """
        extents = iter(self.extents)
        each = ([i] * (next(extents).tokens if i == image_token_id else 1) for i in self.ids)
        return list(itertools.chain.from_iterable(each))

    @property
    def suffix_length(self) -> int:
        """Tokens behind the last image."""
        return len(self.ids) - self.prefix_ids

    @property
    def groups(self) -> int:
        """Groups of patches of all images."""
        return sum(extent.groups for extent in self.extents)

    @property
    def prefix(self) -> Hashable:
        """Equal for samples that are read alike through their last image.

        Where image tokens depend on the question, no two questions are.
        """
        return self.ids[: self.prefix_ids], self.image_keys, self.words

    @property
    def question(self) -> Hashable:
        """Equal for samples that ask the same."""
        return self.ids, self.image_keys, self.words


@dataclasses.dataclass(frozen=True)
class Sample:
    """A prompt with its image tokens, its images cut into patches, and words as of `Draft`."""

    sequence: Sequences
    patches: Sequence[Patches] = ()
    words: Sequence[int] = ()


def pad(
    samples: Sequence[Sample], length: int, groups: int, words: int, cut: Cutter, pad_id: int
) -> Batch:
    """Makes a batch of samples.

    Args:
        samples: at most `length` tokens, `groups` groups and `words` words each.
        length: T of the batch.
        groups: groups of patches of each row; 0 makes a batch without images.
        words: words of each row for a Q-Former that reads them; 0 for others.
        cut: what cut the patches.
        pad_id: fills rows behind their tokens.
    """
    sequences = [sample.sequence for sample in samples]
    size = len(samples)
    tokens_bt = np.full((size, length), pad_id, np.int32)
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
        images=_pad_images(samples, groups, words, cut) if groups else None,
    )


def shapes(rows: int, length: int, groups: int, words: int, cut: Cutter) -> Batch:
    """Returns `ShapeDtypeStruct`s of what `pad` makes of `rows` samples."""
    shape = lambda dtype, *dims: jax.ShapeDtypeStruct((rows, *dims), dtype)
    patches = groups, cut.patches_per_group
    return Batch(
        tokens_bt=shape(np.int32, length),
        kinds_bt=shape(np.int8, length),
        positions_bt3=shape(np.int32, length, 3),
        slots_bt=shape(np.int32, length),
        lengths_b=shape(np.int32),
        next_position_b=shape(np.int32),
        images=Images(
            shape(np.float32, *patches, cut.patch_features),
            shape(np.int32, *patches),
            shape(np.int32, *patches, 2),
            shape(np.int32, words) if words else None,
        )
        if groups
        else None,
    )


def _pad_images(samples: Sequence[Sample], groups: int, words: int, cut: Cutter) -> Images:
    shape = (len(samples), groups, cut.patches_per_group)
    patches_bgue = np.zeros((*shape, cut.patch_features), np.float32)
    ids_bgu = np.full(shape, -1, np.int32)
    positions_bgu2 = np.zeros((*shape, 2), np.int32)
    words_bs = np.full((len(samples), words), -1, np.int32) if words else None
    for row, sample in enumerate(samples):
        used = 0
        if words_bs is not None:
            words_bs[row, : len(sample.words)] = sample.words
        for number, one in enumerate(sample.patches):
            here = row, slice(used, used + one.groups)
            one.fill(patches_bgue[here])
            ids_bgu[here] = np.where(one.index_gu >= 0, number, -1)
            positions_bgu2[here] = one.positions_gu2
            used += one.groups
    return Images(patches_bgue, ids_bgu, positions_bgu2, words_bs)
