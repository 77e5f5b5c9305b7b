"""Vision transformers of images at their own resolution, and the mergers of their outputs.

One module is Qwen3-VL's tower and MoonViT: `NativeVitConfig` says what each has. Besides the last
layer's, the outputs of a few layers may reach the decoder, each through a merger of its own
(DeepStack, arXiv 2406.04334).
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vlm_jax.attention import Segment, Visibility, attend
from vlm_jax.batch import Images
from vlm_jax.config import NativeVitConfig
from vlm_jax.models.dealing import Across, all_keys, own_part, together
from vlm_jax.models.layers import (
    ACTIVATIONS,
    halves,
    heads,
    layer_norm,
    linear,
    matrix,
    ones,
    patch_angles,
    rotate_patches,
    weight,
    zeros,
)
from vlm_jax.models.learned_positions import image_extents, resample


class NativeVitLayer(nnx.Module):
    """Pre-norm attention and MLP with biases."""

    def __init__(self, config: NativeVitConfig, rngs: nnx.Rngs):
        d, f, n = config.hidden_size, config.intermediate_size, config.num_heads
        h = d // n
        self.eps, self.act = config.layer_norm_eps, config.hidden_act
        self.neighbours = config.rope_neighbours
        self.norm1_scale_d, self.norm1_bias_d = ones(d), zeros(d)
        self.wqkv_d3nh, self.bqkv_3nh = weight(rngs, d, 3, n, h, fan_in=d), zeros(3, n, h)
        self.wo_nhd, self.bo_d = weight(rngs, n, h, d, fan_in=d), zeros(d)
        self.norm2_scale_d, self.norm2_bias_d = ones(d), zeros(d)
        self.w_up_fd, self.b_up_f = matrix(rngs, f, d), zeros(f)
        self.w_down_df, self.b_down_d = matrix(rngs, d, f), zeros(d)

    def __call__(
        self,
        x_bpd: Float[Array, "B P D"],
        angles: Float[Array, "B P half"],
        queries: Visibility,
        across: Across = (),
    ) -> Float[Array, "B P D"]:
        """Maps the states of all patches of a sample; `queries` says which are of one image.

        With `across`, other devices hold the rest of each sample.
        """
        normed = layer_norm(x_bpd, self.norm1_scale_d[...], self.norm1_bias_d[...], self.eps)
        q, k, v = heads(normed, self.wqkv_d3nh[...], self.bqkv_3nh[...])
        q, k = (halves(q), halves(k)) if self.neighbours else (q, k)
        q, k = rotate_patches(q, angles), rotate_patches(k, angles)
        segment = Segment(k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), queries)
        out = attend(q, [all_keys(segment, across)], queries)
        x_bpd = x_bpd + jnp.einsum("bpnh,nhd->bpd", out, self.wo_nhd[...]) + self.bo_d[...]
        normed = layer_norm(x_bpd, self.norm2_scale_d[...], self.norm2_bias_d[...], self.eps)
        hidden = ACTIVATIONS[self.act](linear(normed, self.w_up_fd[...]) + self.b_up_f[...])
        return x_bpd + linear(hidden, self.w_down_df[...]) + self.b_down_d[...]


class NativeVit(nnx.Module):
    """Runs of patches in, features of the last layer and of the deep ones side by side out."""

    apart = False

    def __init__(self, config: NativeVitConfig, rngs: nnx.Rngs):
        self.config = config
        d = config.hidden_size
        inputs = config.num_channels * config.temporal_patch_size * config.patch_size**2
        self.patch_de, self.patch_bias_d = matrix(rngs, d, inputs), zeros(d)
        self.positions_pd = weight(rngs, config.position_side**2, d, fan_in=d)
        self.layers = nnx.List([NativeVitLayer(config, rngs) for _ in range(config.num_layers)])
        if config.post_norm:
            self.post_norm_scale_d, self.post_norm_bias_d = ones(d), zeros(d)

    def __call__(self, images: Images, across: Across = ()) -> Float[Array, "B G U E"]:
        """Returns features [B, groups, patches of a group, (1 + deep layers) D], the last first.

        `across` as of `deal`.
        """
        c = self.config
        patches_bgue = images.patches_bgue.astype(self.patch_de[...].dtype)
        batch, groups, count, _ = patches_bgue.shape
        x = linear(patches_bgue, self.patch_de[...]) + self.patch_bias_d[...]
        positions_bgu2 = jnp.asarray(images.positions_bgu2)
        ids_bgu = jnp.asarray(images.ids_bgu)
        extents = image_extents(*together((ids_bgu, positions_bgu2), across))
        extents = own_part(extents, across, groups)
        table_pd = self.positions_pd[...]
        kernel = c.position_kernel
        learned = resample(table_pd, positions_bgu2, extents, c.position_side, kernel)
        x = x + learned.astype(x.dtype)
        angles = patch_angles(positions_bgu2, c.hidden_size // c.num_heads, c.rope_theta)
        if c.rope_neighbours:
            # Column and row in turns: c0 r0 c1 r1 ... of r0 r1 ... c0 c1 ...
            rows, cols = jnp.split(angles, 2, axis=-1)
            angles = jnp.stack([cols, rows], axis=-1).reshape(angles.shape)
        whole = lambda a: a.reshape(batch, groups * count, *a.shape[3:])
        x, angles, queries = whole(x), whole(angles), Visibility(group=whole(ids_bgu))
        deep = []
        for index, layer in enumerate(self.layers):
            x = layer(x, angles, queries, across)
            if index in c.deep_layers:
                deep.append(x)
        if c.post_norm:
            x = layer_norm(
                x, self.post_norm_scale_d[...], self.post_norm_bias_d[...], c.layer_norm_eps
            )
        return jnp.concatenate([x, *deep], axis=-1).reshape(batch, groups, count, -1)


class PatchMerger(nnx.Module):
    """A norm and two linear maps, that make one token of a unit of patches.

    Args:
        rngs: draws the maps.
        config: of the tower.
        norm_units: whether the norm is over a unit's patches together, or over each.
    """

    def __init__(self, rngs: nnx.Rngs, config: NativeVitConfig, norm_units: bool):
        unit = config.hidden_size * config.merge_size**2
        self.unit, self.norm_units, self.eps = unit, norm_units, config.layer_norm_eps
        width = unit if norm_units else config.hidden_size
        self.norm_scale_e, self.norm_bias_e = ones(width), zeros(width)
        self.w1_fe, self.b1_f = matrix(rngs, unit, unit), zeros(unit)
        self.w2_df, self.b2_d = (
            matrix(rngs, config.out_hidden_size, unit),
            zeros(config.out_hidden_size),
        )

    def merge(self, x: Float[Array, "B G U E"]) -> Float[Array, "B M D"]:
        """Returns the tokens of one layer's features."""
        units = lambda a: a.reshape(a.shape[0], -1, self.unit)
        norm = lambda a: layer_norm(a, self.norm_scale_e[...], self.norm_bias_e[...], self.eps)
        x = norm(units(x)) if self.norm_units else units(norm(x))
        x = ACTIVATIONS["gelu"](linear(x, self.w1_fe[...]) + self.b1_f[...])
        return linear(x, self.w2_df[...]) + self.b2_d[...]


class DeepMerger(PatchMerger):
    """Tokens of the last layer, and behind each what later layers of the decoder add to it."""

    def __init__(self, rngs: nnx.Rngs, config: NativeVitConfig):
        super().__init__(rngs, config, norm_units=False)
        self.deep = nnx.List(
            [PatchMerger(rngs, config, norm_units=True) for _ in config.deep_layers]
        )

    def __call__(self, features_bgue: Float[Array, "B G U E"]) -> Float[Array, "B M W"]:
        """Returns the image tokens of each sample, W = (1 + deep layers) D."""
        pieces = jnp.split(features_bgue, 1 + len(self.deep), axis=-1)
        mergers = (self, *self.deep)
        return jnp.concatenate([m.merge(x) for m, x in zip(mergers, pieces)], axis=-1)
