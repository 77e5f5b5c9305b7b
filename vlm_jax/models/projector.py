"""From vision features to the decoder's width: linear maps."""

from flax import nnx
from jaxtyping import Array, Float

from vlm_jax.models.layers import ACTIVATIONS, linear, matrix, ones, rms_norm, weight, zeros


class Projector(nnx.Module):
    """An MLP over image tokens; a patch merger is the same after a norm and a grouping.

    Args:
        rngs: draws the maps.
        inputs, hidden, outputs: widths; `inputs` of `merge` features together.
        act: activation between the maps.
        bias: whether they have biases.
        merge: how many consecutive features make one token.
        norm_eps: epsilon of an RMS norm over each feature before that; None for no norm.
        newline: whether it holds a learned image token for the ends of rows, which slot -1 takes.
    """

    def __init__(
        self,
        rngs: nnx.Rngs,
        inputs: int,
        hidden: int,
        outputs: int,
        act: str,
        bias: bool = True,
        *,
        merge: int = 1,
        norm_eps: float | None = None,
        newline: bool = False,
    ):
        self.act, self.merge, self.eps = act, merge, norm_eps
        self.norm_e = None if norm_eps is None else ones(inputs // merge)
        self.w1_fe = matrix(rngs, hidden, inputs)
        self.w2_df = matrix(rngs, outputs, hidden)
        self.b1_f = zeros(hidden) if bias else None
        self.b2_d = zeros(outputs) if bias else None
        if newline:
            self.newline_d = weight(rngs, outputs, fan_in=outputs)

    def __call__(self, features_bgue: Float[Array, "B G U E"]) -> Float[Array, "B M D"]:
        """Returns the image tokens of each sample, groups flattened."""
        x = features_bgue
        if self.norm_e is not None and self.eps is not None:
            x = rms_norm(x, self.norm_e[...], self.eps)
        x = x.reshape(x.shape[0], -1, x.shape[-1] * self.merge)
        x = linear(x, self.w1_fe[...])
        x = ACTIVATIONS[self.act](x if self.b1_f is None else x + self.b1_f[...])
        x = linear(x, self.w2_df[...])
        return x if self.b2_d is None else x + self.b2_d[...]


class LinearProjector(nnx.Module):
    """One linear map with a bias."""

    def __init__(self, rngs: nnx.Rngs, inputs: int, outputs: int):
        self.w_de, self.b_d = matrix(rngs, outputs, inputs), zeros(outputs)

    def __call__(self, features_bgue: Float[Array, "B G U E"]) -> Float[Array, "B M D"]:
        """Returns the image tokens of each sample, groups flattened."""
        x = features_bgue.reshape(features_bgue.shape[0], -1, features_bgue.shape[-1])
        return linear(x, self.w_de[...]) + self.b_d[...]
