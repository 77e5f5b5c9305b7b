"""Data-parallel vision towers: images are split over all devices, each with the whole tower.

A tower says by `apart` how its groups can be split. True: groups are independent, as the images and
tiles of a plain transformer. False: groups of a sample attend to one another; the tower is given
the mesh axes over which they are split (`across`) and gathers the keys that it needs.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from vlm_jax.attention import Segment
from vlm_jax.batch import Images

Across = tuple[str, ...]
"""Mesh axes over which the groups of a sample are dealt; () where a device has all of them."""


@dataclasses.dataclass(frozen=True)
class Deal:
    """How samples, and the image groups of a sample, are split over the axes of a mesh.

    On devices of `data` 2 x `model` 4: of 8 samples, each device has one; of 2 samples, those of
    one `data` have one, each a fourth of its groups; of 3 samples, each has an eighth of the groups
    of all of them.

    Attributes:
        rows, across: axes over which samples, and the groups of a sample, are split.
        pieces: number of devices along `across`.
        each: samples of a device.
    """

    rows: Across
    across: Across
    pieces: int
    each: int

    @classmethod
    def of(cls, batch: int, sizes: dict[str, int]) -> "Deal":
        """Splits samples over as many axes as they divide over, and their groups over the rest."""
        axes = tuple(sizes)
        count = lambda some: math.prod(sizes[axis] for axis in some)
        cut = next(n for n in range(len(axes), -1, -1) if batch % count(axes[:n]) == 0)
        return cls(axes[:cut], axes[cut:], count(axes[cut:]), batch // count(axes[:cut]))

    def groups(self, groups: int, apart: bool) -> int:
        """Returns the number of groups, with padding, that gives every device equally many."""
        unit = self.pieces // math.gcd(self.pieces, self.each) if apart else self.pieces
        return -(-groups // unit) * unit


def deal(
    read: Callable[[Any, Images, Across], Array], params: Any, images: Images, apart: bool
) -> Float[Array, "B M D"]:
    """Returns the features of images, each read by one device of the mesh in scope.

    Where samples and their groups do not divide over the devices, groups of padding are added.

    Args:
        read: returns features [B, M, D] of some images, equally many for each group, given `params`
            and the axes over which the other groups of their samples are split.
        params: arrays that every device holds whole.
        images: of all samples.
        apart: whether groups are independent of one another.
    """
    mesh = jax.sharding.get_abstract_mesh()
    batch, groups = images.ids_bgu.shape[:2]
    plan = Deal.of(batch, dict(mesh.shape))
    filled = plan.groups(groups, apart)
    split = PartitionSpec(plan.rows, plan.across)
    if apart:
        split = PartitionSpec((*plan.rows, *plan.across))
    lie: Any = Images(split, split, split, None)
    words = images.words_bs
    if words is not None:
        lie = dataclasses.replace(lie, words_bs=split if apart else PartitionSpec(plan.rows))
        words = jnp.repeat(words, filled, axis=0) if apart else words

    def place(a: Array, padding: int) -> Array:
        behind = (0, 0), (0, filled - groups), *[(0, 0)] * (a.ndim - 2)
        a = jnp.pad(a, behind, constant_values=padding)
        return a.reshape(batch * filled, 1, *a.shape[2:]) if apart else a

    dealt = Images(
        place(images.patches_bgue, 0), place(images.ids_bgu, -1), place(images.positions_bgu2, 0),
        words,
    )  # fmt: skip
    found = jax.shard_map(
        lambda params, own: read(params, own, () if apart else plan.across),
        mesh=mesh,
        in_specs=(PartitionSpec(), lie),
        out_specs=split,
        check_vma=False,
    )(params, dealt)
    features_bmd = found.reshape(batch, -1, found.shape[-1])
    features_bmd = features_bmd[:, : features_bmd.shape[1] // filled * groups]
    # The decoder wants them where the rows of the batch are.
    rows = "data" if "data" in plan.rows else None
    return jax.lax.with_sharding_constraint(features_bmd, PartitionSpec(rows))


def together(tree: Any, across: Across, axis: int = 1) -> Any:
    """Gathers arrays over the axes `across`: the parts of all devices, concatenated."""
    if not across:
        return tree
    return jax.tree.map(lambda a: jax.lax.all_gather(a, across, axis=axis, tiled=True), tree)


def all_keys(segment: Segment, across: Across) -> Segment:
    """Returns a segment with the keys of whole samples, gathered over `across`."""
    k_bksh, v_bksh = together((segment.k_bksh, segment.v_bksh), across, axis=2)
    return Segment(k_bksh, v_bksh, together(segment.keys, across))


def own_part(whole: Array, across: Across, count: int, axis: int = 1) -> Array:
    """Returns a device's own `count` places of what `together` gathered."""
    if not across:
        return whole
    start = jax.lax.axis_index(across) * count
    return jax.lax.dynamic_slice_in_dim(whole, start, count, axis=axis)
