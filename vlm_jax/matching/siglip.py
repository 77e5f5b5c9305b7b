"""SigLIP (arXiv 2303.15343)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vlm_jax.config import VitConfig
from vlm_jax.families.base import Row
from vlm_jax.families.fields import Count, Epsilon
from vlm_jax.matching.dual import DualEncoder, Towers
from vlm_jax.matching.words import Words, WordsConfig, WordsFields
from vlm_jax.models.layers import ACTIVATIONS, layer_norm, linear, matrix, ones, weight, zeros
from vlm_jax.models.vit import Vit


class _Pool(nnx.Module):
    """One learned query that reads all patches, and an MLP."""

    def __init__(self, config: VitConfig, rngs: nnx.Rngs):
        d, f, n = config.hidden_size, config.intermediate_size, config.num_heads
        self.act, self.eps = config.hidden_act, config.layer_norm_eps
        self.probe_d = weight(rngs, d, fan_in=d)
        self.wqkv_d3nh, self.bqkv_3nh = weight(rngs, d, 3, n, d // n, fan_in=d), zeros(3, n, d // n)
        self.wo_nhd, self.bo_d = weight(rngs, n, d // n, d, fan_in=d), zeros(d)
        self.norm_scale_d, self.norm_bias_d = ones(d), zeros(d)
        self.w_up_fd, self.b_up_f = matrix(rngs, f, d), zeros(f)
        self.w_down_df, self.b_down_d = matrix(rngs, d, f), zeros(d)

    def __call__(self, x_pd: Float[Array, "P D"]) -> Float[Array, " D"]:
        """Returns the features of an image."""
        wq, wk, wv = jnp.moveaxis(self.wqkv_d3nh[...], 1, 0)
        bq, bk, bv = self.bqkv_3nh[...]
        q_nh = jnp.einsum("d,dnh->nh", self.probe_d[...], wq) + bq
        k_pnh = jnp.einsum("pd,dnh->pnh", x_pd, wk) + bk
        v_pnh = jnp.einsum("pd,dnh->pnh", x_pd, wv) + bv
        scale = q_nh.shape[-1] ** -0.5
        weights_np = jax.nn.softmax(jnp.einsum("nh,pnh->np", q_nh, k_pnh) * scale, axis=-1)
        read_nh = jnp.einsum("np,pnh->nh", weights_np, v_pnh)
        x_d = jnp.einsum("nh,nhd->d", read_nh, self.wo_nhd[...]) + self.bo_d[...]
        normed = layer_norm(x_d, self.norm_scale_d[...], self.norm_bias_d[...], self.eps)
        hidden = ACTIVATIONS[self.act](linear(normed, self.w_up_fd[...]) + self.b_up_f[...])
        return x_d + linear(hidden, self.w_down_df[...]) + self.b_down_d[...]


class _Siglip(Towers):
    """An image is read by a query of its own, a text at its last place, padded or not."""

    def __init__(self, vision: VitConfig, words: WordsConfig, width: int, rngs: nnx.Rngs):
        self.vision, self.words = Vit(vision, rngs), Words(words, rngs)
        self.head = _Pool(vision, rngs)
        d = words.block.hidden_size
        self.text_ed, self.text_e = matrix(rngs, vision.hidden_size, d), zeros(vision.hidden_size)

    def image(self, patches_bgue):
        """See `Towers.image`."""
        return self.head(self.vision.of_patches(patches_bgue)[0, 0])

    def texts(self, ids_bt):
        """See `Towers.texts`."""
        return linear(self.words(ids_bt)[:, -1], self.text_ed[...]) + self.text_e[...]


class _SiglipWords(WordsFields, kw_only=True):
    """Fields of SigLIP's `text_config`, with transformers' defaults."""

    hidden_size: Count = 768
    intermediate_size: Count = 3072
    num_attention_heads: Count = 12
    vocab_size: Count = 32000
    max_position_embeddings: Count = 64
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: Epsilon = 1e-6


_HEAD = "vision_model.head."


class SiglipMatcher(DualEncoder):
    """Cosines of SigLIP."""

    towers, words, causal, kind = _Siglip, _SiglipWords, False, "siglip_vision_model"
    rows = (
        Row(_HEAD + "probe", "head/probe_d", "a b d -> (a b d)"),
        Row(_HEAD + "attention.in_proj_weight", "head/wqkv_d3nh", "(s n h) d -> d s n h"),
        Row(_HEAD + "attention.in_proj_bias", "head/bqkv_3nh", "(s n h) -> s n h"),
        Row(_HEAD + "attention.out_proj.weight", "head/wo_nhd", "d (n h) -> n h d"),
        Row(_HEAD + "attention.out_proj.bias", "head/bo_d", "d -> d"),
        Row(_HEAD + "layernorm.weight", "head/norm_scale_d", "d -> d"),
        Row(_HEAD + "layernorm.bias", "head/norm_bias_d", "d -> d"),
        Row(_HEAD + "mlp.fc1.weight", "head/w_up_fd", "f d -> f d"),
        Row(_HEAD + "mlp.fc1.bias", "head/b_up_f", "f -> f"),
        Row(_HEAD + "mlp.fc2.weight", "head/w_down_df", "d f -> d f"),
        Row(_HEAD + "mlp.fc2.bias", "head/b_down_d", "d -> d"),
        Row("text_model.head.weight", "text_ed", "e d -> e d"),
        Row("text_model.head.bias", "text_e", "e -> e"),
    )
