"""Segments of keys, who sees them, and the exact merge of what was read from each."""

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

T = TypeVar("T")

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
class Segment:
    """Keys and values that queries attend to together.

    Neighbouring rows of the batch may share keys, as the beams of a sample do its prompt and the
    questions about an image what comes before their text: keys and values then have a row for W
    rows of queries, while `keys` and `kinds_bs` have one for each of these.

    Attributes:
        k_bksh, v_bksh: [B, K, S, H], the layout in which one decode step reads memory in order;
            [B / W, K, S, H] where rows share them. Values may have a width of their own, or be
            None: then they are the keys (latents).
        keys: order and group of each key.
        kinds_bs: int8 [B, S] `Kind` of each key, for steering; None where no one asks.
    """

    k_bksh: Float[Array, "B K S H"]
    v_bksh: Float[Array, "B K S O"] | None
    keys: Visibility = Visibility()
    kinds_bs: Int[Array, "B S"] | None = None

    @property
    def values_bksh(self) -> Float[Array, "B K S O"]:
        """The values, whatever holds them."""
        return self.k_bksh if self.v_bksh is None else self.v_bksh

    @property
    def length(self) -> int:
        """Number of key slots S."""
        return self.k_bksh.shape[2]

    def sharing(self, rows: int) -> int:
        """Returns how many of so many neighbouring rows of queries share each row of keys."""
        return rows // self.k_bksh.shape[0]

    def of_keys(self, leaf: Array) -> Array:
        """Returns [B / W, ...] of what the rows that share keys have in common, [B, ...]."""
        return leaf[:: self.sharing(leaf.shape[0])]

    def apart(self, rows: int) -> "Segment":
        """Returns the segment with keys and values copied to every row of queries."""
        k_bksh, v_bksh = self._repeat((self.k_bksh, self.v_bksh), rows)
        return dataclasses.replace(self, k_bksh=k_bksh, v_bksh=v_bksh)

    def shared_by(self, rows: int) -> "Segment":
        """Returns a segment of as many keys for so many rows of queries, which share them."""
        keys, kinds_bs = self._repeat((self.keys, self.kinds_bs), rows)
        return dataclasses.replace(self, keys=keys, kinds_bs=kinds_bs)

    def _repeat(self, tree: T, rows: int) -> T:
        sharing = self.sharing(rows)
        many = lambda leaf: jnp.repeat(leaf, sharing, axis=0)
        return tree if sharing == 1 else jax.tree.map(many, tree)

    def slice(self, start: int | Array, length: int) -> "Segment":
        """Returns `length` keys from `start` (static or traced)."""
        cut = lambda a, axis: jax.lax.dynamic_slice_in_dim(a, start, length, axis=axis)
        kinds = None if self.kinds_bs is None else cut(self.kinds_bs, 1)
        k_bksh, v_bksh = jax.tree.map(lambda a: cut(a, 2), (self.k_bksh, self.v_bksh))
        return Segment(k_bksh, v_bksh, self.keys.slice(start, length), kinds)

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


def by_key_head(q_btnh: Float[Array, "B T N H"], kv_heads: int) -> Float[Array, "B K G T H"]:
    """Returns the queries of each key head: query head n reads key head n // G."""
    batch, length, heads, dim = q_btnh.shape
    apart = q_btnh.reshape(batch, length, kv_heads, heads // kv_heads, dim)
    return apart.transpose(0, 2, 3, 1, 4)


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
