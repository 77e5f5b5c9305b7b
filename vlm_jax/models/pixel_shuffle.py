"""Blocks of neighbouring patches to one image token each, by a norm and two linear maps."""

import math

import einops
from flax import nnx
from jaxtyping import Array, Float

from vlm_jax.models.layers import ACTIVATIONS, layer_norm, linear, matrix, ones, zeros

EPSILON = 1e-5
"""Of the norm, whatever the tower's is (`InternVLMultiModalProjector` of transformers)."""


class PixelShuffle(nnx.Module):
    """Channels of a block of `merge` x `merge` patches side by side, in the order row, column.

    With 4 x 4 patches a..p row by row and merge 2: tokens (a b e f), (c d g h), (i j m n), ...
    """

    def __init__(self, rngs: nnx.Rngs, width: int, merge: int, outputs: int, act: str):
        self.merge, self.act = merge, act
        inputs = width * merge**2
        self.norm_scale_e, self.norm_bias_e = ones(inputs), zeros(inputs)
        self.w1_fe, self.b1_f = matrix(rngs, outputs, inputs), zeros(outputs)
        self.w2_df, self.b2_d = matrix(rngs, outputs, outputs), zeros(outputs)

    def __call__(self, features_bgpe: Float[Array, "B G P E"]) -> Float[Array, "B M D"]:
        """Returns the image tokens of each sample, tiles one after another."""
        side = math.isqrt(features_bgpe.shape[2])
        x = einops.rearrange(
            features_bgpe,
            "b g (h i w j) e -> b (g h w) (i j e)",
            h=side // self.merge,
            w=side // self.merge,
            i=self.merge,
            j=self.merge,
        )
        x = layer_norm(x, self.norm_scale_e[...], self.norm_bias_e[...], EPSILON)
        x = ACTIVATIONS[self.act](linear(x, self.w1_fe[...]) + self.b1_f[...])
        return linear(x, self.w2_df[...]) + self.b2_d[...]
