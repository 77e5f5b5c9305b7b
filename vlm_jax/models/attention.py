"""The attention of a decoder's layer: grouped-query, or multi-head latent attention.

They are base classes of layers, so that their parameters have the layer's own paths.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vlm_jax.attention import Segment, Visibility
from vlm_jax.config import MLA, DecoderConfig
from vlm_jax.models.hooks import Attend
from vlm_jax.models.layers import (
    halves,
    linear,
    matrix,
    ones,
    plus,
    rms_norm,
    rotate,
    weight,
    zeros,
)

ExtendLayer = Callable[[Array, Array | None], Sequence[Segment]]
"""(a layer's new keys, its new values; None where these are the keys) -> segments to attend to."""


class GroupedQuery(nnx.Module):
    """Grouped-query attention, with biases and norms of queries and keys where the config says."""

    def declare_attention(self, config: DecoderConfig, kind: None, rngs: nnx.Rngs) -> None:
        """Declares the parameters."""
        d, n, k, h = config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim
        self.norm_eps = config.rms_norm_eps
        self.wq_dnh = weight(rngs, d, n, h, fan_in=d)
        self.wk_dkh = weight(rngs, d, k, h, fan_in=d)
        self.wv_dkh = weight(rngs, d, k, h, fan_in=d)
        self.wo_nhd = weight(rngs, n, h, d, fan_in=n * h)
        self.bq_nh = zeros(n, h) if config.qkv_bias else None
        self.bk_kh = zeros(k, h) if config.qkv_bias else None
        self.bv_kh = zeros(k, h) if config.qkv_bias else None
        self.bo_d = zeros(d) if config.o_bias else None
        self.q_norm_h = ones(h) if config.qk_norm else None
        self.k_norm_h = ones(h) if config.qk_norm else None

    def attention(
        self,
        normed_btd: Float[Array, "B T D"],
        angles: Float[Array, "B T half"],
        queries: Visibility,
        extend_cache: ExtendLayer,
        causal: bool,
        attend: Attend,
    ) -> Float[Array, "B T D"]:
        """Returns what attention adds; see `Decoder.__call__` for the arguments."""
        q_btnh = plus(jnp.einsum("btd,dnh->btnh", normed_btd, self.wq_dnh[...]), self.bq_nh)
        k_btkh = plus(jnp.einsum("btd,dkh->btkh", normed_btd, self.wk_dkh[...]), self.bk_kh)
        v_btkh = plus(jnp.einsum("btd,dkh->btkh", normed_btd, self.wv_dkh[...]), self.bv_kh)
        if self.q_norm_h is not None and self.k_norm_h is not None:
            q_btnh = rms_norm(q_btnh, self.q_norm_h[...], self.norm_eps)
            k_btkh = rms_norm(k_btkh, self.k_norm_h[...], self.norm_eps)
        q_btnh, k_btkh = rotate(q_btnh, angles), rotate(k_btkh, angles)
        segments = extend_cache(k_btkh.transpose(0, 2, 1, 3), v_btkh.transpose(0, 2, 1, 3))
        out_btnh = attend(q_btnh, segments, queries, causal=causal)
        return plus(_join_heads(out_btnh, self.wo_nhd[...]), self.bo_d)


LATENT_EPSILON = 1e-6
"""Of the norms of latents, whatever rms_norm_eps says (DeepSeek's code and transformers')."""


class Latent(nnx.Module):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    The cache holds one vector a token for all heads: the normed latent, and the rotated part of the
    key, side by side. A head's key is `up_k latent` and the rotated part, its value `up_v latent`.
    Rows that go on from a cache read it as it is: `q . (up_k latent) = (up_k^T q) . latent`, so one
    key head with queries of the latent's width serves all heads, the values are the keys, and
    `up_v` comes after the sum ("absorbed"). Prompts that are read at once make every head's keys
    and values first, which are narrower.
    """

    def declare_attention(self, config: DecoderConfig, kind: MLA, rngs: nnx.Rngs) -> None:
        """Declares the parameters."""
        d, n, mla = config.hidden_size, config.num_heads, kind
        self.mla, width = mla, mla.nope_dim + mla.rope_dim
        rank = mla.query_rank
        self.wq_dnh = weight(rngs, d, n, width, fan_in=d) if rank is None else None
        self.wq_down_qd = None if rank is None else matrix(rngs, rank, d)
        self.q_norm_q = None if rank is None else ones(rank)
        self.wq_up_qnh = None if rank is None else weight(rngs, rank, n, width, fan_in=rank)
        self.wkv_down_ad = matrix(rngs, mla.rank + mla.rope_dim, d)
        self.kv_norm_r = ones(mla.rank)
        self.wkv_up_nur = weight(rngs, n, mla.nope_dim + mla.value_dim, mla.rank, fan_in=mla.rank)
        self.wo_nhd = weight(rngs, n, mla.value_dim, d, fan_in=n * mla.value_dim)

    def attention(
        self,
        normed_btd: Float[Array, "B T D"],
        angles: Float[Array, "B T half"],
        queries: Visibility,
        extend_cache: ExtendLayer,
        causal: bool,
        attend: Attend,
    ) -> Float[Array, "B T D"]:
        """Returns what attention adds; see `Decoder.__call__` for the arguments."""
        mla = self.mla
        q_btnh = self._queries(normed_btd)
        plain_btnh, turned_btnh = jnp.split(q_btnh, [mla.nope_dim], axis=-1)
        turned_btnh = rotate(halves(turned_btnh), angles)
        down_bta = linear(normed_btd, self.wkv_down_ad[...])
        latent_btr = rms_norm(down_bta[..., : mla.rank], self.kv_norm_r[...], LATENT_EPSILON)
        key_bt1h = rotate(halves(down_bta[..., None, mla.rank :]), angles)
        cached_bt1a = jnp.concatenate([latent_btr[:, :, None], key_bt1h], axis=-1)
        segments = extend_cache(cached_bt1a.transpose(0, 2, 1, 3), None)
        up_k_nur, up_v_nur = jnp.split(self.wkv_up_nur[...], [mla.nope_dim], axis=1)
        scale = (mla.nope_dim + mla.rope_dim) ** -0.5
        if causal:
            q_btnh = jnp.concatenate([plain_btnh, turned_btnh], axis=-1)
            segments = [self._expanded(segment, up_k_nur, up_v_nur) for segment in segments]
            out_btnh = attend(q_btnh, segments, queries, causal=causal, scale=scale)
        else:
            absorbed_btnr = jnp.einsum("btnu,nur->btnr", plain_btnh, up_k_nur)
            q_btna = jnp.concatenate([absorbed_btnr, turned_btnh], axis=-1)
            out_btna = attend(q_btna, segments, queries, causal=causal, scale=scale)
            out_btnh = jnp.einsum("btnr,nur->btnu", out_btna[..., : mla.rank], up_v_nur)
        return _join_heads(out_btnh, self.wo_nhd[...])

    def _queries(self, normed_btd: Array) -> Array:
        if self.wq_dnh is not None:
            return jnp.einsum("btd,dnh->btnh", normed_btd, self.wq_dnh[...])
        assert self.wq_down_qd is not None
        assert self.q_norm_q is not None
        assert self.wq_up_qnh is not None
        low_btq = linear(normed_btd, self.wq_down_qd[...])
        low_btq = rms_norm(low_btq, self.q_norm_q[...], LATENT_EPSILON)
        return jnp.einsum("btq,qnh->btnh", low_btq, self.wq_up_qnh[...])

    def _expanded(self, segment: Segment, up_k_nur: Array, up_v_nur: Array) -> Segment:
        """Returns keys and values of every head."""
        latent_bsr, turned_bsh = jnp.split(segment.k_bksh[:, 0], [self.mla.rank], axis=-1)
        plain_bnsh = jnp.einsum("bsr,nur->bnsu", latent_bsr, up_k_nur)
        shape = (*plain_bnsh.shape[:3], turned_bsh.shape[-1])
        turned_bnsh = jnp.broadcast_to(turned_bsh[:, None], shape)
        k_bnsh = jnp.concatenate([plain_bnsh, turned_bnsh], axis=-1)
        v_bnsh = jnp.einsum("bsr,nur->bnsu", latent_bsr, up_v_nur)
        return Segment(k_bnsh, v_bnsh, segment.keys, segment.kinds_bs)


def _join_heads(out_btnh: Array, wo_nhd: Array) -> Array:
    """Projects heads back to D as one matrix product.

    As a contraction over two dims it makes XLA's CPU compiler transpose the weight at every step.
    """
    rows, length, _, _ = out_btnh.shape
    return out_btnh.reshape(rows, length, -1) @ wo_nhd.reshape(-1, wo_nhd.shape[-1])
