"""The causal decoder of every family: what its layers are made of is data (`LayerConfig`)."""

import functools
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vlm_jax.attention import Segment, Visibility, attend
from vlm_jax.config import DecoderConfig, LayerConfig
from vlm_jax.models.attention import ExtendLayer, GroupedQuery, Latent
from vlm_jax.models.hooks import Attend, Hooks
from vlm_jax.models.layers import linear, matrix, ones, rms_norm, text_angles, weight
from vlm_jax.models.mlp import Dense, Experts

ExtendCache = Callable[[int, Array, Array | None], Sequence[Segment]]
"""(layer, its new keys, its new values) -> the segments that its queries attend to.

Appends the new keys and values of a layer to the cache. Values are None where they are the keys.
"""


class DecoderLayer(nnx.Module):
    """Pre-norm attention and MLP with residuals; `decoder_layer` makes one of its parts."""

    wo_nhd: nnx.Param
    declare_attention: Callable[..., None]
    attention: Callable[..., Array]
    declare_mlp: Callable[..., None]
    mlp: Callable[..., Array]

    def __init__(self, config: DecoderConfig, kind: LayerConfig, rngs: nnx.Rngs):
        self.eps = config.rms_norm_eps
        self.attn_norm_d = ones(config.hidden_size)
        self.declare_attention(config, kind.attention, rngs)
        self.mlp_norm_d = ones(config.hidden_size)
        self.declare_mlp(config, kind.mlp, rngs)

    def __call__(
        self,
        x_btd: Float[Array, "B T D"],
        angles: Float[Array, "B T half"],
        queries: Visibility,
        extend_cache: ExtendLayer,
        causal: bool,
        attend: Attend = attend,
    ) -> Float[Array, "B T D"]:
        """Maps hidden states; see `Decoder.__call__` for the arguments, `Hooks` for `attend`."""
        normed = rms_norm(x_btd, self.attn_norm_d[...], self.eps)
        x_btd = x_btd + self.attention(normed, angles, queries, extend_cache, causal, attend)
        return x_btd + self.mlp(rms_norm(x_btd, self.mlp_norm_d[...], self.eps))


@functools.cache
def _layer_class(latent: bool, experts: bool) -> type[DecoderLayer]:
    parts = (Latent if latent else GroupedQuery, Experts if experts else Dense, DecoderLayer)
    return type("".join(part.__name__ for part in parts), parts, {})


def decoder_layer(config: DecoderConfig, index: int, rngs: nnx.Rngs) -> DecoderLayer:
    """Returns a layer with the attention and the MLP that the config gives it."""
    kind = config.layer(index)
    made = _layer_class(kind.attention is not None, kind.mlp is not None)
    return made(config, kind, rngs)


class Decoder(nnx.Module):
    """Embeddings in, hidden states or logits out."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        v, d = config.vocab_size, config.hidden_size
        self.embed_vd = weight(rngs, v, d, fan_in=d)
        layers = [decoder_layer(config, index, rngs) for index in range(config.num_layers)]
        self.layers = nnx.List(layers)
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
            hooks: changes of the layers, and values to keep of them.

        Returns:
            Hidden states after the final norm.
        """
        c = self.config
        angles = text_angles(positions_bt3, c.rope_dim, c.rope_theta, c.rope_factor, c.rope_axes)
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
        return self.normed(x_btd)

    def normed(self, x: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
        """Applies the final norm."""
        return rms_norm(x, self.final_norm_d[...], self.config.rms_norm_eps)

    def logits(self, hidden: Float[Array, "*b D"]) -> Float[Array, "*b V"]:
        """Projects hidden states on the vocabulary; float32 or wider."""
        kind = jnp.promote_types(hidden.dtype, jnp.float32)
        table_vd = self.embed_vd if self.head_vd is None else self.head_vd
        return linear(hidden, table_vd[...], kind)
