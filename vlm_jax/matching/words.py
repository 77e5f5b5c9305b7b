"""The transformer over words that CLIP and SigLIP have beside their tower of images."""

import dataclasses
from typing import Annotated

import jax.numpy as jnp
import msgspec
from flax import nnx
from jaxtyping import Array, Float, Int

from vlm_jax.config import VitConfig
from vlm_jax.families.base import Row
from vlm_jax.families.fields import Count, Depth, Epsilon, Index, activation, divide
from vlm_jax.families.vit import block_rows
from vlm_jax.models.layers import layer_norm, ones, weight, zeros
from vlm_jax.models.vit import VitLayer


@dataclasses.dataclass(frozen=True)
class WordsConfig:
    """A transformer over words.

    Attributes:
        block: of its layers; what it says of patches means nothing.
        vocab_size, max_positions: of the words.
        causal: whether a word sees those before it alone.
        eos_token_id: of the word that a text is read at (CLIP).
    """

    block: VitConfig
    vocab_size: int
    max_positions: int
    causal: bool
    eos_token_id: int


class WordsFields(msgspec.Struct, kw_only=True):
    """Fields of a `text_config`, with transformers' defaults."""

    hidden_size: Count = 512
    intermediate_size: Count = 2048
    num_hidden_layers: Depth = 12
    num_attention_heads: Count = 8
    vocab_size: Annotated[int, msgspec.Meta(ge=1, le=1 << 24)] = 49408
    max_position_embeddings: Count = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5
    eos_token_id: Index = 49407

    def config(self, where: str, *, causal: bool) -> WordsConfig:
        """Returns the transformer.

        Raises:
            ConfigError: a field is out of range.
        """
        divide(self.hidden_size, self.num_attention_heads, where)
        block = VitConfig(
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_layers=self.num_hidden_layers,
            num_heads=self.num_attention_heads,
            num_channels=1,
            patch_size=1,
            image_size=1,
            hidden_act=activation(self.hidden_act, "hidden_act", where),
            layer_norm_eps=self.layer_norm_eps,
        )
        sizes = self.vocab_size, self.max_position_embeddings
        return WordsConfig(block, *sizes, causal, self.eos_token_id)


class Words(nnx.Module):
    """Ids in, normed states of the last layer out."""

    def __init__(self, config: WordsConfig, rngs: nnx.Rngs):
        self.config, d = config, config.block.hidden_size
        self.embed_vd = weight(rngs, config.vocab_size, d, fan_in=d)
        self.positions_pd = weight(rngs, config.max_positions, d, fan_in=d)
        layers = range(config.block.num_layers)
        self.layers = nnx.List([VitLayer(config.block, rngs) for _ in layers])
        self.norm_scale_d, self.norm_bias_d = ones(d), zeros(d)

    def __call__(self, ids_bt: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Returns the states of texts; none of their places is padding."""
        length = ids_bt.shape[1]
        x_btd = jnp.take(self.embed_vd[...], ids_bt, axis=0) + self.positions_pd[...][:length]
        order_bt = None
        if self.config.causal:
            order_bt = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), ids_bt.shape)
        for layer in self.layers:
            x_btd = layer(x_btd, order_bt)
        eps = self.config.block.layer_norm_eps
        return layer_norm(x_btd, self.norm_scale_d[...], self.norm_bias_d[...], eps)


def words_rows() -> tuple[Row, ...]:
    """Returns the rows of the transformer."""
    embeddings, norm = "text_model.embeddings.", "text_model.final_layer_norm."
    return (
        Row(embeddings + "token_embedding.weight", "words/embed_vd", "v d -> v d"),
        Row(embeddings + "position_embedding.weight", "words/positions_pd", "p d -> p d"),
        *block_rows("text_model.encoder.layers.{i}.", "words/layers/{i}/"),
        Row(norm + "weight", "words/norm_scale_d", "d -> d"),
        Row(norm + "bias", "words/norm_bias_d", "d -> d"),
    )
