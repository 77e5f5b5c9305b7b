"""Attention to one segment by a fused kernel of our own, for TPUs (Pallas, compiled by Mosaic).

It returns what the tiles return (`blockwise`), of the same online softmax, but no logits and no
weights ever leave the chip's fast memory. Of each query row i and head, with logits z and
lse_i = log sum_s exp(z_is),

    out_i     = sum_s exp(z_is - lse_i) v_s
    image_i   = sum over image keys s of exp(z_is - lse_i)      (Tap.masses)
    squares_i = sum_s exp(z_is - lse_i)^2                       (Tap.squares)
    own_i     = exp(z_ii - lse_i)                               (Tap.own)

and the rows of a causal segment are projected before they are written (Tap.projection).

A step reads `rows` queries of all G heads that share a key head, and a block of its keys. Queries
of a window are few, so that one step reads many windows.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from vlm_jax.attention.blockwise import Read, Tap
from vlm_jax.attention.pallas_projection import LANES, BlockProjection
from vlm_jax.attention.segment import MASKED, NEVER, Segment, Visibility, by_key_head, kinds_of
from vlm_jax.batch import Kind

ROWS, HEADS = "data", "model"
"""Axes of the mesh, of rows of the batch and of heads."""

_QUERIES, _KEYS = 1024, 512  # 2 MiB of float32 logits, of the 16 that a program has
_GROUP = 16  # query heads of a key head that one step can read
_WIDTH = 256  # of a head
_TOP, _TOTAL, _IMAGE, _SQUARES, _OWN, _STATS = 0, 1, 2, 3, 4, 8


def fits(q_btnh: Array, segment: Segment) -> bool:
    """Says whether the kernel can read a segment for some queries."""
    heads, kv_heads = q_btnh.shape[2], segment.k_bksh.shape[1]
    widest = max(q_btnh.shape[-1], segment.values_bksh.shape[-1])
    return (
        q_btnh.dtype in (jnp.bfloat16, jnp.float32)
        and heads // kv_heads <= _GROUP
        and widest <= _WIDTH
        and q_btnh.shape[0] == segment.k_bksh.shape[0]
    )


def kernel_attention(
    q_btnh: Float[Array, "B T N H"],
    segment: Segment,
    queries: Visibility,
    *,
    causal: bool = False,
    scale: float | None = None,
    tap: Tap | None = None,
    dtype: Any = jnp.float32,
    interpret: bool | pltpu.InterpretParams = False,
) -> Read:
    """Attends to one segment of keys; on a mesh in scope, each device to its rows and heads.

    Args:
        q_btnh, segment, queries, scale, tap: as `segment_attention` takes them.
        causal: queries and keys are the same places in the same order, padded on the right, if at
            all: their orders are not looked at, and rows of padding read what means nothing.
        dtype: of the output as it is written; `Read` has it as float32.
        interpret: runs on any device, slowly; as a simulated TPU if parameters of one are given.
    """
    tap, dim = tap or Tap(), q_btnh.shape[-1]
    mesh = jax.sharding.get_abstract_mesh()
    alone = mesh.empty or mesh.are_all_axes_manual  # or each device has its own already
    devices = 1 if alone else mesh.shape[HEADS]
    inputs = _Inputs.of(q_btnh, segment, queries, causal, tap, devices)
    read = functools.partial(
        _read,
        causal=causal,
        scale=dim**-0.5 if scale is None else scale,
        tap=Tap(masses=tap.masses, squares=tap.squares, own=tap.own),
        dtype=dtype,
        interpret=interpret,
    )
    by_head = read(inputs) if alone else _shared(read, inputs, mesh)
    # Here, not beside the kernel: XLA then makes both part of what reads the output.
    found = jax.tree.map(lambda a: a.swapaxes(1, 2), by_head)
    return dataclasses.replace(found, out_btnh=found.out_btnh.astype(jnp.float32))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Inputs:
    """What the kernel reads; None is not read.

    Attributes:
        q_bkgth: queries by the key head that they read; where several devices share a key head,
            by the device that has them (`_shared`).
        k_bksh, v_bksh: keys, values.
        rows_b8t: of queries order, group, 1 where logits are scaled and where rows are counted and
            projected; int32.
        keys_b8s: of keys order, group and kind; int32.
        gains_b2n: factors on the logits of image and system keys.
        projection_b2n: heads whose rows are projected, and beta.
    """

    q_bkgth: Array
    k_bksh: Array
    v_bksh: Array
    rows_b8t: Any
    keys_b8s: Any
    gains_b2n: Any
    projection_b2n: Any

    @classmethod
    def of(
        cls,
        q_btnh: Array,
        segment: Segment,
        queries: Visibility,
        causal: bool,
        tap: Tap,
        devices: int,
    ) -> "_Inputs":
        """Lays out what is asked for, for so many devices that share the heads."""
        batch, length, heads, _ = q_btnh.shape
        kv_heads = segment.k_bksh.shape[1]
        if kv_heads % devices and heads % devices == 0 and devices % kv_heads == 0:
            kv_heads = devices
        # Here, not on each device: the last row of prompts is picked from the same array.
        q_bkgth = by_key_head(q_btnh, kv_heads)
        keys, gained = segment.keys, tap.rows_bt is not None
        both = lambda a, b: (None, None) if a is None or b is None else (a, b)
        orders, groups = both(queries.order, keys.order), both(queries.group, keys.group)
        kinds = kinds_of(segment) if gained or tap.masses else None
        rows = keys_of = gains = projection = None
        project = tap.projection if causal else None
        if gained or project or not causal:
            counted = None if project is None else project.rows_bt
            rows = _stack([orders[0], groups[0], tap.rows_bt, counted], batch, length)
        if kinds is not None or not causal:
            keys_of = _stack([orders[1], groups[1], kinds], batch, segment.length)
        of_heads = lambda *given: jnp.stack([jnp.broadcast_to(a, (batch, heads)) for a in given], 1)
        if gained:
            gains = of_heads(tap.image_bn, tap.system_bn)
        if project is not None:
            projection = of_heads(project.on_bn, project.beta_bn)
        return cls(q_bkgth, segment.k_bksh, segment.values_bksh, rows, keys_of, gains, projection)


def _shared(read: Callable[[_Inputs], Read], inputs: _Inputs, mesh: Any) -> Read:
    """Reads with rows split over `data` and heads over `model`, where these divide.

    Where key heads do not divide, but several devices can share one, each takes its own of all: of
    2 key heads with 8 query heads each, 4 devices with 4 query heads each read 0, 0, 1, 1.
    """
    batch, groups = inputs.q_bkgth.shape[:2]
    devices, kv_heads = mesh.shape[HEADS], inputs.k_bksh.shape[1]
    split, split_keys = groups % devices == 0, kv_heads % devices == 0
    rows, over = ROWS if batch % mesh.shape[ROWS] == 0 else None, HEADS if split else None
    wide, narrow = PartitionSpec(rows, HEADS if split_keys else None), PartitionSpec(rows)
    by_head = PartitionSpec(rows, over)
    factors = PartitionSpec(rows, None, over)
    lies: dict[str, Any] = dict(
        q_bkgth=by_head, k_bksh=wide, v_bksh=wide, rows_b8t=narrow, keys_b8s=narrow,
        gains_b2n=factors, projection_b2n=factors,
    )  # fmt: skip
    lies |= {name: None for name, array in vars(inputs).items() if array is None}

    def own_heads(inputs: _Inputs) -> Read:
        if split and not split_keys:
            mine = jax.lax.axis_index(HEADS) * kv_heads // devices
            pick = lambda a: jax.lax.dynamic_slice_in_dim(a, mine, 1, axis=1)
            inputs = dataclasses.replace(
                inputs, k_bksh=pick(inputs.k_bksh), v_bksh=pick(inputs.v_bksh)
            )
        return read(inputs)

    return jax.shard_map(
        own_heads,
        mesh=mesh,
        in_specs=(_Inputs(**lies),),
        out_specs=by_head,
        check_vma=False,
    )(inputs)


def _stack(columns: list[Array | None], batch: int, length: int) -> Array:
    """Returns int32 [B, 8, length]: the columns, then zeros."""
    zeros = jnp.zeros((batch, length), jnp.int32)
    given = [zeros if a is None else jnp.broadcast_to(a.astype(jnp.int32), zeros.shape)
             for a in columns]  # fmt: skip
    return jnp.stack([*given, *[zeros] * (8 - len(given))], axis=1)


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """How a read is cut: `batch` rows of the batch, `rows` queries and `keys` keys a step."""

    batch: int
    rows: int
    keys: int
    row_blocks: int
    key_blocks: int
    causal: bool

    @classmethod
    def of(cls, inputs: _Inputs, causal: bool) -> "_Blocks":
        """Cuts so that a step's logits are of like size whatever the shapes are."""
        batch, _, group, length, _ = inputs.q_bkgth.shape
        slots = inputs.k_bksh.shape[2]
        rows = _cut(length, max(_QUERIES // group // LANES, 1) * LANES)
        keys = _cut(slots, _KEYS)
        most = max(_QUERIES * _KEYS // (4 * group * rows * max(keys, LANES)), 1)
        together = next(n for n in range(min(most, batch, 16), 0, -1) if batch % n == 0)
        return cls(together, rows, keys, -(-length // rows), -(-slots // keys), causal)

    def key_block(self, i: Any, j: Any) -> Any:
        """Returns the block of keys of a step; one above the diagonal is not fetched."""
        return jnp.minimum(j, self.last(i)) if self.causal else j

    def last(self, i: Any) -> Any:
        """Returns the last block of keys that a block of queries sees."""
        return ((i + 1) * self.rows - 1) // self.keys

    @property
    def steps(self) -> list[int]:
        """The blocks of keys that are read for a key head, in turn."""
        most = lambda i: min(self.last(i), self.key_blocks - 1) if self.causal else (
            self.key_blocks - 1
        )  # fmt: skip
        return [j for i in range(self.row_blocks) for j in range(most(i) + 1)]


def _pad(a: Array | None, length: int, fill: int) -> Array | None:
    """Returns [B, 8, length], `fill` behind what is there."""
    behind = (0, 0), (0, 0), (0, length - (0 if a is None else a.shape[-1]))
    return None if a is None else jnp.pad(a, behind, constant_values=fill)


def _cut(length: int, most: int) -> int:
    """Returns the size of blocks, a multiple of what the chip's registers hold."""
    whole = lambda multiple: -(-length // multiple) * multiple
    return whole(16) if length < LANES else min(whole(LANES), most)


def _read(
    inputs: _Inputs, *, causal: bool, scale: float, tap: Tap, dtype: Any, interpret: Any
) -> Read:
    """Returns what one device reads, heads before rows, as the kernel writes it."""
    batch, kv_heads, group, length, dim = inputs.q_bkgth.shape
    heads, width, blocks = kv_heads * group, inputs.v_bksh.shape[-1], _Blocks.of(inputs, causal)
    gains, projection = (
        None if a is None else a.reshape(batch, 2, kv_heads, group, 1, 1).swapaxes(1, 2)
        for a in (inputs.gains_b2n, inputs.projection_b2n)
    )
    one, rows, keys = blocks.batch, blocks.rows, blocks.keys
    padded_rows = _pad(inputs.rows_b8t, rows * blocks.row_blocks, 0)
    padded_keys = _pad(inputs.keys_b8s, keys * blocks.key_blocks, NEVER)
    at_queries = lambda b, k, i, j: (b, k, 0, i, 0)
    at_row = lambda b, k, i, j: (b, 0, i)
    at_key = lambda b, k, i, j: (b, 0, blocks.key_block(i, j))
    slot = lambda b, k, i, j: (b, k, blocks.key_block(i, j), 0)
    at_head = lambda b, k, i, j: (b, k, 0, 0, 0, 0)
    specs = [
        (inputs.q_bkgth, pl.BlockSpec((one, 1, group, rows, dim), at_queries)),
        (inputs.k_bksh, pl.BlockSpec((one, 1, keys, dim), slot)),
        (inputs.v_bksh, pl.BlockSpec((one, 1, keys, width), slot)),
        (padded_rows, pl.BlockSpec((one, 8, rows), at_row)),
        (padded_keys, pl.BlockSpec((one, 8, keys), at_key)),
        (gains, pl.BlockSpec((one, 1, 2, group, 1, 1), at_head)),
        (projection, pl.BlockSpec((one, 1, 2, group, 1, 1), at_head)),
    ]  # fmt: skip
    given = [(array, spec) for array, spec in specs if array is not None]
    out_shape = (
        jax.ShapeDtypeStruct((batch, kv_heads, group, length, width), dtype),
        jax.ShapeDtypeStruct(
            (batch, kv_heads, blocks.row_blocks, _STATS, group * rows), jnp.float32
        ),
    )
    projecting = None if projection is None else BlockProjection(group, rows, keys)
    step = _Step(
        blocks, scale, tap, group, inputs.k_bksh.shape[2], projecting,
        inputs.rows_b8t is not None, inputs.keys_b8s is not None, gains is not None,
    )  # fmt: skip
    out_bkgth, stats = pl.pallas_call(
        step,
        out_shape=out_shape,
        grid=(batch // one, kv_heads, blocks.row_blocks, blocks.key_blocks),
        in_specs=[spec for _, spec in given],
        out_specs=(
            pl.BlockSpec((one, 1, group, rows, width), at_queries),
            pl.BlockSpec((one, 1, 1, _STATS, group * rows), lambda b, k, i, j: (b, k, i, 0, 0)),
        ),
        scratch_shapes=[
            pltpu.VMEM((one, group * rows, LANES), jnp.float32),
            pltpu.VMEM((one, group * rows, width), jnp.float32),
            *(projecting.scratch(one, width, inputs.v_bksh.dtype) if projecting else ()),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=(
                "parallel",
                "parallel",
                "arbitrary" if projecting else "parallel",
                "arbitrary",
            )
        ),
        cost_estimate=_cost(inputs, blocks, out_shape),
        interpret=interpret,
        name="attention",
    )(*[array for array, _ in given])
    stats = stats.reshape(*stats.shape[:3], _STATS, group, rows)

    def stat(index: int, wanted: bool) -> Array | None:
        found = stats[:, :, :, index].transpose(0, 1, 3, 2, 4)
        return found.reshape(batch, heads, -1)[..., :length] if wanted else None

    lse = stat(_TOP, True)
    assert lse is not None
    return Read(
        out_bkgth.reshape(batch, heads, length, width),
        lse,
        stat(_IMAGE, tap.masses),
        stat(_SQUARES, tap.squares),
        stat(_OWN, tap.own and causal),
        projected=projecting is not None,
    )


@dataclasses.dataclass(frozen=True)
class _Step:
    """One step of the kernel: some queries of some rows of the batch read a block of keys."""

    blocks: _Blocks
    scale: float
    tap: Tap
    group: int
    slots: int
    projecting: BlockProjection | None
    has_rows: bool
    has_keys: bool
    has_gains: bool

    def __call__(self, q_ref: Any, k_ref: Any, v_ref: Any, *refs: Any) -> None:
        others, project = list(refs), self.projecting

        def take(there: Any) -> Any:
            return others.pop(0) if there else None

        rows_ref, keys_ref = take(self.has_rows), take(self.has_keys)
        gains_ref, projection_ref = take(self.has_gains), take(project)
        out_ref, stats_ref, sums_ref, values_ref, *kept_refs = others
        kept = lambda b: [ref.at[b] for ref in kept_refs]
        i, j = pl.program_id(2), pl.program_id(3)

        @pl.when(j == 0)
        def _() -> None:
            lane = jax.lax.broadcasted_iota(jnp.int32, sums_ref.shape, 2)
            sums_ref[...] = jnp.where(lane == _TOP, MASKED, 0.0)
            values_ref[...] = jnp.zeros_like(values_ref)

        if project:
            pl.when((i == 0) & (j == 0))(lambda: project.start(kept_refs))
            for b in range(self.blocks.batch):
                project.add_values((i, j), v_ref.at[b, 0], rows_ref[b], kept(b))

        def add() -> None:
            for b in range(self.blocks.batch):
                known = [None if ref is None else ref[b] for ref in (rows_ref, keys_ref, gains_ref)]
                read = [ref[b, 0] for ref in (q_ref, k_ref, v_ref)]
                self._add((i, j), read, known, sums_ref.at[b], values_ref.at[b])

        if self.blocks.causal:
            pl.when(j <= self.blocks.last(i))(add)
        else:
            add()

        @pl.when(j == self.blocks.key_blocks - 1)
        def _() -> None:
            for b in range(self.blocks.batch):
                sums = sums_ref[b]
                top, total = sums[:, _TOP : _TOP + 1], sums[:, _TOTAL : _TOTAL + 1]
                out = jnp.where(top > 0.5 * MASKED, values_ref[b] / total, 0.0)
                if not project:
                    out_ref[b, 0] = out.reshape(out_ref.shape[2:]).astype(out_ref.dtype)
                lane = jax.lax.broadcasted_iota(jnp.int32, sums.shape, 1)
                shares = sums / total
                shares = jnp.where(lane == _SQUARES, shares / total, shares)
                shares = jnp.where(lane == _TOP, top + jnp.log(total), shares)
                stats = stats_ref[b, 0, 0] = shares.T[:_STATS]
                if project:
                    own, squares = (stats[at : at + 1] for at in (_OWN, _SQUARES))
                    how = projection_ref[b, 0]
                    project.project(out, own, squares, rows_ref[b], how, kept(b), out_ref.at[b, 0])

    def _add(
        self, at: tuple[Array, Array], read: Sequence[Array], known: Sequence[Any],
        sums_ref: Any, values_ref: Any,
    ) -> None:  # fmt: skip
        """Adds a block of keys to the sums of a block of queries."""
        (i, j), (q_gth, k_sh, v_sh), (rows_8t, keys_8s, gains_12g) = at, read, known
        blocks, (group, rows, dim), keys = self.blocks, q_gth.shape, k_sh.shape[0]
        exact = jax.lax.Precision.HIGHEST if q_gth.dtype == jnp.float32 else None
        dot = functools.partial(
            jax.lax.dot_general, precision=exact, preferred_element_type=jnp.float32
        )
        logits = dot(q_gth.reshape(group * rows, dim), k_sh, (((1,), (1,)), ((), ())))
        logits = (self.scale * logits).reshape(group, rows, keys)
        iota = lambda axis: jax.lax.broadcasted_iota(jnp.int32, (rows, keys), axis)
        row = i * rows + iota(0)
        key = j * keys + iota(1)
        columns = None if rows_8t is None else rows_8t.T
        if gains_12g is not None:
            assert columns is not None
            kinds = keys_8s[2:3][None]
            factor = jnp.where(kinds == Kind.IMAGE, gains_12g[0, 0], 1.0)
            factor = jnp.where(kinds == Kind.SYSTEM, gains_12g[0, 1], factor)
            gained = jnp.broadcast_to(columns[:, 2:3], (rows, keys))[None] > 0
            logits = jnp.where(gained, logits * factor, logits)
        if blocks.causal:
            visible = key <= row
        else:
            assert columns is not None
            visible = (keys_8s[:1] <= columns[:, :1]) & (keys_8s[1:2] == columns[:, 1:2])
        logits = jnp.where(visible[None], logits, MASKED).reshape(group * rows, keys)
        sums = sums_ref[...]
        top = jnp.maximum(sums[:, _TOP : _TOP + 1], jnp.max(logits, axis=1, keepdims=True))
        shrink = jnp.exp(sums[:, _TOP : _TOP + 1] - top)
        weights = jnp.exp(logits - top)
        if self.slots % keys:  # what is behind the last key is anything, NaN too
            behind = j * keys + jax.lax.broadcasted_iota(jnp.int32, v_sh.shape, 0)
            v_sh = jnp.where(behind < self.slots, v_sh, jnp.zeros_like(v_sh))
        values = dot(weights.astype(v_sh.dtype), v_sh, (((1,), (0,)), ((), ())))
        values_ref[...] = shrink * values_ref[...] + values
        added = {_TOTAL: weights}
        some = lambda mask: jnp.where(mask, weights.reshape(group, rows, keys), 0.0).reshape(
            group * rows, keys
        )
        if self.tap.masses:
            added[_IMAGE] = some(keys_8s[2:3][None] == Kind.IMAGE)
        if self.tap.squares:
            added[_SQUARES] = weights * weights
        if self.tap.own and blocks.causal:
            added[_OWN] = some((key == row)[None])
        lane = jax.lax.broadcasted_iota(jnp.int32, sums.shape, 1)
        new = jnp.where(
            lane == _TOP, top, sums * jnp.where(lane == _SQUARES, shrink * shrink, shrink)
        )
        for index, terms in added.items():
            new = new + jnp.where(lane == index, jnp.sum(terms, axis=1, keepdims=True), 0.0)
        sums_ref[...] = new


def _cost(inputs: _Inputs, blocks: _Blocks, outputs: Any) -> pl.CostEstimate:
    """Returns operations of the blocks that are read, and bytes that go between the memories.

    Queries and results go once, keys whenever another block of them is due.
    """
    batch, kv_heads, group, _, dim = inputs.q_bkgth.shape
    width, steps = inputs.v_bksh.shape[-1], blocks.steps
    pairs = batch * kv_heads * group * blocks.rows * blocks.keys * len(steps)
    flops = 2 * pairs * (dim + width)
    if inputs.projection_b2n is not None:
        flops += 2 * inputs.v_bksh.size * LANES + 5 * outputs[0].size
    fetched = 1 + sum(a != b for a, b in itertools.pairwise(steps))
    padded = lambda size: -(-size // LANES) * LANES
    key = (padded(dim) + padded(width)) * inputs.k_bksh.dtype.itemsize
    moved = batch * kv_heads * fetched * blocks.keys * key
    for array in (inputs.q_bkgth, *outputs, inputs.rows_b8t, inputs.keys_b8s):
        if array is not None:
            moved += array.size // array.shape[-1] * padded(array.shape[-1]) * array.dtype.itemsize
    return pl.CostEstimate(flops=flops, transcendentals=pairs, bytes_accessed=moved)
