"""CLIP (arXiv 2103.00020)."""

import jax.numpy as jnp
from flax import nnx

from vlm_jax.config import VitConfig
from vlm_jax.families.base import Row
from vlm_jax.matching.dual import DualEncoder, Towers
from vlm_jax.matching.words import Words, WordsConfig, WordsFields
from vlm_jax.models.layers import linear, matrix
from vlm_jax.models.vit import Vit

_FIRST_CLIPS = 2  # an end that no text of theirs has


class _Clip(Towers):
    """An image is read at its class token, a text at its end."""

    def __init__(self, vision: VitConfig, words: WordsConfig, width: int, rngs: nnx.Rngs):
        self.config = words
        self.vision, self.words = Vit(vision, rngs), Words(words, rngs)
        self.image_ed = matrix(rngs, width, vision.hidden_size)
        self.text_ed = matrix(rngs, width, words.block.hidden_size)

    def image(self, patches_bgue):
        """See `Towers.image`."""
        return linear(self.vision.of_patches(patches_bgue)[0, 0, 0], self.image_ed[...])

    def texts(self, ids_bt):
        """See `Towers.texts`."""
        end = self.config.eos_token_id
        # Folders of the first CLIPs name another end than their tokenizer's, its last word.
        first = end == _FIRST_CLIPS
        end_b = jnp.argmax(ids_bt if first else (ids_bt == end).astype(jnp.int32), axis=1)
        x_btd = self.words(ids_bt)
        ends_bd = jnp.take_along_axis(x_btd, end_b[:, None, None], axis=1)[:, 0]
        return linear(ends_bd, self.text_ed[...])


class ClipMatcher(DualEncoder):
    """Cosines of CLIP."""

    towers, words, causal, kind = _Clip, WordsFields, True, "clip_vision_model"
    rows = (
        Row("visual_projection.weight", "image_ed", "e d -> e d"),
        Row("text_projection.weight", "text_ed", "e d -> e d"),
    )
