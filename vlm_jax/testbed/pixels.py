"""Scenes as the arrays that a vision tower reads: what the shipped image processors make of them.

The image processors take PIL images one at a time; training wants thousands a second, and scenes
already have the size that the processors would resize to. A test holds both to the same numbers.
"""

import numpy as np

from vlm_jax.batch import Images
from vlm_jax.config import VLMConfig
from vlm_jax.families import find

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def cut_images(images: np.ndarray, config: VLMConfig) -> tuple[Images, np.ndarray]:
    """Normalises square images and cuts them into the tower's groups of patches.

    Args:
        images: uint8 [n, side, side, 3], side a multiple of the tower's patch.
        config: the model.

    Returns:
        One image a sample, and int32 [M], the feature that each image token reads.
    """
    count, size, patch = len(images), images.shape[1], config.vision.patch_size
    side = size // patch
    layout = find(config.family).layout(config, side, side)
    positions, real, slots = layout.positions_gu2, layout.index_gu >= 0, layout.slots_m
    scale = (1 / (255 * np.array(CLIP_STD))).astype(np.float32)
    shift = (np.array(CLIP_MEAN) / CLIP_STD).astype(np.float32)
    cells = (images * scale - shift).reshape(count, side, patch, side, patch, 3)
    cells = cells.transpose(0, 1, 3, 5, 2, 4)  # n, row, column, c, h, w
    frames = getattr(config.vision, "temporal_patch_size", 1)
    if frames > 1:
        cells = np.repeat(cells[:, :, :, :, None], frames, axis=4)
    flat = cells.reshape(count, side, side, -1)
    patches = flat[:, positions[..., 0], positions[..., 1]] * real[..., None]
    shape = (count, *real.shape)
    return Images(
        patches_bgue=patches.astype(np.float32, copy=False),
        ids_bgu=np.broadcast_to(np.where(real, 0, -1).astype(np.int32), shape),
        positions_bgu2=np.broadcast_to(positions, (*shape, 2)),
    ), slots


def label_patches(labels: np.ndarray, images: Images, patches_per_cell: int) -> np.ndarray:
    """Gives each patch the labels of the cell that it lies in.

    Args:
        labels: [n, rows * columns of cells, c], cells row by row.
        images: n images, one a sample.
        patches_per_cell: patches along a side of a cell.

    Returns:
        [n, groups, patches, c].
    """
    side = round(labels.shape[1] ** 0.5)
    index = images.positions_bgu2[0] // patches_per_cell @ np.array([side, 1])
    return labels[:, index]
