"""Chosen rows of attention, read exactly: masses, entropy, variance; weights of a few heads.

An answer is read again behind its prompt. At each row that chose a token, every head's weights are
made, summed up and dropped, some rows at a time, so that nothing of size T x S stays. Of heads that
are asked for by name the rows themselves are kept.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vlm_jax.attention import Segment, Visibility, attend
from vlm_jax.attention.row import row_logits
from vlm_jax.batch import Batch, Kind
from vlm_jax.config import VLMConfig
from vlm_jax.models import Network, Params, abstract, merge
from vlm_jax.models.cache import prompt_order
from vlm_jax.models.hooks import Hooks
from vlm_jax.steering.heads import Head

KINDS = ("image", "text", "system")
_KIND_IDS = (Kind.IMAGE, Kind.TEXT, Kind.SYSTEM)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionRows:
    """What was read at q rows of one sequence; float32.

    Attributes:
        masses_qlnc: mass on each of `KINDS`: image tokens, text behind the first of them, all that
            is before it. They add up to 1.
        entropy_qln: -sum a log a over the keys that the row sees, in nats.
        variance_qln: mean of (a - 1 / n)^2 over these n keys.
        weights_qhs: weights of the heads that were asked for, over all places of the sequence.
        value_norms_hs: for these heads ||W_O v|| of each place: the length of what a head adds to
            the residual stream for a unit of attention there.
    """

    masses_qlnc: Any
    entropy_qln: Any
    variance_qln: Any
    weights_qhs: Any
    value_norms_hs: Any


class RowReader:
    """Reads rows for one architecture; a program for each length and each set of heads.

    Args:
        config: the model.
        rows: how many rows' weights exist at once.
    """

    def __init__(self, config: VLMConfig, rows: int = 16):
        self.rows = rows
        graphdef = abstract(config)[0]
        self._read = jax.jit(functools.partial(_read, graphdef, rows), static_argnames="heads")

    def __call__(
        self,
        params: Params,
        batch: Batch,
        query_q: Int[np.ndarray, " q"],
        heads: Sequence[Head] = (),
    ) -> AttentionRows:
        """Returns what heads do at some rows.

        Args:
            params: the model.
            batch: one sequence.
            query_q: indices of the rows.
            heads: whose weights are kept.
        """
        count = len(query_q)
        found = self._read(params, batch, self._padded(query_q), heads=tuple(heads))
        cut = lambda leaf: np.asarray(leaf[:count])
        norms = np.asarray(found.value_norms_hs)
        return dataclasses.replace(jax.tree.map(cut, found), value_norms_hs=norms)

    def lower(
        self,
        params: Params,
        batch: Batch,
        query_q: Int[np.ndarray, " q"],
        heads: Sequence[Head] = (),
    ) -> jax.stages.Lowered:
        """Returns the program of a call, not yet compiled: its memory can be asked of it."""
        return self._read.lower(params, batch, self._padded(query_q), heads=tuple(heads))

    def _padded(self, query_q: Int[np.ndarray, " q"]) -> Int[Array, " p"]:
        """Rows to read, repeated up to a whole number of chunks."""
        size = -(-len(query_q) // self.rows) * self.rows
        return jnp.asarray(np.resize(np.asarray(query_q, np.int32), size))


def _read(
    graphdef, rows: int, params: Params, batch: Batch, query_q: Array, *, heads: tuple[Head, ...]
) -> AttentionRows:
    model: Network = merge(graphdef, params)
    x_btd = model.embed(batch)
    places = jnp.arange(batch.tokens_bt.shape[1], dtype=jnp.int32)[None]
    keys = Visibility(order=prompt_order(batch))
    of_kind_sc = jnp.stack([batch.kinds_bt[0] == kind for kind in _KIND_IDS], axis=-1)
    reading = _Reading(model, query_q.reshape(-1, rows), of_kind_sc, heads)
    model.decoder(
        x_btd,
        batch.positions_bt3,
        Visibility(order=places),
        lambda layer, k, v: [Segment(k, v, keys)],
        causal=True,
        hooks=Hooks(reading.attend),
    )
    return reading.rows()


@dataclasses.dataclass
class _Reading:
    """Plain attention that looks at some rows of every layer on its way.

    Attributes:
        model: whose output weights are looked at.
        query_cr: int32 [chunks, rows of a chunk].
        of_kind_sc: bool [S, 3], which keys are of which kind.
        heads: whose weights are kept.
        found: what each layer's rows are.
    """

    model: Network
    query_cr: Array
    of_kind_sc: Array
    heads: tuple[Head, ...]
    found: list[tuple[Array, ...]] = dataclasses.field(default_factory=list)
    norms: dict[Head, Array] = dataclasses.field(default_factory=dict)

    def attend(
        self,
        q_btnh: Array,
        segments: Sequence[Segment],
        queries: Visibility,
        causal: bool,
        scale: float | None = None,
    ) -> Array:
        """Attends in the next layer."""
        layer, (segment,) = len(self.found), segments
        own = [head for at, head in self.heads if at == layer]
        read = functools.partial(self._chunk, q_btnh[0], segment, own, scale)
        chunks = jax.lax.map(read, self.query_cr)
        self.found.append(tuple(a.reshape(self.query_cr.size, *a.shape[2:]) for a in chunks))
        for head in own:
            wo_hd = self.model.decoder.layers[layer].wo_nhd[...][head].astype(jnp.float32)
            v_ksh = segment.values_bksh[0]
            v_sh = v_ksh[head * len(v_ksh) // q_btnh.shape[2]].astype(jnp.float32)
            squares_s = jnp.einsum("sh,hg,sg->s", v_sh, wo_hd @ wo_hd.T, v_sh)
            self.norms[layer, head] = jnp.sqrt(jnp.maximum(squares_s, 0))
        return attend(q_btnh, segments, queries, causal=causal, scale=scale)

    def _chunk(
        self,
        q_tnh: Array,
        segment: Segment,
        own: list[int],
        scale: float | None,
        query_r: Array,
    ) -> tuple[Array, ...]:
        """Masses, entropy, variance and kept weights of a few rows."""
        assert segment.keys.order is not None
        order_rs = jnp.broadcast_to(segment.keys.order, (len(query_r), segment.length))
        wide = dataclasses.replace(segment, keys=Visibility(order=order_rs))
        queries = Visibility(order=query_r[:, None])
        logits_rns = row_logits(q_tnh[query_r][:, None], [wide], queries, scale)
        weights_rns = jax.nn.softmax(logits_rns, axis=-1)
        visible_r = jnp.sum(order_rs <= query_r[:, None], axis=-1)[:, None]
        lse_rn = jax.nn.logsumexp(logits_rns, axis=-1)
        # A masked logit is finite and its weight 0, so the product is 0.
        entropy_rn = lse_rn - jnp.sum(weights_rns * logits_rns, axis=-1)
        squares_rn = jnp.sum(weights_rns**2, axis=-1)
        masses_rnc = jnp.einsum("rns,sc->rnc", weights_rns, self.of_kind_sc.astype(jnp.float32))
        variance_rn = squares_rn / visible_r - 1.0 / visible_r**2
        return masses_rnc, entropy_rn, variance_rn, weights_rns[:, jnp.asarray(own, int)]

    def rows(self) -> AttentionRows:
        """Returns what all layers' rows are."""
        masses, entropy, variance, kept = zip(*self.found)
        of_layer = lambda layer: [head for at, head in self.heads if at == layer]
        place = {
            (layer, head): kept[layer][:, n]
            for layer in range(len(kept))
            for n, head in enumerate(of_layer(layer))
        }
        none = jnp.zeros((0, self.of_kind_sc.shape[0]), jnp.float32)
        weights = [place[head] for head in self.heads]
        return AttentionRows(
            jnp.stack(masses, axis=1),
            jnp.stack(entropy, axis=1),
            jnp.stack(variance, axis=1),
            jnp.stack(weights, axis=1) if weights else kept[0],
            jnp.stack([self.norms[head] for head in self.heads]) if self.heads else none,
        )


def dominance(masses_qlnc: Float[np.ndarray, "q L N 3"]) -> Float[np.ndarray, "L N"]:
    """Returns how much more each head attends to text than to the image (MAI of arXiv 2603.24058).

    The sum over rows of the mass on text behind the image, over that on the image; inf where a head
    never looks at it. Sensitive heads are said to have about 5, insensitive ones 1.5.
    """
    image_ln, text_ln, _ = np.moveaxis(np.asarray(masses_qlnc, np.float64).sum(0), -1, 0)
    found_ln = np.full(image_ln.shape, np.inf)
    return np.divide(text_ln, image_ln, out=found_ln, where=image_ln > 0)


def imbalance(
    weights_qhs: Float[np.ndarray, "q h S"],
    contribution_hs: Float[np.ndarray, "h S"],
    query_q: Int[np.ndarray, " q"],
) -> Float[np.ndarray, "h S"]:
    """Returns each token's share of attention over its share of information (TAI of the same).

    Shares are of sums over rows; a token contributes once to each row that sees it. NaN where no
    row sees a token.

    Args:
        weights_qhs: rows of heads.
        contribution_hs: how much information a token holds for a head at a row that sees it, such
            as `AttentionRows.value_norms_hs`, ones, or `leaned_on`.
        query_q: indices of the rows, which see what is not behind them.
    """
    seen_s = (np.arange(weights_qhs.shape[-1]) <= np.asarray(query_q)[:, None]).sum(0)
    attention_hs = np.asarray(weights_qhs, np.float64).sum(0)
    information_hs = np.asarray(contribution_hs, np.float64) * seen_s
    share = lambda values: values / values.sum(-1, keepdims=True)
    found_hs = np.full(attention_hs.shape, np.nan)
    return np.divide(share(attention_hs), share(information_hs), out=found_hs, where=seen_s > 0)


def leaned_on(
    drop_sq: Float[np.ndarray, "S q"], query_q: Int[np.ndarray, " q"]
) -> Float[np.ndarray, " S"]:
    """Returns how much rows that see a token lean on it: the mean of |drop| over them.

    Args:
        drop_sq: by how much log P of each row's token changes without each token
            (`erasure.TokenErasure`).
        query_q: indices of the rows.
    """
    seen_sq = np.arange(len(drop_sq))[:, None] <= np.asarray(query_q)
    total_s = np.sum(np.abs(np.asarray(drop_sq, np.float64)) * seen_sq, axis=1)
    return total_s / np.maximum(seen_sq.sum(1), 1)


def block_cosines(
    one_qhs: Float[np.ndarray, "q h S"], other_qhs: Float[np.ndarray, "q h S"]
) -> Float[np.ndarray, " h"]:
    """Returns the cosine of each head's two blocks of weights, laid out as one vector each."""
    one, other = (
        np.moveaxis(np.asarray(block, np.float64), 1, 0).reshape(block.shape[1], -1)
        for block in (one_qhs, other_qhs)
    )
    size = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.sum(one * other, axis=1) / np.where(size > 0, size, 1)


def block_divergences(
    one_qhs: Float[np.ndarray, "q h S"], other_qhs: Float[np.ndarray, "q h S"]
) -> Float[np.ndarray, " h"]:
    """Returns how far each head's rows differ: the mean Jensen-Shannon divergence, in nats.

    Rows are scaled to sum to 1 first. 0 is the same rows, log 2 is rows that share no key.
    """

    def share(rows_qhs: np.ndarray) -> np.ndarray:
        rows_qhs = np.asarray(rows_qhs, np.float64)
        return rows_qhs / rows_qhs.sum(-1, keepdims=True)

    one, other = share(one_qhs), share(other_qhs)
    middle = (one + other) / 2

    def from_middle(rows: np.ndarray) -> np.ndarray:
        ratio = np.divide(rows, middle, out=np.ones_like(rows), where=rows > 0)
        return np.sum(rows * np.log(ratio), axis=-1)

    return np.mean((from_middle(one) + from_middle(other)) / 2, axis=0)
