"""InternViT: pre-norm blocks with learned scales of their outputs, over tiles of patches."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vlm_jax.attention import Segment, attend
from vlm_jax.batch import Images
from vlm_jax.config import InternVisionConfig
from vlm_jax.models.layers import ACTIVATIONS, layer_norm, linear, matrix, ones, weight, zeros


class InternVisionLayer(nnx.Module):
    """Pre-norm attention and MLP, each scaled channel by channel before its residual."""

    def __init__(self, config: InternVisionConfig, rngs: nnx.Rngs):
        d, f, n = config.hidden_size, config.intermediate_size, config.num_heads
        h = d // n
        self.eps, self.act = config.layer_norm_eps, config.hidden_act
        self.norm1_scale_d, self.norm1_bias_d = ones(d), zeros(d)
        self.fused = config.fused_qkv
        if self.fused:
            self.wqkv_d3nh = weight(rngs, d, 3, n, h, fan_in=d)
            self.bqkv_3nh = zeros(3, n, h) if config.qkv_bias else None
        else:
            self.wq_dnh = weight(rngs, d, n, h, fan_in=d)
            self.wk_dnh = weight(rngs, d, n, h, fan_in=d)
            self.wv_dnh = weight(rngs, d, n, h, fan_in=d)
            self.bq_nh = zeros(n, h) if config.qkv_bias else None
            self.bk_nh = zeros(n, h) if config.qkv_bias else None
            self.bv_nh = zeros(n, h) if config.qkv_bias else None
        self.wo_nhd, self.bo_d = weight(rngs, n, h, d, fan_in=d), zeros(d)
        self.scale1_d, self.scale2_d = ones(d), ones(d)
        self.norm2_scale_d, self.norm2_bias_d = ones(d), zeros(d)
        self.w_up_fd, self.b_up_f = matrix(rngs, f, d), zeros(f)
        self.w_down_df, self.b_down_d = matrix(rngs, d, f), zeros(d)

    def __call__(self, x_bpd: Float[Array, "B P D"]) -> Float[Array, "B P D"]:
        """Maps the states of all patches of each tile."""
        normed = layer_norm(x_bpd, self.norm1_scale_d[...], self.norm1_bias_d[...], self.eps)
        q, k, v = self._heads(normed)
        out = attend(q, [Segment(k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3))])
        out = jnp.einsum("bpnh,nhd->bpd", out, self.wo_nhd[...]) + self.bo_d[...]
        x_bpd = x_bpd + out * self.scale1_d[...]
        normed = layer_norm(x_bpd, self.norm2_scale_d[...], self.norm2_bias_d[...], self.eps)
        hidden = ACTIVATIONS[self.act](linear(normed, self.w_up_fd[...]) + self.b_up_f[...])
        out = linear(hidden, self.w_down_df[...]) + self.b_down_d[...]
        return x_bpd + out * self.scale2_d[...]

    def _heads(self, normed: Array) -> tuple[Array, Array, Array]:
        """Returns queries, keys and values [B, P, N, H]."""
        if self.fused:
            qkv = jnp.einsum("bpd,dtnh->tbpnh", normed, self.wqkv_d3nh[...])
            if self.bqkv_3nh is not None:
                qkv = qkv + self.bqkv_3nh[...][:, None, None]
            return qkv[0], qkv[1], qkv[2]
        maps = (
            (self.wq_dnh, self.bq_nh),
            (self.wk_dnh, self.bk_nh),
            (self.wv_dnh, self.bv_nh),
        )
        plus = lambda x, b: x if b is None else x + b[...]
        q, k, v = (plus(jnp.einsum("bpd,dnh->bpnh", normed, w[...]), b) for w, b in maps)
        return q, k, v


class InternVision(nnx.Module):
    """Square tiles in, features of the last layer out, without the class token."""

    def __init__(self, config: InternVisionConfig, rngs: nnx.Rngs):
        self.config = config
        d = config.hidden_size
        self.patch_de = matrix(rngs, d, config.num_channels * config.patch_size**2)
        self.patch_bias_d = zeros(d)
        self.class_d = weight(rngs, d, fan_in=d)
        self.positions_pd = weight(rngs, config.num_patches + 1, d, fan_in=d)
        self.layers = nnx.List([InternVisionLayer(config, rngs) for _ in range(config.num_layers)])

    def __call__(self, images: Images) -> Float[Array, "B G P D"]:
        """Returns features [B, tiles, patches of a tile, D]."""
        d = self.config.hidden_size
        patches_bgue = images.patches_bgue.astype(self.patch_de[...].dtype)
        batch, groups, count, _ = patches_bgue.shape
        x_bpd = linear(patches_bgue, self.patch_de[...]) + self.patch_bias_d[...]
        x_bpd = x_bpd.reshape(batch * groups, count, d)
        first = jnp.broadcast_to(self.class_d[...], (batch * groups, 1, d))
        x_bpd = jnp.concatenate([first, x_bpd], axis=1) + self.positions_pd[...]
        for layer in self.layers:
            x_bpd = layer(x_bpd)
        return x_bpd[:, 1:].reshape(batch, groups, count, d)
