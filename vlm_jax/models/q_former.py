"""The Q-Former: learned queries that read an image, and the question where it has words.

A BERT (post-norm) whose rows are the queries, then the question's words. All rows attend to all;
every other layer the queries also attend to the image. Queries and words have MLPs of their own
(BLIP-2, arXiv 2301.12597; InstructBLIP, arXiv 2305.06500).
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vlm_jax.attention import NEVER, Segment, Visibility, attend
from vlm_jax.config import QFormerConfig
from vlm_jax.models.layers import ACTIVATIONS, layer_norm, linear, matrix, ones, weight, zeros


class Attention(nnx.Module):
    """Attention with residual and post-norm, as in BERT.

    Args:
        config: the Q-Former.
        rngs: draws the maps.
        cross: whether it reads the image's features, which have a width of their own.
    """

    def __init__(self, config: QFormerConfig, rngs: nnx.Rngs, *, cross: bool):
        d, n = config.hidden_size, config.num_heads
        h, self.eps, self.cross = d // n, config.layer_norm_eps, cross
        self.wq_dnh, self.bq_nh = weight(rngs, d, n, h, fan_in=d), zeros(n, h)
        if cross:
            e = config.encoder_size
            self.wk_enh = weight(rngs, e, n, h, fan_in=e)
            self.wv_enh = weight(rngs, e, n, h, fan_in=e)
        else:
            self.wk_dnh = weight(rngs, d, n, h, fan_in=d)
            self.wv_dnh = weight(rngs, d, n, h, fan_in=d)
        self.bk_nh, self.bv_nh = zeros(n, h), zeros(n, h)
        self.wo_nhd, self.bo_d = weight(rngs, n, h, d, fan_in=d), zeros(d)
        self.norm_scale_d, self.norm_bias_d = ones(d), zeros(d)

    def __call__(
        self,
        x_btd: Float[Array, "B T D"],
        read_bse: Float[Array, "B S E"],
        order_bs: Int[Array, "B S"] | None = None,
    ) -> Float[Array, "B T D"]:
        """Maps rows that attend to `read_bse`; those of order `NEVER` are not seen."""
        wk, wv = (self.wk_enh, self.wv_enh) if self.cross else (self.wk_dnh, self.wv_dnh)
        q = jnp.einsum("btd,dnh->btnh", x_btd, self.wq_dnh[...]) + self.bq_nh[...]
        k = jnp.einsum("bse,enh->bnsh", read_bse, wk[...]) + self.bk_nh[...][:, None]
        v = jnp.einsum("bse,enh->bnsh", read_bse, wv[...]) + self.bv_nh[...][:, None]
        queries = None
        if order_bs is not None:
            queries = Visibility(order=jnp.zeros(x_btd.shape[:2], jnp.int32))
        out = attend(q, [Segment(k, v, Visibility(order=order_bs))], queries)
        out = jnp.einsum("btnh,nhd->btd", out, self.wo_nhd[...]) + self.bo_d[...]
        return layer_norm(x_btd + out, self.norm_scale_d[...], self.norm_bias_d[...], self.eps)


class Mlp(nnx.Module):
    """Two linear maps with an activation between, with residual and post-norm."""

    def __init__(self, config: QFormerConfig, rngs: nnx.Rngs):
        d, f = config.hidden_size, config.intermediate_size
        self.eps, self.act = config.layer_norm_eps, config.hidden_act
        self.w_up_fd, self.b_up_f = matrix(rngs, f, d), zeros(f)
        self.w_down_df, self.b_down_d = matrix(rngs, d, f), zeros(d)
        self.norm_scale_d, self.norm_bias_d = ones(d), zeros(d)

    def __call__(self, x_btd: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Maps rows."""
        hidden = ACTIVATIONS[self.act](linear(x_btd, self.w_up_fd[...]) + self.b_up_f[...])
        out = x_btd + linear(hidden, self.w_down_df[...]) + self.b_down_d[...]
        return layer_norm(out, self.norm_scale_d[...], self.norm_bias_d[...], self.eps)


class QFormerLayer(nnx.Module):
    """Attention among queries and words, of queries to the image in some layers, and MLPs."""

    def __init__(self, config: QFormerConfig, rngs: nnx.Rngs, index: int):
        self.queries = config.num_queries
        self.attention = Attention(config, rngs, cross=False)
        reads_image = index % config.cross_every == 0
        self.cross = Attention(config, rngs, cross=True) if reads_image else None
        self.query_mlp = Mlp(config, rngs)
        self.word_mlp = Mlp(config, rngs) if config.reads_text else None

    def __call__(
        self,
        x_btd: Float[Array, "B T D"],
        features_bse: Float[Array, "B S E"],
        order_bt: Int[Array, "B T"] | None,
        *,
        last: bool,
    ) -> Float[Array, "B R D"]:
        """Maps all rows; in the last layer the queries alone, since nothing reads its words."""
        x_btd = self.attention(x_btd[:, : self.queries] if last else x_btd, x_btd, order_bt)
        queries, words = x_btd[:, : self.queries], x_btd[:, self.queries :]
        if self.cross is not None:
            queries = self.cross(queries, features_bse)
        queries = self.query_mlp(queries)
        if self.word_mlp is None or last:
            return queries
        return jnp.concatenate([queries, self.word_mlp(words)], axis=1)


class QFormer(nnx.Module):
    """The features of an image in, one row for each query out."""

    def __init__(self, config: QFormerConfig, rngs: nnx.Rngs):
        self.config = config
        d = config.hidden_size
        self.queries_pd = weight(rngs, config.num_queries, d, fan_in=d)
        self.norm_scale_d, self.norm_bias_d = ones(d), zeros(d)
        if config.reads_text:
            self.embed_vd = weight(rngs, config.vocab_size, d, fan_in=d)
            self.positions_pd = weight(rngs, config.max_positions, d, fan_in=d)
        self.layers = nnx.List([QFormerLayer(config, rngs, i) for i in range(config.num_layers)])

    def __call__(
        self, features_bgse: Float[Array, "B G S E"], words_bs: Int[Array, "B W"] | None = None
    ) -> Float[Array, "B G Q D"]:
        """Returns the queries of each image, each image read with its sample's question.

        Args:
            features_bgse: of the images of each sample.
            words_bs: ids of the question's words, -1 where padded; None where it reads none.
        """
        batch, images, _, _ = features_bgse.shape
        d = self.config.hidden_size
        x = jnp.broadcast_to(self.queries_pd[...], (batch, *self.queries_pd.shape))
        order = None
        if self.config.reads_text:
            assert words_bs is not None  # `processing` gives them to every batch with images
            words_bsd = jnp.take(self.embed_vd[...], jnp.maximum(words_bs, 0), axis=0)
            words_bsd = words_bsd + self.positions_pd[...][: words_bs.shape[1]]
            x = jnp.concatenate([x, words_bsd], axis=1)
            seen = jnp.zeros((batch, self.config.num_queries), jnp.int32)
            order = jnp.concatenate([seen, jnp.where(words_bs < 0, NEVER, 0)], axis=1)
            order = jnp.repeat(order, images, axis=0)
        x = layer_norm(x, self.norm_scale_d[...], self.norm_bias_d[...], self.config.layer_norm_eps)
        x = jnp.repeat(x, images, axis=0)
        features = features_bgse.reshape(batch * images, *features_bgse.shape[2:])
        for index, layer in enumerate(self.layers):
            x = layer(x, features, order, last=index == len(self.layers) - 1)
        return x.reshape(batch, images, -1, d)
