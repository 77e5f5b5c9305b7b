"""Blocks of 2 x 2 patches to one image token each, the map padded where its sides are odd."""

import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vlm_jax.models.layers import ACTIVATIONS, linear, matrix, weight, zeros


class Unfold(nnx.Module):
    """DeepSeek-VL2's connector: zeros right and below, blocks channel by channel, two linear maps.

    A block's features are channel 0 of its four patches (row, column), then channel 1, ..., as
    `torch.nn.functional.unfold` orders them. Beside them are two learned image tokens: slot -1 is
    the end of a row, slot -2 separates the views of an image.
    """

    def __init__(self, rngs: nnx.Rngs, width: int, merge: int, outputs: int):
        self.merge, inputs = merge, width * merge**2
        self.w1_fe, self.b1_f = matrix(rngs, outputs, inputs), zeros(outputs)
        self.w2_df, self.b2_d = matrix(rngs, outputs, outputs), zeros(outputs)
        self.newline_d = weight(rngs, outputs, fan_in=outputs)
        self.separator_d = weight(rngs, outputs, fan_in=outputs)

    def __call__(self, features_bgpe: Float[Array, "B G P E"]) -> Float[Array, "B M D"]:
        """Returns the image tokens of each sample, tiles one after another."""
        batch, groups, count, width = features_bgpe.shape
        side, merge = math.isqrt(count), self.merge
        pad, cells = -side % merge, -(-side // merge)
        x = features_bgpe.reshape(batch, groups, side, side, width)
        x = jnp.pad(x, ((0, 0), (0, 0), (0, pad), (0, pad), (0, 0)))
        x = x.reshape(batch, groups, cells, merge, cells, merge, width)
        x = x.transpose(0, 1, 2, 4, 6, 3, 5).reshape(batch, groups * cells * cells, -1)
        x = ACTIVATIONS["gelu"](linear(x, self.w1_fe[...]) + self.b1_f[...])
        return linear(x, self.w2_df[...]) + self.b2_d[...]
