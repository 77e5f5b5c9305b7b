"""From vision features to the decoder's width: two linear maps with an activation between."""

from flax import nnx
from jaxtyping import Array, Float

from vlm_jax.config import ClipVisionConfig, VLMConfig
from vlm_jax.models.layers import ACTIVATIONS, linear, matrix, ones, rms_norm, zeros


class Projector(nnx.Module):
    """LLaVA's MLP, and Qwen2.5-VL's patch merger: the same after a norm and a grouping."""

    def __init__(self, config: VLMConfig, rngs: nnx.Rngs):
        self.act = config.projector_act
        out, bias = config.decoder.hidden_size, config.projector_bias
        if isinstance(config.vision, ClipVisionConfig):
            self.merge, self.eps = 1, 0.0
            inputs = config.vision.hidden_size * len(config.vision.feature_layers)
            hidden = out
            self.norm_e = None
        else:
            self.merge, self.eps = config.vision.merge_size**2, config.vision.rms_norm_eps
            inputs = hidden = config.vision.hidden_size * self.merge
            self.norm_e = ones(config.vision.hidden_size)
        self.w1_fe = matrix(rngs, hidden, inputs)
        self.w2_df = matrix(rngs, out, hidden)
        self.b1_f = zeros(hidden) if bias else None
        self.b2_d = zeros(out) if bias else None

    def __call__(self, features_bgue: Float[Array, "B G U E"]) -> Float[Array, "B M D"]:
        """Returns the image tokens of each sample, groups flattened."""
        x = features_bgue
        if self.norm_e is not None:
            x = rms_norm(x, self.norm_e[...], self.eps)
        x = x.reshape(x.shape[0], -1, x.shape[-1] * self.merge)
        x = linear(x, self.w1_fe[...])
        x = ACTIVATIONS[self.act](x if self.b1_f is None else x + self.b1_f[...])
        x = linear(x, self.w2_df[...])
        return x if self.b2_d is None else x + self.b2_d[...]
