"""Learned positions of a square grid, resampled to the grid of each image."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Kernel = Literal["bilinear", "bicubic"]


def image_extents(
    ids_bgu: Int[Array, "B G U"], positions_bgu2: Int[Array, "B G U 2"]
) -> Int[Array, "B G U 2"]:
    """Returns rows and columns of the image that each patch is of; some number where padded.

    Args:
        ids_bgu, positions_bgu2: as in `Images`.
    """
    batch, groups, _ = ids_bgu.shape
    # Every image fills a group, so there are no more images than groups; padding has the last id.
    owner_bp = jnp.where(ids_bgu < 0, groups, ids_bgu).reshape(batch, -1)
    place_bp2 = positions_bgu2.reshape(batch, -1, 2)
    last = lambda place, owner: jax.ops.segment_max(place, owner, num_segments=groups + 1)
    last_bi2 = jax.vmap(last)(place_bp2, owner_bp)
    extents = jnp.take_along_axis(last_bi2, owner_bp[..., None], axis=1) + 1
    return extents.reshape(positions_bgu2.shape)


def resample(
    table_pd: Float[Array, "P D"],
    positions_bgu2: Int[Array, "B G U 2"],
    extents_bgu2: Int[Array, "B G U 2"],
    side: int,
    kernel: Kernel,
) -> Float[Array, "B G U D"]:
    """Returns the position of each patch, from a table of `side` x `side` positions row by row.

    "bilinear" puts the corners of image and table on each other, "bicubic" their outer edges (Keys'
    kernel with -0.75, not antialiased), as `torch.nn.functional.interpolate` does with and without
    `align_corners`. In float32.
    """
    place = positions_bgu2.astype(jnp.float32)
    if kernel == "bilinear":
        source = place * (side - 1) / jnp.maximum(extents_bgu2 - 1, 1)
        offsets = (0, 1)
    else:
        source = (place + 0.5) * side / extents_bgu2 - 0.5
        offsets = (-1, 0, 1, 2)
    first = jnp.floor(source)
    taps = []
    for offset in offsets:
        index = jnp.clip(first.astype(jnp.int32) + offset, 0, side - 1)
        taps.append((index, _weight(jnp.abs(source - first - offset), kernel)))
    total = jnp.zeros((*positions_bgu2.shape[:-1], table_pd.shape[1]), jnp.float32)
    for row, row_weight in taps:
        for col, col_weight in taps:
            weight = (row_weight[..., 0] * col_weight[..., 1])[..., None]
            total = total + weight * table_pd[row[..., 0] * side + col[..., 1]]
    return total


def _weight(distance: Array, kernel: Kernel) -> Array:
    if kernel == "bilinear":
        return jnp.maximum(1 - distance, 0)
    a = -0.75
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return jnp.where(distance <= 1, near, far)
