"""Batches of whole prompts cut behind the last image token, as prefixes and what follows."""

import jax
import numpy as np

from vlm_jax.batch import Batch, Kind


def cut(
    whole: Batch, firsts: list[int], prefix_pads: int = 0, suffix_pads: int = 0
) -> tuple[Batch, Batch]:
    """Cuts each prompt into its prefix and its suffix.

    Args:
        whole: prompts, each with an image and at least one token behind it.
        firsts: one row for each different beginning, in the order in which owners count them.
        prefix_pads, suffix_pads: padding of the longest row.

    Returns:
        The beginnings of the rows `firsts`, with their images, and what follows in all rows.
    """
    is_image = np.asarray(whole.kinds_bt) == Kind.IMAGE
    ends = whole.tokens_bt.shape[1] - np.argmax(is_image[:, ::-1], axis=1)
    prefix = _rows(whole, [(row, 0, ends[row]) for row in firsts], prefix_pads)
    rows = range(whole.size)
    suffix = _rows(whole, [(row, ends[row], whole.lengths_b[row]) for row in rows], suffix_pads)
    pick = lambda leaf: np.asarray(leaf)[firsts]
    return _with(prefix, jax.tree.map(pick, whole.images)), suffix


def _with(batch: Batch, images) -> Batch:
    return Batch(**(vars(batch) | {"images": images}))


def _rows(whole: Batch, spans: list[tuple[int, int, int]], pads: int) -> Batch:
    """Returns part of each of some rows, right-padded."""
    lengths = np.array([stop - start for _, start, stop in spans], np.int32)

    def take(leaf, fill):
        leaf = np.asarray(leaf)
        made = np.full((len(spans), lengths.max() + pads, *leaf.shape[2:]), fill, leaf.dtype)
        for place, (row, start, stop) in enumerate(spans):
            made[place, : stop - start] = leaf[row, start:stop]
        return made

    return Batch(
        tokens_bt=take(whole.tokens_bt, 0),
        kinds_bt=take(whole.kinds_bt, Kind.PAD),
        positions_bt3=take(whole.positions_bt3, 0),
        slots_bt=take(whole.slots_bt, 0),
        lengths_b=lengths,
        next_position_b=np.asarray(whole.next_position_b)[[row for row, _, _ in spans]],
        images=None,
    )
