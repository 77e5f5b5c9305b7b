"""Patches of a Qwen2.5-VL image regrouped into attention windows of one static size.

The reference permutes a packed sequence into window order and back; here a window is a padded
group, and image tokens point into the groups, so nothing is ever permuted back.
"""

import dataclasses
import functools

import numpy as np


@dataclasses.dataclass(frozen=True)
class WindowLayout:
    """Where the patches of one image lie in its windows.

    Attributes:
        index_gu: int32 [windows, patches in a window] index of the patch in the image processor's
            order (merge units row by row, the patches of a unit together); -1 where padded.
        positions_gu2: int32 [windows, patches, 2] row and column of the patch; 0 where padded.
        slots_m: int32 [merge units] the unit's place among windows x units.
    """

    index_gu: np.ndarray
    positions_gu2: np.ndarray
    slots_m: np.ndarray


@functools.lru_cache(maxsize=1024)
def window_layout(rows: int, cols: int, merge: int, window: int) -> WindowLayout:
    """Returns the windows of a grid of `rows` x `cols` patches.

    Windows and the units in them run row by row. A window at the right or lower edge keeps its
    full size; the units beyond the edge are padding, in place.

    Args:
        rows, cols: patches along each side, multiples of `merge`.
        merge: patches along a side of a merge unit.
        window: merge units along a side of a window.
    """
    high, wide = rows // merge, cols // merge
    windows_high, windows_wide = -(-high // window), -(-wide // window)
    units = np.full((windows_high * window, windows_wide * window), -1, np.int32)
    units[:high, :wide] = np.arange(high * wide, dtype=np.int32).reshape(high, wide)
    units_gs = (
        units.reshape(windows_high, window, windows_wide, window)
        .transpose(0, 2, 1, 3)
        .reshape(-1, window * window)
    )
    slots = np.empty(high * wide, np.int32)
    flat = units_gs.ravel()
    slots[flat[flat >= 0]] = np.flatnonzero(flat >= 0)

    inside = np.indices((merge, merge), np.int32).reshape(2, -1).T
    corner = np.stack(np.divmod(np.maximum(units_gs, 0), wide), -1) * merge
    real = np.repeat(units_gs[..., None] >= 0, merge * merge, -1)
    index = np.where(real, units_gs[..., None] * merge**2 + np.arange(merge**2), -1)
    positions = np.where(real[..., None], corner[:, :, None] + inside, 0)
    groups = len(units_gs)
    layout = WindowLayout(
        index.reshape(groups, -1).astype(np.int32),
        positions.reshape(groups, -1, 2).astype(np.int32),
        slots,
    )
    for array in (layout.index_gu, layout.positions_gu2, layout.slots_m):
        array.flags.writeable = False  # shared by every image of this size
    return layout
