"""BLIP's image-text matching model (arXiv 2201.12086), and what it finds relevant in an image."""

import functools
import pathlib
import re
import types
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import scipy.ndimage
from flax import nnx
from jaxtyping import Array, Float, Int

from vlm_jax.attention import NEVER
from vlm_jax.config import QFormerConfig, VitConfig
from vlm_jax.families.base import Row
from vlm_jax.families.fields import Count, Object, read
from vlm_jax.families.instructblip import InstructBlip
from vlm_jax.families.q_former import Bert, attention_rows, bert_config, mlp_rows
from vlm_jax.families.vit import Clip, vit
from vlm_jax.foreign import read_json
from vlm_jax.matching.base import Matcher, few_rows, read_params, unit
from vlm_jax.models.layers import layer_norm, linear, matrix, ones, weight, zeros
from vlm_jax.models.network import merge_any
from vlm_jax.models.q_former import Attention, Mlp
from vlm_jax.models.vit import Vit
from vlm_jax.processing.images import ImageSource, load_image

ENC = "[ENC]"
MAX_WORDS = 50
BLUR = 0.02
"""Standard deviation of the blur of a map, in sides of the image."""


class _Vision(Clip, kw_only=True):
    """Fields of BLIP's tower, with transformers' defaults."""

    image_size: Count = 384
    patch_size: Count = 16
    hidden_act: str = "gelu"


class _Text(Bert, kw_only=True):
    """Fields of BLIP's BERT, with transformers' defaults."""

    vocab_size: Count = 30524
    num_attention_heads: Count = 8


class _Fields(msgspec.Struct, kw_only=True):
    """What `config.json` says."""

    text_config: Object = {}
    vision_config: Object = {}
    image_text_hidden_size: Count = 256


class _Layer(nnx.Module):
    """Attention among words, of words to the image, and an MLP."""

    def __init__(self, config: QFormerConfig, rngs: nnx.Rngs):
        self.attention = Attention(config, rngs, cross=False)
        self.cross = Attention(config, rngs, cross=True)
        self.mlp = Mlp(config, rngs)

    def __call__(
        self, x_btd: Array, order_bt: Array, features_bse: Array | None, added: Array | None
    ) -> tuple[Array, Array | None]:
        """Maps words.

        Args:
            x_btd: words.
            order_bt: `NEVER` where padded.
            features_bse: of the image; None: it is not read.
            added: to the probabilities of attention to it [N, T, S]; None: nothing.

        Returns:
            The words, and these probabilities, where something is added to them.
        """
        x_btd, probabilities = self.attention(x_btd, x_btd, order_bt), None
        if features_bse is not None and added is not None:
            x_btd, probabilities = _read_openly(self.cross, x_btd, features_bse, added)
        elif features_bse is not None:
            x_btd = self.cross(x_btd, features_bse)
        return self.mlp(x_btd), probabilities


def _read_openly(
    part: Attention, x_btd: Array, features_bse: Array, added: Array
) -> tuple[Array, Array]:
    """Returns what `part` makes of one text's words, and its probabilities [N, T, S]."""
    q_tnh = jnp.einsum("td,dnh->tnh", x_btd[0], part.wq_dnh[...]) + part.bq_nh[...]
    k_snh = jnp.einsum("se,enh->snh", features_bse[0], part.wk_enh[...]) + part.bk_nh[...]
    v_snh = jnp.einsum("se,enh->snh", features_bse[0], part.wv_enh[...]) + part.bv_nh[...]
    logits_nts = jnp.einsum("tnh,snh->nts", q_tnh, k_snh) * q_tnh.shape[-1] ** -0.5
    probabilities_nts = jax.nn.softmax(logits_nts, axis=-1)
    read_tnh = jnp.einsum("nts,snh->tnh", probabilities_nts + added, v_snh)
    out_td = jnp.einsum("tnh,nhd->td", read_tnh, part.wo_nhd[...]) + part.bo_d[...]
    scale, bias = part.norm_scale_d[...], part.norm_bias_d[...]
    return layer_norm(x_btd + out_td, scale, bias, part.eps), probabilities_nts


class _Bert(nnx.Module):
    """Ids in, states of the last layer out."""

    def __init__(self, config: QFormerConfig, rngs: nnx.Rngs):
        self.config, d = config, config.hidden_size
        self.embed_vd = weight(rngs, config.vocab_size, d, fan_in=d)
        self.positions_pd = weight(rngs, config.max_positions, d, fan_in=d)
        self.norm_scale_d, self.norm_bias_d = ones(d), zeros(d)
        self.layers = nnx.List([_Layer(config, rngs) for _ in range(config.num_layers)])

    def __call__(
        self,
        ids_bt: Int[Array, "B T"],
        features_bse: Float[Array, "1 S E"] | None = None,
        added: tuple[int, Array] | None = None,
    ) -> tuple[Float[Array, "B T D"], Array | None]:
        """Returns states, and probabilities of attention to the image in one layer.

        Args:
            ids_bt: -1 where padded.
            features_bse: of the image; None: texts are read alone.
            added: a layer, and what is added to its probabilities [N, T, S] of attention to the
                image; of one text.
        """
        eps, length = self.config.layer_norm_eps, ids_bt.shape[1]
        x_btd = jnp.take(self.embed_vd[...], jnp.maximum(ids_bt, 0), axis=0)
        x_btd = x_btd + self.positions_pd[...][:length]
        x_btd = layer_norm(x_btd, self.norm_scale_d[...], self.norm_bias_d[...], eps)
        order_bt, found = jnp.where(ids_bt < 0, NEVER, 0), None
        for index, layer in enumerate(self.layers):
            here = None if added is None or added[0] != index else added[1]
            x_btd, probabilities = layer(x_btd, order_bt, features_bse, here)
            found = probabilities if found is None else found
        return x_btd, found


class _Blip(nnx.Module):
    """BLIP with its two heads: cosines of features, and matching."""

    def __init__(self, vision: VitConfig, bert: QFormerConfig, width: int, rngs: nnx.Rngs):
        self.vision, self.bert = Vit(vision, rngs), _Bert(bert, rngs)
        self.image_ed, self.image_e = matrix(rngs, width, vision.hidden_size), zeros(width)
        self.text_ed, self.text_e = matrix(rngs, width, bert.hidden_size), zeros(width)
        self.match_ed, self.match_e = matrix(rngs, 2, bert.hidden_size), zeros(2)

    def features(self, patches_bgue: Array) -> Float[Array, "1 S E"]:
        """Returns the features of an image, its class token's first."""
        return self.vision.of_patches(patches_bgue)[:, 0]

    def cosines(self, features_bse: Array, ids_bt: Array) -> Float[Array, " B"]:
        """Returns how alike an image and texts are."""
        image_e = linear(features_bse[0, 0], self.image_ed[...]) + self.image_e[...]
        text_be = linear(self.bert(ids_bt)[0][:, 0], self.text_ed[...]) + self.text_e[...]
        return unit(text_be) @ unit(image_e)

    def matching(
        self, features_bse: Array, ids_bt: Array, added: tuple[int, Array] | None = None
    ) -> tuple[Float[Array, " 2"], Array | None]:
        """Returns logits of no match and of a match, and what `_Bert` says of attention."""
        x_btd, probabilities = self.bert(ids_bt, features_bse, added)
        return linear(x_btd[0, 0], self.match_ed[...]) + self.match_e[...], probabilities


class BlipMatcher(Matcher):
    """BLIP-ITM: cosines of texts and an image, matching, and the parts of an image that matter.

    matcher = open_matcher("models/blip-itm-large-coco")
    matcher(["a cat", "a dog"], "photo.jpg")         # cosines
    matcher.mask(image, "Is there a cat?")           # the mask of AGLA
    """

    def __init__(self, folder: pathlib.Path):
        super().__init__(folder)
        where = str(folder / "config.json")
        fields = read_json(folder / "config.json", _Fields)
        tower = read(fields.vision_config, _Vision, where)
        self.vision = vit(
            tower,
            where,
            keep_class_token=True,
            patch_bias=True,
            fused_qkv=True,
            post_norm=True,
            post_norm_eps=tower.layer_norm_eps,
        )
        # A Q-Former without queries, whose words read the image in each layer.
        text = read(fields.text_config, _Text, where)
        self.config = bert_config(
            text,
            where,
            encoder_size=self.vision.hidden_size,
            num_queries=0,
            cross_every=1,
            vocab_size=text.vocab_size,
            max_positions=text.max_position_embeddings,
        )
        graphdef, self.params = read_params(
            folder,
            lambda: _Blip(self.vision, self.config, fields.image_text_hidden_size, nnx.Rngs(0)),
            _ROWS,
            {
                "vision": (self.vision.num_layers, self.vision.num_heads),
                "bert": (self.config.num_layers, self.config.num_heads),
            },
            types.SimpleNamespace(vision=self.vision),
        )
        model = functools.partial(merge_any, graphdef)
        self.layer = self.config.num_layers // 2
        self._features = jax.jit(lambda params, patches: model(params).features(patches))
        self._cosines = jax.jit(lambda params, *asked: model(params).cosines(*asked))

        def matched(added: Array, params: Any, features: Array, ids: Array) -> tuple[Array, Any]:
            logits, found = model(params).matching(features, ids, (self.layer, added))
            return logits[1], (logits, found)

        self._gradient = jax.jit(jax.value_and_grad(matched, has_aux=True))

    def __call__(self, texts: Sequence[str], image: ImageSource) -> list[float]:
        """Returns the cosine of each text and the image, in [-1, 1]."""
        if not len(texts):
            return []
        rows = few_rows(len(texts))
        ids = [self.ids(text) for text in texts]
        ids_bt = self._padded(ids + ids[-1:] * (rows - len(ids)))
        found = self._cosines(self.params, self.features(image), ids_bt)
        return np.asarray(found)[: len(texts)].tolist()

    def features(self, image: ImageSource) -> Float[Array, "1 S E"]:
        """Returns the features of an image."""
        return self.once(
            image, lambda: self._features(self.params, self.patches(image, self.vision))
        )

    def ids(self, text: str, first: int | None = None) -> list[int]:
        """Returns the ids of a text as the released code cleans it.

        Args:
            first: in place of the first.
        """
        cleaned = re.sub(r"[.!\"()*#:;~]", " ", text.lower()).split()[:MAX_WORDS]
        ids = self.tokenizer(" ".join(cleaned))["input_ids"][: self.config.max_positions]
        return ids if first is None else [first, *ids[1:]]

    def _padded(self, ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Returns int32 [texts, T], -1 where padded; T is one of few lengths."""
        longest = max(map(len, ids))
        width = min(-(-longest // 16) * 16, self.config.max_positions)
        padded = np.full((len(ids), width), -1, np.int32)
        for row, one in zip(padded, ids):
            row[: len(one)] = one
        return self.checked(padded, self.config.vocab_size)

    @property
    def _enc(self) -> int:
        """The token that matching reads a text at."""
        known = self.tokenizer.convert_tokens_to_ids(ENC)
        if known is None or known == self.tokenizer.unk_token_id:
            return self.config.vocab_size - 1
        return int(known)

    def relevance(
        self, image: ImageSource, text: str
    ) -> tuple[Float[np.ndarray, " 2"], Float[np.ndarray, "R R"]]:
        """Returns logits of matching (no, yes), and how much each patch speaks for the text.

        Attention of words to patches times its gradient of the logit of a match, where that is
        positive, in the middle layer (the seventh of twelve); the mean over heads and words.
        """
        ids_bt = self._padded([self.ids(text, self._enc)])
        features, real = self.features(image), int((ids_bt >= 0).sum())
        shape = self.config.num_heads, ids_bt.shape[1], features.shape[1]
        (_, (logits, found)), slope = self._gradient(
            jnp.zeros(shape), self.params, features, ids_bt
        )
        map_tp = np.mean(np.asarray(found * jnp.maximum(slope, 0)), axis=0)[:, 1:]
        words, side = max(real - 2, 1), self.vision.image_size // self.vision.patch_size
        map_p = map_tp[1 : real - 1].sum(axis=0) / words
        return np.asarray(logits), map_p.reshape(side, side)

    def mask(self, image: ImageSource, text: str) -> Float[np.ndarray, "height width"]:
        """Returns 1 where an image matters to a text and 0 elsewhere (AGLA, arXiv 2406.12718).

        The more alike image and text are, the less is kept: a share of 1 - cosine / 2. The released
        code squashes the image to 384 x 384 pixels before; here it keeps its shape.
        """
        loaded = load_image(image, "The image")
        shape = loaded.height, loaded.width
        cosine = self([text], image)[0]
        relevant = smooth(self.relevance(image, text)[1], shape)
        share = min(1 - cosine / 2, 1 - 1e-5)
        falling = np.sort(relevant, axis=None)[::-1]
        return (relevant >= falling[int(relevant.size * share)]).astype(np.float32)


def smooth(map_yx: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Returns a map of patches as one of pixels from 0 to 1: cubic splines, then a blur.

    Args:
        map_yx: of patches.
        shape: height and width of the image.
    """
    level = _from_zero_to_one(np.asarray(map_yx, np.float64))
    zoom = [new / old for new, old in zip(shape, level.shape)]
    large: Any = scipy.ndimage.zoom(level, zoom, order=3, mode="grid-constant", grid_mode=True)
    large = np.clip(large, 0, level.max())
    return _from_zero_to_one(scipy.ndimage.gaussian_filter(large, BLUR * max(shape)))


def _from_zero_to_one(values: np.ndarray) -> np.ndarray:
    values = values - values.min()
    return values / values.max() if values.max() > 0 else values


_WORDS, _LAYER, _OURS = (
    "text_encoder.embeddings.",
    "text_encoder.encoder.layer.{i}.",
    "bert/layers/{i}/",
)
_ROWS = (
    *(row for row in InstructBlip.rows if row.name.startswith("vision_model.")),
    Row(_WORDS + "word_embeddings.weight", "bert/embed_vd", "v d -> v d"),
    Row(_WORDS + "position_embeddings.weight", "bert/positions_pd", "p d -> p d"),
    Row(_WORDS + "LayerNorm.weight", "bert/norm_scale_d", "d -> d"),
    Row(_WORDS + "LayerNorm.bias", "bert/norm_bias_d", "d -> d"),
    *attention_rows(_LAYER + "attention.", _OURS + "attention/", "self.", "d"),
    *attention_rows(_LAYER + "crossattention.", _OURS + "cross/", "self.", "e"),
    *mlp_rows(_LAYER + "intermediate.", _LAYER + "output.", _OURS + "mlp/"),
    Row("vision_proj.weight", "image_ed", "e d -> e d"),
    Row("vision_proj.bias", "image_e", "e -> e"),
    Row("text_proj.weight", "text_ed", "e d -> e d"),
    Row("text_proj.bias", "text_e", "e -> e"),
    Row("itm_head.weight", "match_ed", "e d -> e d"),
    Row("itm_head.bias", "match_e", "e -> e"),
)
