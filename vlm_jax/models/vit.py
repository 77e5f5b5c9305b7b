"""The plain vision transformer: pre-norm blocks over a square grid of patches.

One module is CLIP, SigLIP, EVA and InternViT: `VitConfig` says what each has.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vlm_jax.attention import Segment, Visibility, attend
from vlm_jax.batch import Images
from vlm_jax.config import VitConfig
from vlm_jax.models.layers import ACTIVATIONS, layer_norm, linear, matrix, ones, weight, zeros


class VitLayer(nnx.Module):
    """Pre-norm attention and MLP with residuals, each scaled by channel where there are scales."""

    def __init__(self, config: VitConfig, rngs: nnx.Rngs):
        d, f, n = config.hidden_size, config.intermediate_size, config.num_heads
        h, biased = d // n, config.biased
        self.eps, self.act, self.fused = config.layer_norm_eps, config.hidden_act, config.fused_qkv
        self.norm1_scale_d, self.norm1_bias_d = ones(d), zeros(d)
        if self.fused:
            self.wqkv_d3nh = weight(rngs, d, 3, n, h, fan_in=d)
        else:
            self.wq_dnh = weight(rngs, d, n, h, fan_in=d)
            self.wk_dnh = weight(rngs, d, n, h, fan_in=d)
            self.wv_dnh = weight(rngs, d, n, h, fan_in=d)
        whole = self.fused and biased == "qkv"
        self.bqkv_3nh = zeros(3, n, h) if whole else None
        self.bq_nh = zeros(n, h) if "q" in biased and not whole else None
        self.bk_nh = zeros(n, h) if "k" in biased and not whole else None
        self.bv_nh = zeros(n, h) if "v" in biased and not whole else None
        self.wo_nhd, self.bo_d = weight(rngs, n, h, d, fan_in=d), zeros(d)
        self.scale1_d = ones(d) if config.layer_scale else None
        self.scale2_d = ones(d) if config.layer_scale else None
        self.norm2_scale_d, self.norm2_bias_d = ones(d), zeros(d)
        self.w_up_fd, self.b_up_f = matrix(rngs, f, d), zeros(f)
        self.w_down_df, self.b_down_d = matrix(rngs, d, f), zeros(d)

    def __call__(
        self, x_bpd: Float[Array, "B P D"], order_bp: Int[Array, "B P"] | None = None
    ) -> Float[Array, "B P D"]:
        """Maps the states of all patches of each image; each sees those of its order or less.

        Args:
            x_bpd: states.
            order_bp: of words, which see those before them alone; None: all see all.
        """
        normed = layer_norm(x_bpd, self.norm1_scale_d[...], self.norm1_bias_d[...], self.eps)
        q_bpnh, k_bnph, v_bnph = self._heads(normed)
        seen = Visibility(order_bp)
        out = attend(q_bpnh, [Segment(k_bnph, v_bnph, seen)], None if order_bp is None else seen)
        out = jnp.einsum("bpnh,nhd->bpd", out, self.wo_nhd[...])
        x_bpd = self._add(x_bpd, out, self.bo_d, self.scale1_d)
        normed = layer_norm(x_bpd, self.norm2_scale_d[...], self.norm2_bias_d[...], self.eps)
        hidden = ACTIVATIONS[self.act](linear(normed, self.w_up_fd[...]) + self.b_up_f[...])
        return self._add(x_bpd, linear(hidden, self.w_down_df[...]), self.b_down_d, self.scale2_d)

    def _heads(self, normed: Array) -> tuple[Array, Array, Array]:
        """Returns queries [B, P, N, H], and keys and values [B, N, P, H]."""
        if self.fused:
            q, k, v = jnp.einsum("bpd,dtnh->tbpnh", normed, self.wqkv_d3nh[...])
            k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
        else:
            q = jnp.einsum("bpd,dnh->bpnh", normed, self.wq_dnh[...])
            k = jnp.einsum("bpd,dnh->bnph", normed, self.wk_dnh[...])
            v = jnp.einsum("bpd,dnh->bnph", normed, self.wv_dnh[...])
        biases = self.bq_nh, self.bk_nh, self.bv_nh
        if self.bqkv_3nh is not None:
            biases = self.bqkv_3nh[...]
        bq, bk, bv = biases
        q = q if bq is None else q + bq[...]
        k = k if bk is None else k + bk[...][:, None]
        v = v if bv is None else v + bv[...][:, None]
        return q, k, v

    @staticmethod
    def _add(x_bpd: Array, out: Array, bias_d: nnx.Param, scale_d: nnx.Param | None) -> Array:
        if scale_d is None:
            return x_bpd + out + bias_d[...]
        return x_bpd + (out + bias_d[...]) * scale_d[...]


class Vit(nnx.Module):
    """Images, or tiles, as one group of patches each in; features of the chosen layers out."""

    apart = True

    def __init__(self, config: VitConfig, rngs: nnx.Rngs):
        self.config = config
        d = config.hidden_size
        self.patch_de = matrix(rngs, d, config.num_channels * config.patch_size**2)
        self.patch_bias_d = zeros(d) if config.patch_bias else None
        self.class_d = weight(rngs, d, fan_in=d) if config.class_token else None
        self.positions_pd = weight(rngs, config.num_patches + config.class_token, d, fan_in=d)
        if config.pre_norm:
            self.pre_norm_scale_d, self.pre_norm_bias_d = ones(d), zeros(d)
        self.layers = nnx.List([VitLayer(config, rngs) for _ in range(config.num_layers)])
        if config.post_norm:
            self.post_norm_scale_d, self.post_norm_bias_d = ones(d), zeros(d)

    def __call__(self, images: Images) -> Float[Array, "B G M E"]:
        """Returns features [B, images, tokens of an image, E].

        E is the width of the tower times the number of feature layers. Index 0 of the layers is
        the embedding, after the first norm where there is one, index i the output of layer i.
        """
        return self.of_patches(images.patches_bgue)

    def of_patches(self, patches_bgue: Float[Array, "B G P C"]) -> Float[Array, "B G M E"]:
        """Returns features given the patches alone; see `__call__`."""
        c = self.config
        patches_bgue = patches_bgue.astype(self.patch_de[...].dtype)
        batch, groups, count, _ = patches_bgue.shape
        x_bpd = linear(patches_bgue, self.patch_de[...])
        if self.patch_bias_d is not None:
            x_bpd = x_bpd + self.patch_bias_d[...]
        x_bpd = x_bpd.reshape(batch * groups, count, c.hidden_size)
        if self.class_d is not None:
            first = jnp.broadcast_to(self.class_d[...], (batch * groups, 1, c.hidden_size))
            x_bpd = jnp.concatenate([first, x_bpd], axis=1)
        x_bpd = x_bpd + self.positions_pd[...]
        if c.pre_norm:
            x_bpd = layer_norm(
                x_bpd, self.pre_norm_scale_d[...], self.pre_norm_bias_d[...], c.layer_norm_eps
            )
        wanted = [layer % (c.num_layers + 1) for layer in c.feature_layers]
        states = [x_bpd]
        for layer in self.layers[: max(wanted)]:
            states.append(layer(states[-1]))
        features = jnp.concatenate([states[index] for index in wanted], axis=-1)
        if c.post_norm_eps is not None:
            features = layer_norm(
                features, self.post_norm_scale_d[...], self.post_norm_bias_d[...], c.post_norm_eps
            )
        if c.class_token and not c.keep_class_token:
            features = features[:, 1:]
        return features.reshape(batch, groups, *features.shape[1:])
