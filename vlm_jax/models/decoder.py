"""The causal decoder of every family: grouped-query attention, rotary, SwiGLU, RMS norms."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vlm_jax.attention import Segment, Visibility, attend
from vlm_jax.config import DecoderConfig
from vlm_jax.models.hooks import Attend, Hooks
from vlm_jax.models.layers import (
    ACTIVATIONS,
    linear,
    matrix,
    ones,
    rms_norm,
    rotate,
    text_angles,
    weight,
    zeros,
)

ExtendCache = Callable[[int, Array, Array], Sequence[Segment]]
"""(layer, its new keys, its new values) -> the segments that its queries attend to.

Appends the new keys and values of a layer to the cache.
"""


class DecoderLayer(nnx.Module):
    """Pre-norm attention and SwiGLU with residuals."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        d, f = config.hidden_size, config.intermediate_size
        n, k, h = config.num_heads, config.num_kv_heads, config.head_dim
        self.eps = config.rms_norm_eps
        self.attn_norm_d = ones(d)
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
        self.mlp_norm_d = ones(d)
        self.w_gate_fd = matrix(rngs, f, d)
        self.w_up_fd = matrix(rngs, f, d)
        self.w_down_df = matrix(rngs, d, f)

    def __call__(
        self,
        x_btd: Float[Array, "B T D"],
        angles: Float[Array, "B T half"],
        queries: Visibility,
        extend_cache: Callable[[Array, Array], Sequence[Segment]],
        causal: bool,
        attend: Attend = attend,
    ) -> Float[Array, "B T D"]:
        """Maps hidden states; see `Decoder.__call__` for the arguments, `Hooks` for `attend`."""
        normed = rms_norm(x_btd, self.attn_norm_d[...], self.eps)
        q_btnh = _plus(jnp.einsum("btd,dnh->btnh", normed, self.wq_dnh[...]), self.bq_nh)
        k_btkh = _plus(jnp.einsum("btd,dkh->btkh", normed, self.wk_dkh[...]), self.bk_kh)
        v_btkh = _plus(jnp.einsum("btd,dkh->btkh", normed, self.wv_dkh[...]), self.bv_kh)
        if self.q_norm_h is not None and self.k_norm_h is not None:
            q_btnh = rms_norm(q_btnh, self.q_norm_h[...], self.eps)
            k_btkh = rms_norm(k_btkh, self.k_norm_h[...], self.eps)
        q_btnh, k_btkh = rotate(q_btnh, angles), rotate(k_btkh, angles)
        segments = extend_cache(k_btkh.transpose(0, 2, 1, 3), v_btkh.transpose(0, 2, 1, 3))
        out_btnh = attend(q_btnh, segments, queries, causal=causal)
        x_btd = x_btd + _plus(_join_heads(out_btnh, self.wo_nhd[...]), self.bo_d)
        normed = rms_norm(x_btd, self.mlp_norm_d[...], self.eps)
        gate_btf = linear(normed, self.w_gate_fd[...])
        up_btf = linear(normed, self.w_up_fd[...])
        hidden_btf = ACTIVATIONS["silu"](gate_btf) * up_btf
        return x_btd + linear(hidden_btf, self.w_down_df[...])


def _join_heads(out_btnh: Array, wo_nhd: Array) -> Array:
    """Projects heads back to D as one matrix product.

    As a contraction over two dims it makes XLA's CPU compiler transpose the weight at every step.
    """
    rows, length, _, _ = out_btnh.shape
    return out_btnh.reshape(rows, length, -1) @ wo_nhd.reshape(-1, wo_nhd.shape[-1])


def _plus(x: Array, bias: nnx.Param | None) -> Array:
    return x if bias is None else x + bias[...]


class Decoder(nnx.Module):
    """Embeddings in, hidden states or logits out."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        v, d = config.vocab_size, config.hidden_size
        self.embed_vd = weight(rngs, v, d, fan_in=d)
        self.layers = nnx.List([DecoderLayer(config, rngs) for _ in range(config.num_layers)])
        self.final_norm_d = ones(d)
        self.head_vd = None if config.tie_embeddings else matrix(rngs, v, d)

    def embed(self, tokens_bt: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Looks tokens up in the embedding table."""
        return self.embed_vd[...][tokens_bt]

    def __call__(
        self,
        x_btd: Float[Array, "B T W"],
        positions_bt3: Int[Array, "B T 3"],
        queries: Visibility,
        extend_cache: ExtendCache,
        causal: bool = False,
        hooks: Hooks | None = None,
    ) -> Float[Array, "B T D"]:
        """Runs all layers.

        Args:
            x_btd: embeddings, W = D; or W = (1 + S) D, where the s-th piece behind the first is
                added to what the s-th layer returns (DeepStack, arXiv 2406.04334).
            positions_bt3: rotary positions (time, height, width).
            queries: order and group of each query.
            extend_cache: appends a layer's new keys and values to the cache; returns the segments
                to attend to.
            causal: see `vlm_jax.attention.attend`.
            hooks: what to do to the layers, and what to keep of them.

        Returns:
            Hidden states after the final norm.
        """
        c = self.config
        angles = text_angles(positions_bt3, c.head_dim, c.rope_theta, c.rope_factor, c.rope_axes)
        hooks = hooks or Hooks()
        x_btd, *deeper = jnp.split(x_btd, x_btd.shape[-1] // c.hidden_size, axis=-1)
        x_btd = hooks.left(0, x_btd)
        for index, layer in enumerate(self.layers):
            bound = lambda k, v, index=index: extend_cache(index, k, v)
            attend_here = hooks.attention(index) or attend
            x_btd = layer(x_btd, angles, queries, bound, causal, attend_here)
            if index < len(deeper):
                x_btd = x_btd + deeper[index]
            x_btd = hooks.left(index + 1, x_btd)
        return rms_norm(x_btd, self.final_norm_d[...], c.rms_norm_eps)

    def logits(self, hidden: Float[Array, "*b D"]) -> Float[Array, "*b V"]:
        """Projects hidden states on the vocabulary; float32 or wider."""
        kind = jnp.promote_types(hidden.dtype, jnp.float32)
        table_vd = self.embed_vd if self.head_vd is None else self.head_vd
        return linear(hidden, table_vd[...], kind)
