"""Two towers, of images and of texts, whose features are compared by their angle."""

import dataclasses
import functools
import pathlib
import types
from collections.abc import Sequence
from typing import ClassVar

import jax
import msgspec
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from vlm_jax.config import VitConfig
from vlm_jax.families.base import Row
from vlm_jax.families.fields import Count, Object, read
from vlm_jax.families.vit import read_tower, vit_rows
from vlm_jax.foreign import read_json
from vlm_jax.matching.base import Matcher, few_rows, read_params, unit
from vlm_jax.matching.words import WordsConfig, WordsFields, words_rows
from vlm_jax.models.network import merge_any
from vlm_jax.processing.images import ImageSource


class _Fields(msgspec.Struct, kw_only=True):
    """What `config.json` says."""

    text_config: Object = {}
    vision_config: Object = {}
    projection_dim: Count = 512


class Towers(nnx.Module):
    """An image's features, and texts'; `image` [D'] and `texts` [B, D'] are compared."""

    def __init__(self, vision: VitConfig, words: WordsConfig, width: int, rngs: nnx.Rngs):
        raise NotImplementedError

    def image(self, patches_bgue: Float[Array, "1 1 P E"]) -> Float[Array, " D"]:
        """Returns the features of an image."""
        raise NotImplementedError

    def texts(self, ids_bt: Int[Array, "B T"]) -> Float[Array, "B D"]:
        """Returns the features of texts."""
        raise NotImplementedError


class DualEncoder(Matcher):
    """The cosine of an image's features and a text's, in [-1, 1]; without scale and bias.

    Attributes:
        towers: the model.
        words: fields of its `text_config`.
        causal: whether words see those before them alone.
        rows: names on disk beside those of the two transformers.
    """

    towers: ClassVar[type[Towers]]
    words: ClassVar[type[WordsFields]]
    causal: ClassVar[bool]
    rows: ClassVar[tuple[Row, ...]]
    kind: ClassVar[str]

    def __init__(self, folder: pathlib.Path):
        super().__init__(folder)
        where = str(folder / "config.json")
        fields = read_json(folder / "config.json", _Fields)
        vision_fields = {"model_type": self.kind, **fields.vision_config}
        tower = read_tower(vision_fields, where, keep_class_token=True)
        self.vision = dataclasses.replace(tower, post_norm_eps=tower.layer_norm_eps)
        texts = read(fields.text_config, self.words, where)
        self.config: WordsConfig = texts.config(where, causal=self.causal)
        graphdef, self.params = read_params(
            folder,
            lambda: self.towers(self.vision, self.config, fields.projection_dim, nnx.Rngs(0)),
            (*vit_rows("vision_model."), *words_rows(), *self.rows),
            {
                "vision": (self.vision.num_layers, self.vision.num_heads),
                "words": (self.config.block.num_layers, self.config.block.num_heads),
                "head": (0, self.vision.num_heads),
            },
            types.SimpleNamespace(vision=self.vision),
        )
        model = functools.partial(merge_any, graphdef)
        self._image = jax.jit(lambda params, patches: unit(model(params).image(patches)))
        self._texts = jax.jit(lambda params, ids: unit(model(params).texts(ids)))

    def __call__(self, texts: Sequence[str], image: ImageSource) -> list[float]:
        """See `Matcher.__call__`."""
        if not len(texts):
            return []
        features_d = self.once(
            image, lambda: self._image(self.params, self.patches(image, self.vision))
        )
        ids_bt = self.ids(texts)
        rows = few_rows(len(texts))
        padded = np.concatenate([ids_bt, np.repeat(ids_bt[-1:], rows - len(texts), axis=0)])
        found = np.asarray(self._texts(self.params, padded) @ features_d)
        return found[: len(texts)].tolist()

    def ids(self, texts: Sequence[str]) -> np.ndarray:
        """Returns int32 [texts, positions], padded or cut to all positions of the model."""
        found = self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.config.max_positions,
            return_tensors="np",
        )
        return self.checked(np.asarray(found["input_ids"], np.int32), self.config.vocab_size)
