"""Segments of keys, who sees them, and the exact merge of what was read from each."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

NEVER = np.iinfo(np.int32).max
"""The order of a key that no query may see: padding."""

MASKED = -1e30
"""Logit of a masked key. Finite, so that a fully masked row stays finite and weighs nothing."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Visibility:
    """Where a row of queries, or of keys, stands: a query sees a key when both rules allow it.

    Attributes:
        order: int32 [B, length]; visible when the key's order <= the query's (causality; `NEVER`
            for padding). None when order does not matter.
        group: int32 [B, length]; visible when equal (images packed in one row). None when there is
            one group.
    """

    order: Int[Array, "B length"] | None = None
    group: Int[Array, "B length"] | None = None

    def sees(self, keys: "Visibility") -> Bool[Array, "B T S"] | None:
        """Returns which keys each query sees, or None when it sees all."""
        visible = None
        if self.order is not None and keys.order is not None:
            visible = keys.order[:, None, :] <= self.order[:, :, None]
        if self.group is not None and keys.group is not None:
            same = keys.group[:, None, :] == self.group[:, :, None]
            visible = same if visible is None else visible & same
        return visible

    def slice(self, start: int | Array, length: int) -> "Visibility":
        """Returns `length` places from `start` (static or traced)."""
        return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, length, axis=1), self)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Fold:
    """Which decode rows read each of I rows of keys: a place for each of W rows, or for fewer.

    What a place that no row needs holds means nothing. The rows of a data replica have places of
    their own, so that none of them moves to another. Rows 0 1 2 on keys 1 0 1 of I = 2, W = 2:
    row 0 has place 2, row 1 place 0, row 2 place 3, and the places hold rows 1 ? 0 2.

    Attributes:
        rows_ap: int32 [replicas, I W] the row in each place, within its replica.
        places_ab: int32 [replicas, B / replicas] the place of each row.
        width: W.
    """

    rows_ap: Int[Array, "A P"]
    places_ab: Int[Array, "A b"]
    width: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, owner_b: Int[Array, " B"], keys: int, width: int, replicas: int = 1) -> "Fold":
        """Returns the places of rows.

        Args:
            owner_b: which row of keys each reads.
            keys: rows of keys I.
            width: the most rows of a replica that read one row of keys, at least.
            replicas: that the rows are split over, in order.
        """
        owner_ab = owner_b.reshape(replicas, -1)
        rows = owner_ab.shape[1]
        before = jnp.tril(jnp.ones((rows, rows), bool), -1)
        same_abb = owner_ab[:, :, None] == owner_ab[:, None, :]
        places_ab = owner_ab * width + jnp.sum(same_abb & before, axis=-1, dtype=jnp.int32)
        put = lambda places: jnp.zeros(keys * width, jnp.int32).at[places].set(jnp.arange(rows))
        return cls(jax.vmap(put)(places_ab), places_ab, width)

    def fold(self, rows_bkgx: Float[Array, "B K G X"]) -> Float[Array, "I K G2 X"]:
        """Returns rows as further query heads of the rows of keys that they read."""
        replicas, places = self.rows_ap.shape
        _, kv_heads, group, dim = rows_bkgx.shape
        apart = rows_bkgx.reshape(replicas, -1, kv_heads, group, dim)
        placed = jax.vmap(lambda rows, index: rows[index])(apart, self.rows_ap)
        shape = replicas, places // self.width, self.width, kv_heads, group, dim
        return placed.reshape(shape).transpose(1, 3, 0, 2, 4, 5).reshape(
            places // self.width, kv_heads, replicas * self.width * group, dim
        )  # fmt: skip

    def unfold(self, heads_ikgx: Float[Array, "I K G2 X"]) -> Float[Array, "B K G X"]:
        """Returns what `fold` made, and something was done to, as rows again."""
        replicas = self.rows_ap.shape[0]
        keys, kv_heads, heads, dim = heads_ikgx.shape
        group = heads // (replicas * self.width)
        shape = keys, kv_heads, replicas, self.width, group, dim
        placed = heads_ikgx.reshape(shape).transpose(2, 0, 3, 1, 4, 5)
        placed = placed.reshape(replicas, keys * self.width, kv_heads, group, dim)
        rows = jax.vmap(lambda rows, index: rows[index])(placed, self.places_ab)
        return rows.reshape(-1, kv_heads, group, dim)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Segment:
    """Keys and values that queries attend to together.

    Decode rows may share keys: keys and values then have fewer rows than the queries, while `keys`
    and `kinds_bs` have one for each of these. Either W neighbouring rows share each, as the beams
    of a sample do its prompt, or a `fold` says which do.

    Attributes:
        k_bksh, v_bksh: [B, K, S, H], the layout in which one decode step reads memory in order;
            [B / W, K, S, H] where rows share them. Values may have a width of their own, or be
            None: then they are the keys (latents).
        keys: order and group of each key.
        kinds_bs: int8 [B, S] `Kind` of each key, for steering; None where no one asks.
        fold: which decode rows read which rows of keys; None: neighbours, or each its own.
    """

    k_bksh: Float[Array, "B K S H"]
    v_bksh: Float[Array, "B K S O"] | None
    keys: Visibility = Visibility()
    kinds_bs: Int[Array, "B S"] | None = None
    fold: Fold | None = None

    @property
    def values_bksh(self) -> Float[Array, "B K S O"]:
        """The values, whatever holds them."""
        return self.k_bksh if self.v_bksh is None else self.v_bksh

    @property
    def length(self) -> int:
        """Number of key slots S."""
        return self.k_bksh.shape[2]

    def sharing(self, rows: int) -> int:
        """Returns how many of so many neighbouring decode rows share each row of keys."""
        return rows // self.k_bksh.shape[0]

    def folded(self, row_b: Int[Array, " B"], fold: Fold) -> "Segment":
        """Returns the same keys for B decode rows, which read those of their index."""
        take = lambda leaf: jnp.take(leaf, row_b, axis=0, mode="clip")
        keys, kinds_bs = jax.tree.map(take, (self.keys, self.kinds_bs))
        return Segment(self.k_bksh, self.v_bksh, keys, kinds_bs, fold)

    def slice(self, start: int | Array, length: int) -> "Segment":
        """Returns `length` keys from `start` (static or traced)."""
        cut = lambda a, axis: jax.lax.dynamic_slice_in_dim(a, start, length, axis=axis)
        kinds = None if self.kinds_bs is None else cut(self.kinds_bs, 1)
        k_bksh, v_bksh = jax.tree.map(lambda a: cut(a, 2), (self.k_bksh, self.v_bksh))
        return Segment(k_bksh, v_bksh, self.keys.slice(start, length), kinds)

    def join(self, later: "Segment") -> "Segment":
        """Returns one segment with the keys of another behind its own, orders as they are."""
        join = lambda axis: lambda a, b: jnp.concatenate([a, b], axis=axis)
        keys = jax.tree.map(join(1), self.keys, later.keys)
        kinds = None if self.kinds_bs is None else join(1)(self.kinds_bs, kinds_of(later))
        ours, theirs = (self.k_bksh, self.v_bksh), (later.k_bksh, later.v_bksh)
        k_bksh, v_bksh = jax.tree.map(join(2), ours, theirs)
        return Segment(k_bksh, v_bksh, keys, kinds)

    def write(self, k_bksh: Array, v_bksh: Array | None, start: int | Array) -> "Segment":
        """Returns the segment with new keys and values put at `start`."""
        put = lambda old, new: jax.lax.dynamic_update_slice_in_dim(
            old, new.astype(old.dtype), start, axis=2
        )
        k_bksh, v_bksh = jax.tree.map(put, (self.k_bksh, self.v_bksh), (k_bksh, v_bksh))
        return dataclasses.replace(self, k_bksh=k_bksh, v_bksh=v_bksh)


def kinds_of(segment: Segment) -> Int[Array, "B S"]:
    """Returns the kinds of a segment's keys.

    Raises:
        ValueError: it has none, but steering asks for them.
    """
    if segment.kinds_bs is None:
        raise ValueError("Steering needs the kinds of all keys; a segment has none.")
    return segment.kinds_bs


def merge(
    outs: Sequence[Float[Array, "B T N H"]], lses: Sequence[Float[Array, "B T N"]]
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
    """Merges what was read from disjoint segments into what one softmax over all of them reads.

    Args:
        outs: normalised float32 output of each segment.
        lses: log of the sum of exponentiated logits of each segment.

    Returns:
        The merged output and log-sum-exp. `exp(lse_segment - lse)` is the segment's mass.
    """
    if len(outs) == 1:
        return outs[0], lses[0]
    stacked = jnp.stack(lses)
    lse = jax.nn.logsumexp(stacked, axis=0)
    masses = jnp.exp(stacked - lse)
    return jnp.sum(masses[..., None] * jnp.stack(outs), axis=0), lse
