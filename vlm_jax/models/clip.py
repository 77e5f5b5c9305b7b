"""The CLIP vision transformer: pre-norm blocks over a class token and a square grid of patches."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vlm_jax.attention import Segment, attend
from vlm_jax.batch import Images
from vlm_jax.config import ClipVisionConfig
from vlm_jax.models.layers import ACTIVATIONS, layer_norm, linear, matrix, ones, weight, zeros


class ClipLayer(nnx.Module):
    """Pre-norm attention and MLP with residuals and biases everywhere."""

    def __init__(self, config: ClipVisionConfig, rngs: nnx.Rngs):
        d, f, n = config.hidden_size, config.intermediate_size, config.num_heads
        h = d // n
        self.eps, self.act = config.layer_norm_eps, config.hidden_act
        self.norm1_scale_d, self.norm1_bias_d = ones(d), zeros(d)
        self.wq_dnh, self.bq_nh = weight(rngs, d, n, h, fan_in=d), zeros(n, h)
        self.wk_dnh, self.bk_nh = weight(rngs, d, n, h, fan_in=d), zeros(n, h)
        self.wv_dnh, self.bv_nh = weight(rngs, d, n, h, fan_in=d), zeros(n, h)
        self.wo_nhd, self.bo_d = weight(rngs, n, h, d, fan_in=d), zeros(d)
        self.norm2_scale_d, self.norm2_bias_d = ones(d), zeros(d)
        self.w_up_fd, self.b_up_f = matrix(rngs, f, d), zeros(f)
        self.w_down_df, self.b_down_d = matrix(rngs, d, f), zeros(d)

    def __call__(self, x_bpd: Float[Array, "B P D"]) -> Float[Array, "B P D"]:
        """Maps the states of all patches of each image."""
        normed = layer_norm(x_bpd, self.norm1_scale_d[...], self.norm1_bias_d[...], self.eps)
        q = jnp.einsum("bpd,dnh->bpnh", normed, self.wq_dnh[...]) + self.bq_nh[...]
        k = jnp.einsum("bpd,dnh->bnph", normed, self.wk_dnh[...]) + self.bk_nh[...][:, None]
        v = jnp.einsum("bpd,dnh->bnph", normed, self.wv_dnh[...]) + self.bv_nh[...][:, None]
        out = attend(q, [Segment(k, v)])
        x_bpd = x_bpd + jnp.einsum("bpnh,nhd->bpd", out, self.wo_nhd[...]) + self.bo_d[...]
        normed = layer_norm(x_bpd, self.norm2_scale_d[...], self.norm2_bias_d[...], self.eps)
        hidden = ACTIVATIONS[self.act](linear(normed, self.w_up_fd[...]) + self.b_up_f[...])
        return x_bpd + linear(hidden, self.w_down_df[...]) + self.b_down_d[...]


class ClipVision(nnx.Module):
    """Images as one group of patches each in, features of the chosen layers out."""

    def __init__(self, config: ClipVisionConfig, rngs: nnx.Rngs):
        self.config = config
        d = config.hidden_size
        inputs = config.num_channels * config.patch_size**2
        self.patch_de = matrix(rngs, d, inputs)
        self.class_d = weight(rngs, d, fan_in=d)
        self.positions_pd = weight(rngs, config.num_patches + 1, d, fan_in=d)
        self.pre_norm_scale_d, self.pre_norm_bias_d = ones(d), zeros(d)
        self.layers = nnx.List([ClipLayer(config, rngs) for _ in range(config.num_layers)])
        # Checkpoints carry a norm after the last layer; the features we read come before it.
        self.post_norm_scale_d, self.post_norm_bias_d = ones(d), zeros(d)

    def __call__(self, images: Images) -> Float[Array, "B G M E"]:
        """Returns features [B, images, tokens of an image, E].

        E is the width of the tower times the number of feature layers. Index 0 of the layers is
        the embedding after the first norm, index i the output of layer i, as in transformers.
        """
        c = self.config
        patches_bgue = images.patches_bgue.astype(self.patch_de[...].dtype)
        batch, groups, count, _ = patches_bgue.shape
        x_bpd = linear(patches_bgue, self.patch_de[...])
        x_bpd = x_bpd.reshape(batch * groups, count, c.hidden_size)
        first = jnp.broadcast_to(self.class_d[...], (batch * groups, 1, c.hidden_size))
        x_bpd = jnp.concatenate([first, x_bpd], axis=1) + self.positions_pd[...]
        x_bpd = layer_norm(
            x_bpd, self.pre_norm_scale_d[...], self.pre_norm_bias_d[...], c.layer_norm_eps
        )
        wanted = [layer % (c.num_layers + 1) for layer in c.feature_layers]
        states = [x_bpd]
        for layer in self.layers[: max(wanted)]:
            states.append(layer(states[-1]))
        features = jnp.concatenate([states[index] for index in wanted], axis=-1)
        if not c.keep_class_token:
            features = features[:, 1:]
        return features.reshape(batch, groups, *features.shape[1:])
