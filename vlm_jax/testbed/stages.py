"""The stages of training: what each learns, from which data, with which loss.

A stage's data is a pure function of the step, so that a resumed run sees what it would have seen.
"""

import abc
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from vlm_jax import models
from vlm_jax.testbed import language, packing, pixels
from vlm_jax.testbed.architecture import get_family, model_config
from vlm_jax.testbed.recipe import Recipe, StageRecipe
from vlm_jax.testbed.scenes import NUM_CLASSES, SCENE_TYPES, draw_scenes

HEAD, BIAS = "labels/head_ec", "labels/bias_c"
_NUM_LABELS = NUM_CLASSES + len(SCENE_TYPES)
_TYPE_WEIGHT = 0.1  # of naming the scene type beside labelling its patches
# Of the longest turns without what follows the user's words: a caption of seven objects with its
# prompt, and a question.
_CAPTION_TOKENS, _QUESTION_TOKENS = 31, 9
_RELEASED_CAPTION_TOKENS, _RELEASED_QUESTION_TOKENS = 33, 11  # "frisbee" is three tokens
_PROMPT_TOKENS = 7

Params = dict[str, jax.Array]


def label_head(width: int) -> Params:
    """Returns the linear labels that the tower is trained through and that are thrown away."""
    # Most patches are empty: start from rare labels.
    return {
        HEAD: jnp.zeros((width, _NUM_LABELS)),
        BIAS: jnp.full((_NUM_LABELS,), -2.0, jnp.float32),
    }


class Stage(abc.ABC):
    """One stage.

    Attributes:
        name: shown and stored in checkpoints.
        recipe: steps, batch and optimiser.
        prefixes: the parameters it trains begin with one of these.
    """

    name: str
    recipe: StageRecipe
    prefixes: tuple[str, ...]

    @abc.abstractmethod
    def data(self, step: int) -> Any:
        """Returns the arrays of one step."""

    @abc.abstractmethod
    def loss(self, graphdef: nnx.GraphDef, params: Mapping[str, jax.Array], data: Any) -> jax.Array:
        """Returns the loss to minimise."""

    def _indices(self, step: int) -> np.ndarray:
        return np.arange(self.recipe.batch) + step * self.recipe.batch


def _model(graphdef: nnx.GraphDef, params: Mapping[str, jax.Array]) -> models.Network:
    return models.merge(graphdef, {k: v for k, v in params.items() if not k.startswith("labels/")})


class VisionStage(Stage):
    """The tower learns to label patches of scenes without priors.

    It never sees a co-occurrence, so that what a model later hallucinates is the decoder's prior.
    """

    name, prefixes = "vision", ("vision/", "labels/")

    def __init__(self, recipe: Recipe, seed: int):
        assert recipe.vision is not None
        self.recipe, self.rules, self.seed = recipe.vision, recipe.scenes, seed
        self.config = model_config(recipe.family)
        self.cell = get_family(recipe.family).cell

    def data(self, step: int) -> Any:
        """Returns (images, labels [B, G, U, classes], scene types [B])."""
        scenes = draw_scenes("uniform", "train", self.seed, self._indices(step), self.rules)
        images, _ = pixels.cut_images(scenes.images, self.config)
        ratio = self.cell // self.config.vision.patch_size
        labels = pixels.label_patches(scenes.patch_labels(self.cell), images, ratio)
        return images, labels.astype(np.float32), scenes.types

    def loss(self, graphdef, params, data):
        """Binary cross-entropy of every class in every real patch, and of the scene type."""
        images, labels, types = data
        logits = label_logits(graphdef, params, images)
        real = (images.ids_bgu >= 0).astype(jnp.float32)
        losses = optax.sigmoid_binary_cross_entropy(logits[..., :NUM_CLASSES], labels).sum(-1)
        scene = (logits[..., NUM_CLASSES:] * real[..., None]).sum((1, 2)) / real.sum((1, 2))[
            :, None
        ]
        named = optax.softmax_cross_entropy_with_integer_labels(scene, types).mean()
        return (losses * real).sum() / real.sum() + _TYPE_WEIGHT * named


def label_logits(graphdef: nnx.GraphDef, params: Mapping[str, jax.Array], images) -> jax.Array:
    """Returns logits of classes and scene types for every patch: [B, G, U, labels]."""
    return _model(graphdef, params).vision(images) @ params[HEAD] + params[BIAS]


class _LanguageStage(Stage):
    def __init__(self, recipe: Recipe, stage: StageRecipe, seed: int, processor):
        self.recipe, self.whole, self.seed, self.processor = stage, recipe, seed, processor
        self.family = get_family(recipe.family)
        self.config = model_config(recipe.family)
        self.prefixes = ("projector/",) if self.family.released else ("projector/", "decoder/")

    def _draw(self, step: int, stream: str):
        indices = self._indices(step)
        scenes = draw_scenes("normal", "train", self.seed, indices, self.whole.scenes)
        texts = language.captions(scenes, stream, self.seed, indices)
        rows = [[(language.CAPTION_PROMPT, self._spell(text), 1.0)] for text in texts]
        return indices, scenes, rows

    def _spell(self, text: str) -> str:
        return language.as_written(text) if self.family.released else text

    def _pack(self, rows, questions: int) -> packing.Turns:
        tokenizer = self.processor.tokenizer
        after = len(tokenizer.encode(self.family.after, add_special_tokens=False))
        caption, question = _CAPTION_TOKENS, _QUESTION_TOKENS
        if self.family.released:
            caption, question = _RELEASED_CAPTION_TOKENS, _RELEASED_QUESTION_TOKENS
        length = caption + after + questions * (question + after)
        return packing.pack_turns(tokenizer, self.family, rows, length)


class TextStage(_LanguageStage):
    """The decoder learns what captions look like, without images."""

    name = "text"

    def __init__(self, recipe: Recipe, seed: int, processor, prefix: packing.PackedPrefix):
        assert recipe.text is not None
        super().__init__(recipe, recipe.text, seed, processor)
        self.prefix = prefix.without_image()

    def data(self, step: int) -> Any:
        """Returns packed captions."""
        return self._pack(self._draw(step, "normal/train/text")[2], 0)

    def loss(self, graphdef, params, data):
        """Token loss of captions."""
        vlm = _model(graphdef, params)
        return packing.weighted_loss(vlm, packing.turn_hidden(vlm, self.prefix, data, None), data)


class LanguageStage(_LanguageStage):
    """The model learns to caption images and to answer questions about them.

    Of a released decoder the projector alone does: no gradient of the decoder's weights is made.
    """

    name = "language"

    def __init__(self, recipe: Recipe, seed: int, processor, prefix: packing.PackedPrefix):
        super().__init__(recipe, recipe.language, seed, processor)
        self.prefix = prefix

    def data(self, step: int) -> Any:
        """Returns (images, packed captions and questions)."""
        stream, pairs = "normal/train", self.whole.question_pairs
        indices, scenes, rows = self._draw(step, stream)
        weight = self.whole.question_weight / max(1, 2 * pairs)
        asked = language.questions(scenes, stream, self.seed, indices, pairs)
        for row, turns in zip(rows, asked):
            row += [(words, self._spell(answer), weight) for words, answer in turns]
        return pixels.cut_images(scenes.images, self.config)[0], self._pack(rows, 2 * pairs)

    def loss(self, graphdef, params, data):
        """Token loss of captions and answers."""
        images, turns = data
        vlm = _model(graphdef, params)
        features_bmd = packing.image_features(vlm, images)
        hidden_bud = packing.turn_hidden(vlm, self.prefix, turns, features_bmd)
        answered = 0
        if self.family.released:  # the caption and its end, and a word and its end a question
            answered = _RELEASED_CAPTION_TOKENS - _PROMPT_TOKENS + 1 + 4 * self.whole.question_pairs
        return packing.weighted_loss(vlm, hidden_bud, turns, answered)
