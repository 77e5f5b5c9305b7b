"""The Qwen2.5-VL vision tower: attention within windows, and across an image in a few layers.

Groups of the input are windows, padded to full size, so that windowed attention is a batch of small
squares. Patch order inside a window is unit-major: merge_size ** 2 consecutive patches become one
token (Qwen2.5-VL, arXiv 2502.13923, section 2.1).
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vlm_jax.attention import Segment, Visibility, attend
from vlm_jax.batch import Images
from vlm_jax.config import QwenVisionConfig
from vlm_jax.models.dealing import Across, all_keys
from vlm_jax.models.layers import (
    ACTIVATIONS,
    heads,
    linear,
    matrix,
    ones,
    patch_angles,
    rms_norm,
    rotate_patches,
    weight,
    zeros,
)


class QwenVisionLayer(nnx.Module):
    """Pre-norm attention and gated MLP with biases."""

    def __init__(self, config: QwenVisionConfig, rngs: nnx.Rngs):
        d, f, n = config.hidden_size, config.intermediate_size, config.num_heads
        h = d // n
        self.eps = config.rms_norm_eps
        self.norm1_d, self.norm2_d = ones(d), ones(d)
        self.wqkv_d3nh, self.bqkv_3nh = weight(rngs, d, 3, n, h, fan_in=d), zeros(3, n, h)
        self.wo_nhd, self.bo_d = weight(rngs, n, h, d, fan_in=d), zeros(d)
        self.w_gate_fd, self.b_gate_f = matrix(rngs, f, d), zeros(f)
        self.w_up_fd, self.b_up_f = matrix(rngs, f, d), zeros(f)
        self.w_down_df, self.b_down_d = matrix(rngs, d, f), zeros(d)

    def __call__(
        self,
        x_bpd: Float[Array, "B P D"],
        angles: Float[Array, "B P half"],
        queries: Visibility,
        across: Across = (),
    ) -> Float[Array, "B P D"]:
        """Maps the states of each row of patches; `queries` says which attend to which.

        With `across`, other devices hold the rest of each row.
        """
        normed = rms_norm(x_bpd, self.norm1_d[...], self.eps)
        q, k, v = heads(normed, self.wqkv_d3nh[...], self.bqkv_3nh[...])
        q, k = rotate_patches(q, angles), rotate_patches(k, angles)
        segment = Segment(k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), queries)
        out = attend(q, [all_keys(segment, across)], queries)
        x_bpd = x_bpd + jnp.einsum("bpnh,nhd->bpd", out, self.wo_nhd[...]) + self.bo_d[...]
        normed = rms_norm(x_bpd, self.norm2_d[...], self.eps)
        gate = linear(normed, self.w_gate_fd[...]) + self.b_gate_f[...]
        up = linear(normed, self.w_up_fd[...]) + self.b_up_f[...]
        hidden = ACTIVATIONS["silu"](gate) * up
        return x_bpd + linear(hidden, self.w_down_df[...]) + self.b_down_d[...]


class QwenVision(nnx.Module):
    """Windows of patches in, patch features out; the merger is the model's projector."""

    apart = False

    def __init__(self, config: QwenVisionConfig, rngs: nnx.Rngs):
        self.config = config
        inputs = config.num_channels * config.temporal_patch_size * config.patch_size**2
        self.patch_de = matrix(rngs, config.hidden_size, inputs)
        self.layers = nnx.List([QwenVisionLayer(config, rngs) for _ in range(config.num_layers)])

    def __call__(self, images: Images, across: Across = ()) -> Float[Array, "B G U D"]:
        """Returns features [B, windows, patches of a window, D]; `across` as of `deal`."""
        c = self.config
        patches_bgue = images.patches_bgue.astype(self.patch_de[...].dtype)
        batch, groups, count, _ = patches_bgue.shape
        x = linear(patches_bgue, self.patch_de[...])
        angles = patch_angles(images.positions_bgu2, c.hidden_size // c.num_heads, c.rope_theta)
        windowed = (batch * groups, count)
        whole = (batch, groups * count)
        for index, layer in enumerate(self.layers):
            full = index in c.full_attention_layers
            rows = whole if full else windowed
            shape = lambda a, rows=rows: a.reshape(*rows, *a.shape[a.ndim - 1 :])
            queries = Visibility(group=images.ids_bgu.reshape(rows))
            x = layer(shape(x), shape(angles), queries, across if full else ())
        return x.reshape(batch, groups, count, c.hidden_size)
