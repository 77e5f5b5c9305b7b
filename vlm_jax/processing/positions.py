"""Placeholders expanded to image tokens, with the kind, feature slot and position of each token."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from vlm_jax.batch import Kind


@dataclasses.dataclass(frozen=True)
class Sequences:
    """One sample's prompt with its image tokens, unpadded.

    Attributes:
        tokens_t, kinds_t, slots_t: int32, int8, int32 [T].
        positions_t3: int32 [T, 3].
        next_position: rotary position of the token after the last.
    """

    tokens_t: np.ndarray
    kinds_t: np.ndarray
    slots_t: np.ndarray
    positions_t3: np.ndarray
    next_position: int

    def slice(self, start: int, end: int | None) -> "Sequences":
        """Returns the tokens of a range; the next position stays the whole sequence's."""
        part = lambda values: values[start:end]
        return Sequences(
            part(self.tokens_t),
            part(self.kinds_t),
            part(self.slots_t),
            part(self.positions_t3),
            self.next_position,
        )


def expand(
    ids: Sequence[int],
    image_token_id: int,
    slots: Sequence[np.ndarray],
    grids: Sequence[tuple[int, int]],
    mrope: bool,
) -> Sequences:
    """Replaces the i-th placeholder by the i-th image's tokens.

    Args:
        ids: token ids with one placeholder per image.
        image_token_id: the placeholder.
        slots: per image, int32 [image tokens] the features of its tokens.
        grids: per image, rows and columns of its tokens.
        mrope: whether image tokens get time, row and column positions (Qwen2.5-VL) or all tokens
            count up alike.
    """
    ids_array = np.asarray(ids, np.int32)
    places = np.flatnonzero(ids_array == image_token_id)
    repeats = np.ones(len(ids_array), np.int64)
    repeats[places] = [len(s) for s in slots]
    tokens = np.repeat(ids_array, repeats)
    starts = (np.cumsum(repeats) - repeats)[places]

    is_image = tokens == image_token_id
    kinds = np.where(is_image, Kind.IMAGE, Kind.TEXT).astype(np.int8)
    if len(starts):
        kinds[: starts[0]] = Kind.SYSTEM
    slots_t = np.zeros(len(tokens), np.int32)
    if len(slots):
        slots_t[is_image] = np.concatenate(slots)
    positions, following = _rotary(len(tokens), starts.tolist(), grids if mrope else ())
    return Sequences(tokens, kinds, slots_t, positions, following)


def _rotary(length: int, starts: Sequence[int], grids: Sequence[tuple[int, int]]):
    """Returns ([T, 3] positions, the next position): Qwen2-VL's m-rope for still images.

    Text advances all three axes by one a token. An image's tokens share one time step and spread
    over rows and columns from the position where it starts; the text after it goes on behind its
    longer side (arXiv:2409.12191, section 2.1).
    """
    positions = np.empty((length, 3), np.int32)
    done, position = 0, 0
    for start, (rows, cols) in zip(starts, grids):
        positions[done:start] = np.arange(position, position + start - done)[:, None]
        position += start - done
        done = start + rows * cols
        cells = np.indices((1, rows, cols), np.int32).reshape(3, -1).T
        positions[start:done] = position + cells
        position += max(rows, cols)
    positions[done:] = np.arange(position, position + length - done)[:, None]
    return positions, position + length - done
