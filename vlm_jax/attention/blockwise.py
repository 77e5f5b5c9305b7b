"""Attention to one segment in tiles: an online softmax that never holds the T x S map.

One tile is alive at a time. Blocks of queries therefore share one loop: as loops of their own they
would depend on nothing of each other, and XLA's CPU backend would run, and hold, several at once.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vlm_jax.attention.segment import MASKED, Segment, Visibility, by_key_head, kinds_of
from vlm_jax.batch import Kind

BLOCK = 512
"""Queries and keys of a tile: 512 x 512 float32 logits of a head are 1 MiB, a core's cache."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tap:
    """What else to do in each tile; None and False compile to nothing.

    Attributes:
        rows_bt: rows whose logits are scaled.
        image_bn, system_bn: factors on the logits of image and system keys in those rows.
        masses: whether to sum the weights on image keys.
        squares: whether to sum squared weights.
        own: whether a reader that has it at hand returns each row's weight on its own key.
        projection: a `CausalProjection` for a reader that can do it to a lone causal segment.
    """

    rows_bt: Bool[Array, "B T"] | None = None
    image_bn: Any = None
    system_bn: Any = None
    masses: bool = dataclasses.field(default=False, metadata={"static": True})
    squares: bool = dataclasses.field(default=False, metadata={"static": True})
    own: bool = dataclasses.field(default=False, metadata={"static": True})
    projection: Any = None

    @classmethod
    def together(cls, taps: Sequence["Tap"]) -> "Tap | None":
        """Returns one tap that does what some do, of which one scales logits; None for none."""
        if not taps:
            return None
        scaling = next((tap for tap in taps if tap.rows_bt is not None), taps[0])
        return dataclasses.replace(
            scaling,
            masses=any(tap.masses for tap in taps),
            squares=any(tap.squares for tap in taps),
            own=any(tap.own for tap in taps),
            projection=next((tap.projection for tap in taps if tap.projection is not None), None),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Read:
    """What was read from one segment, float32 (float64 for float64).

    Attributes:
        out_btnh: normalised output.
        lse_btn: log-sum-exp of the logits.
        image_btn: float [B, T, N] share of the segment's weights on image keys, or None.
        squares_btn: float [B, T, N] sum of the squared weights within the segment, or None.
        own_btn: float [B, T, N] weight of each row on its own key; the tiles leave it out.
        projected: whether the output is projected, as the tap said; the tiles leave that out, too.
    """

    out_btnh: Float[Array, "B T N O"]
    lse_btn: Float[Array, "B T N"]
    image_btn: Any = None
    squares_btn: Any = None
    own_btn: Any = None
    projected: bool = dataclasses.field(default=False, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Sums:
    """Running sums of the online softmax, in the layout [B, K, G, T]."""

    top: Array
    total: Array
    values: Array  # [B, K, G, T, H]
    image: Any
    squares: Any

    def __add__(self, other: "_Sums") -> "_Sums":
        top = jnp.maximum(self.top, other.top)
        ours, theirs = jnp.exp(self.top - top), jnp.exp(other.top - top)
        mix = lambda a, b: None if a is None else ours * a + theirs * b
        return _Sums(
            top,
            ours * self.total + theirs * other.total,
            ours[..., None] * self.values + theirs[..., None] * other.values,
            mix(self.image, other.image),
            None
            if self.squares is None
            else ours * ours * self.squares + theirs * theirs * other.squares,
        )


def segment_attention(
    q_btnh: Float[Array, "B T N H"],
    segment: Segment,
    queries: Visibility,
    *,
    causal: bool = False,
    scale: float | None = None,
    block: int = BLOCK,
    tap: Tap | None = None,
) -> Read:
    """Attends to one segment of keys.

    Args:
        q_btnh: queries; query head n reads key head n // (N / K).
        segment: the keys, with what each may be seen by.
        queries: order and group of each query.
        causal: promises that queries and keys are the same places in the same order, so that tiles
            above the diagonal can be skipped. The mask itself always comes from `queries`.
        scale: factor on the logits; H ** -0.5 when None.
        block: queries and keys of a tile.
        tap: what else to do in each tile.
    """
    batch, length, heads, dim = q_btnh.shape
    factor = dim**-0.5 if scale is None else scale
    q_bkgth = by_key_head(q_btnh, segment.k_bksh.shape[1])
    read = _normalise(_over_tiles(_Tile(q_bkgth, queries, factor, tap), segment, causal, block))
    flat = lambda a: jnp.moveaxis(a, 3, 1).reshape(batch, length, heads, *a.shape[4:])
    return jax.tree.map(flat, read)


def _normalise(sums: _Sums) -> Read:
    # A row that sees nothing reads 0. Besides, this use of `top` keeps XLA from fusing it with the
    # exponential when nobody asks for the log-sum-exp: another exponential, with other last bits.
    sees = (sums.top > 0.5 * MASKED)[..., None]
    return Read(
        jnp.where(sees, sums.values / sums.total[..., None], 0.0),
        sums.top + jnp.log(sums.total),
        None if sums.image is None else sums.image / sums.total,
        None if sums.squares is None else sums.squares / (sums.total * sums.total),
    )


@dataclasses.dataclass(frozen=True)
class _Tile:
    """A block of queries, ready to read blocks of keys."""

    q_bkgth: Array
    queries: Visibility
    scale: float
    tap: Tap | None

    def slice(self, start: int | Array, length: int) -> "_Tile":
        """Returns `length` queries from `start` (static or traced)."""
        cut = lambda a, axis: jax.lax.dynamic_slice_in_dim(a, start, length, axis=axis)
        tap = self.tap
        if tap is not None and tap.rows_bt is not None:
            tap = dataclasses.replace(tap, rows_bt=cut(tap.rows_bt, 1))
        return _Tile(cut(self.q_bkgth, 3), self.queries.slice(start, length), self.scale, tap)

    def read(self, segment: Segment) -> _Sums:
        """Returns the sums over the keys of one block."""
        kind = jnp.promote_types(self.q_bkgth.dtype, jnp.float32)
        logits = self.scale * jnp.einsum(
            "bkgth,bksh->bkgts", self.q_bkgth, segment.k_bksh, preferred_element_type=kind
        )
        tap = self.tap or Tap()
        if tap.rows_bt is not None:
            gain = self._gain(segment, tap)
            logits = jnp.where(tap.rows_bt[:, None, None, :, None], logits * gain, logits)
        visible = self.queries.sees(segment.keys)
        if visible is not None:
            logits = jnp.where(visible[:, None, None], logits, MASKED)
        top = jnp.max(logits, axis=-1)
        weights = _once(jnp.exp(logits - top[..., None]))
        values = jnp.einsum(
            "bkgts,bksh->bkgth",
            weights.astype(segment.values_bksh.dtype),
            segment.values_bksh,
            preferred_element_type=kind,
        )
        image = squares = None
        if tap.masses:
            is_image = (kinds_of(segment) == Kind.IMAGE)[:, None, None, None]
            image = jnp.sum(jnp.where(is_image, weights, 0.0), axis=-1)
        if tap.squares:
            squares = jnp.sum(weights * weights, axis=-1)
        return _Sums(top, jnp.sum(weights, axis=-1), values, image, squares)

    def _gain(self, segment: Segment, tap: Tap) -> Array:
        """Factors on the logits of each key, [b, K, G, 1, S]."""
        kv_heads, group = self.q_bkgth.shape[1:3]
        shape = lambda a: a.reshape(a.shape[0], kv_heads, group, 1, 1)
        kinds = kinds_of(segment)[:, None, None, None]
        gain = jnp.where(kinds == Kind.IMAGE, shape(tap.image_bn), 1.0)
        return jnp.where(kinds == Kind.SYSTEM, shape(tap.system_bn), gain)


def _once(weights: Array) -> Array:
    """Keeps XLA's CPU backend from fusing the exponential into each sum that reads it.

    It would be computed again for every one of them, and slower.
    """
    barrier = jax.lax.optimization_barrier
    return jax.lax.platform_dependent(weights, cpu=barrier, default=lambda weights: weights)


def _over_tiles(queries: _Tile, segment: Segment, causal: bool, block: int) -> _Sums:
    """Runs the online softmax over all tiles: the ragged first block of queries, then whole blocks.

    The sums of whole blocks are stacked, and each step of one loop adds a tile to those of its
    queries; with `causal`, tiles above the diagonal are not in the loop.
    """
    length = queries.q_bkgth.shape[3]
    rest, blocks = _blocks(length, block)
    if not blocks:
        return _over_keys(queries, segment, block)
    ragged = _over_keys(
        queries.slice(0, rest), segment.slice(0, rest) if causal else segment, block
    )
    first, key_blocks = _blocks(segment.length, block)
    some = lambda index: queries.slice(rest + index * block, block)
    sums = jax.lax.map(lambda i: some(i).read(segment.slice(0, first)), jnp.arange(blocks))

    def add(sums: _Sums, tile: tuple[Array, Array]) -> tuple[_Sums, None]:
        i, j = tile
        mine = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, i, keepdims=False), sums)
        mine = mine + some(i).read(segment.slice(first + j * block, block))
        put = lambda a, new: jax.lax.dynamic_update_index_in_dim(a, new, i, axis=0)
        return jax.tree.map(put, sums, mine), None

    tiles = [(i, j) for i in range(blocks) for j in range(i + 1 if causal else key_blocks)]
    if tiles:
        which = np.array(tiles, np.int32)
        sums, _ = jax.lax.scan(add, sums, (jnp.asarray(which[:, 0]), jnp.asarray(which[:, 1])))
    join = lambda head, stack: jnp.concatenate([head, *stack], axis=3)
    return jax.tree.map(join, ragged, sums)


def _over_keys(tile: _Tile, segment: Segment, block: int) -> _Sums:
    """Runs the online softmax over the keys: the ragged first block, then whole ones in a scan."""
    first, blocks = _blocks(segment.length, block)
    if not blocks:
        return tile.read(segment)

    def add(sums: _Sums, index: Array) -> tuple[_Sums, None]:
        return sums + tile.read(segment.slice(first + index * block, block)), None

    return jax.lax.scan(add, tile.read(segment.slice(0, first)), jnp.arange(blocks))[0]


def _blocks(length: int, block: int) -> tuple[int, int]:
    """Returns the size of the first block, which takes what is left over, and how many follow."""
    first = min(length, length % block or block)
    return first, (length - first) // block
