"""Causal projection of rows by the attention kernel, which has read them and not written them yet.

    rows 512..1023 of a head are read: it has each row's output, own weight and sum of squares
    add_values: sums of the values up to each row, from that of rows 0..511 on
    project: trace, squares and number of the rows up to each, from those of rows 0..511 on,
        then the rows by these (`causal_projection.factors`)

Sums go on from block to block in the chip's fast memory, so that the blocks of a key head follow
one another.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from vlm_jax.attention.causal_projection import factors

LANES = 128
COUNTED = 3
"""The line of `rows_8t` that is > 0 where rows are counted and projected."""

_TRACE, _SQUARES, _COUNT, _PROJECTED, _SUBLANES = 0, 1, 2, 3, 8


@dataclasses.dataclass(frozen=True)
class BlockProjection:
    """Projects blocks of rows, `size` rows of a query head at a time.

    Attributes:
        group: query heads of a key head.
        rows, keys: of a block of queries and of keys; multiples of `size`.
    """

    group: int
    rows: int
    keys: int

    @property
    def size(self) -> int:
        """Rows whose running sums one product makes."""
        return min(self.rows, LANES)

    def scratch(self, batch: int, width: int, dtype: Any) -> list[Any]:
        """Returns what is kept for some rows of the batch, the `refs` of the methods.

        The sum of the values so far, those up to each row of a block, the values of its rows, and
        by query head trace, squares and number of the rows so far.
        """
        return [
            pltpu.VMEM((batch, 1, width), jnp.float32),
            pltpu.VMEM((batch, self.rows, width), jnp.float32),
            pltpu.VMEM((batch, self.rows, width), dtype),
            pltpu.VMEM((batch, self.group, _SUBLANES, LANES), jnp.float32),
        ]

    def start(self, refs: Any) -> None:
        """Forgets the rows of the key head before."""
        total_ref, _, _, moments_ref = refs
        total_ref[...] = jnp.zeros_like(total_ref)
        moments_ref[...] = jnp.zeros_like(moments_ref)

    def add_values(self, at: tuple[Array, Array], v_ref: Any, rows_8t: Array, refs: Any) -> None:
        """Sums the values of a step's keys that are a block's own.

        Args:
            at: which block of rows and of keys.
            v_ref: the values of the keys.
            rows_8t: int32, what the block's rows are; see `COUNTED`.
            refs: of one row of the batch.
        """
        i, j = at
        total_ref, sums_ref, own_ref, _ = refs
        size, dtype = self.size, v_ref.dtype
        for start in range(0, self.rows, size):
            first = i * self.rows + start

            @pl.when(first // self.keys == j)
            def _(start: int = start, first: Array = first) -> None:
                where = pl.ds(pl.multiple_of(first - j * self.keys, size), size)
                v = v_ref[where].astype(jnp.float32)
                counts = rows_8t[:, start : start + size].T[:, COUNTED : COUNTED + 1]
                # Behind the last value is anything, NaN too.
                v = jnp.where(jnp.broadcast_to(counts, v.shape) > 0, v, 0.0).astype(dtype)
                sums = total_ref[...] + _product(_triangle(size, dtype), v)
                sums_ref[start : start + size] = sums
                own_ref[start : start + size] = v
                total_ref[...] = sums[size - 1 :]

    def project(
        self, out: Array, trace: Array, squares: Array, rows_8t: Array, how_2g11: Array, refs: Any,
        out_ref: Any,
    ) -> None:  # fmt: skip
        """Writes a block of rows, projected.

        Args:
            out: float32 [G * rows, H] as they were read.
            trace, squares: [1, G * rows], weights on their own keys, sums of squared weights.
            rows_8t: as for `add_values`.
            how_2g11: which heads are projected, > 0, and beta.
            refs: of one row of the batch.
            out_ref: [G, rows, H].
        """
        _, sums_ref, own_ref, moments_ref = refs
        size, width = self.size, out.shape[1]
        row = jax.lax.broadcasted_iota(jnp.int32, (_SUBLANES, size), 0)
        until = _triangle(size, jnp.float32).T
        for start in range(0, self.rows, size):
            some = slice(start, start + size)
            counts = rows_8t[COUNTED : COUNTED + 1, some]
            sums, own_values = sums_ref[some], own_ref[some].astype(jnp.float32)
            for head in range(self.group):
                lanes = slice(head * self.rows + start, head * self.rows + start + size)
                counted = _below(row, trace[:, lanes], squares[:, lanes], 1.0)
                counted = jnp.where(jnp.broadcast_to(counts, row.shape) > 0, counted, 0.0)
                moments = moments_ref[head, :, :size] + _product(counted, until)
                moments_ref[head] = jnp.broadcast_to(moments[:, size - 1 :], moments_ref.shape[1:])
                line = lambda index, moments=moments: moments[index : index + 1]
                on, beta = how_2g11[0, head], how_2g11[1, head]
                found = factors(line(_TRACE), line(_SQUARES), line(_COUNT), beta)
                columns = _below(row, *found, jnp.where(counts > 0, on, 0.0)).T
                scale, own, level, projected = (
                    jnp.broadcast_to(columns[:, index : index + 1], (size, width))
                    for index in range(_PROJECTED + 1)
                )
                rows = out[lanes]
                edited = scale * (rows - own * own_values) + level * sums
                out_ref[head, some] = jnp.where(projected > 0, edited, rows).astype(out_ref.dtype)


def _below(row: Array, *lines: Any) -> Array:
    """Returns lines [1, n] one below the other; the last one is in all rows that are left."""
    found = lines[-1]
    for index, line in reversed(list(enumerate(lines[:-1]))):
        found = jnp.where(row == index, line, found)
    return jnp.broadcast_to(found, row.shape)


def _triangle(size: int, dtype: Any) -> Array:
    """Returns ones up to the diagonal."""
    iota = lambda axis: jax.lax.broadcasted_iota(jnp.int32, (size, size), axis)
    return jnp.where(iota(1) <= iota(0), 1.0, 0.0).astype(dtype)


def _product(a: Array, b: Array) -> Array:
    exact = jax.lax.Precision.HIGHEST if b.dtype == jnp.float32 else None
    return jax.lax.dot(a, b, precision=exact, preferred_element_type=jnp.float32)
