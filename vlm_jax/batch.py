"""The padded batch that `processing` makes and `models` reads: where words become arrays.

Every leaf has the batch as its leading dimension, so one `PartitionSpec("data")` shards all of it.
"""

import dataclasses
import enum
from typing import Any

import jax

Array = Any
"""NumPy on the host, `jax.Array` on devices."""


class Kind(enum.IntEnum):
    """What a token is. Every mask and every "visual tokens" rule of every method is read off it."""

    PAD = 0
    SYSTEM = 1  # before the first image of the sample
    IMAGE = 2  # a placeholder that a merged image token replaces
    TEXT = 3  # everything else, generated tokens included


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Images:
    """The images of each sample as groups of patches, padded.

    A group is one image for a CLIP tower and one attention window for a Qwen2.5-VL tower, so that
    windowed attention is a batched block and never a masked square.

    Attributes:
        patches_bgue: float32 [B, groups, patches in a group, C * frames * patch * patch] normalised
            pixels, flattened in that order; zero where padded.
        ids_bgu: int32 [B, groups, patches] index of the image within its sample, -1 where padded.
        positions_bgu2: int32 [B, groups, patches, 2] row and column of the patch in its image.
        words_bs: int32 [B, S] ids of the question's words, -1 where padded, for a Q-Former that
            reads them; None for others.
    """

    patches_bgue: Array
    ids_bgu: Array
    positions_bgu2: Array
    words_bs: Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Features:
    """What the tower and the projector made of the images of each sample.

    Attributes:
        features_bmd: float [B, M, D] one row for each merged patch, in group order; wider where
            the tower also feeds later layers of the decoder.
    """

    features_bmd: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Prompts, right-padded to one length.

    Attributes:
        tokens_bt: int32 [B, T] token ids; image tokens hold the placeholder id, pads any valid id.
        kinds_bt: int8 [B, T] `Kind` of each token.
        positions_bt3: int32 [B, T, 3] rotary positions (time, height, width); the three are equal
            for families without m-rope.
        slots_bt: int32 [B, T] for image tokens the index of their merged feature among the sample's
            features [M, D] in group order (groups x merged patches, flattened), or -1 for the
            connector's learned newline, -2 for its learned separator; 0 elsewhere.
        lengths_b: int32 [B] number of real tokens.
        next_position_b: int32 [B] rotary position of the first generated token.
        images: the samples' images, or their features, or None when no sample has one.
    """

    tokens_bt: Array
    kinds_bt: Array
    positions_bt3: Array
    slots_bt: Array
    lengths_b: Array
    next_position_b: Array
    images: Images | Features | None

    @property
    def size(self) -> int:
        """Number of samples B."""
        return self.tokens_bt.shape[0]
