"""Shikra: CLIP, one linear map, a Llama decoder.

It was released as a delta over LLaMA-7B, its tower apart: `scripts/shikra_folder.py` adds the two
and makes one folder of safetensors.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from vlm_jax.config import VLMConfig
from vlm_jax.errors import CheckpointError, ConfigError
from vlm_jax.families.base import Row, encode_pieces
from vlm_jax.families.decoders import Llama, decoder, decoder_letters, decoder_rows
from vlm_jax.families.fields import Layer, Object, ids, one_of, read
from vlm_jax.families.llava import Llava
from vlm_jax.families.vit import read_tower, vit_letters, vit_of, vit_rows

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_TOWER = "vision_tower.vision_model."


class _Root(msgspec.Struct, kw_only=True):
    vision_config: Object | None = None
    mm_vision_select_layer: Layer = -2
    use_mm_proj: bool = True
    mm_use_im_start_end: bool = True


class Shikra(Llava):
    """Shikra-7B, merged. Boxes and points in its words are of the image padded to a square."""

    name = "shikra"
    model_types = ("shikra",)
    line = "Shikra: CLIP, one linear map, a Llama decoder"
    image_token = "<image>"
    most_images = 1
    spellings = ((r"^(model\.)?vision_tower\.(vision_model\.)?", _TOWER),)
    saved = ()  # transformers has no model of it
    rows = (
        *vit_rows(_TOWER),
        Row("model.mm_projector.weight", "projector/w_de", "d e -> d e"),
        Row("model.mm_projector.bias", "projector/b_d", "d -> d"),
        *decoder_rows("model.", "lm_head.weight"),
    )

    def read(self, root: Mapping[str, Any], where: str) -> VLMConfig:
        """Reads `config.json`; see `Family.read`."""
        fields = read(root, _Root, where)
        one_of(fields.use_mm_proj, (True,), "use_mm_proj", where)
        one_of(fields.mm_use_im_start_end, (True,), "mm_use_im_start_end", where)
        if fields.vision_config is None:
            raise ConfigError(
                f"{where} has no vision_config: the folder is Shikra's delta as released, or lacks "
                "its tower; merge them with scripts/shikra_folder.py of the repository."
            )
        text = read(root, Llama, where)
        there = f"{where}: vision_config"
        vision = read_tower(
            fields.vision_config, there, feature_layers=(fields.mm_vision_select_layer,)
        )
        one_of(vision.class_token, (True,), "a class token", there)
        return VLMConfig(
            family=self.name,
            decoder=decoder(text, where, text.tie_word_embeddings),
            vision=vision,
            image_token_id=None,
            eos_ids=ids(text.eos_token_id),
        )

    def connector(self, config, rngs):
        """Returns one linear map."""
        from vlm_jax.models.projector import LinearProjector

        return LinearProjector(rngs, vit_of(config).hidden_size, config.decoder.hidden_size)

    def image_grid(self, config):
        """Returns rows and columns of the patches."""
        side = vit_of(config).image_size // vit_of(config).patch_size
        return side, side

    def cutter(self, config, image_processor):
        """Returns a cutter of images that are made square with white."""
        from vlm_jax.processing.cutters import Square

        return Square(vit_of(config), image_processor, background=(255, 255, 255))

    def template(self, found):
        """Returns the folder's template, or the authors' (`vicuna_v1.1`)."""
        return found or (
            "{% if messages[0]['role'] != 'system' %}" + SYSTEM + "{% endif %}"
            "{% for message in messages %}"
            "{% if message['role'] == 'user' %}"
            "{% if loop.first or loop.previtem['role'] == 'system' %} {% endif %}"
            "{{ 'USER: ' + message['content'] }}"
            "{% elif message['role'] == 'assistant' %}{{ ' ASSISTANT: ' + message['content'] }}"
            "{{ eos_token }}{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
        )

    def placeholder(self, config, tokenizer):
        """Returns `<image>` and the id of a patch.

        Raises:
            CheckpointError: the tokenizer lacks Shikra's tokens.
        """
        known = tokenizer.get_vocab()
        lacks = [t for t in ("<im_patch>", "<im_start>", "<im_end>") if t not in known]
        if lacks:
            raise CheckpointError(
                f"The tokenizer has no {lacks[0]}, with which Shikra marks an image; take the "
                "tokenizer of the shikra-7b-delta-v1 folder."
            )
        return self.image_token, known["<im_patch>"]

    def encode(self, tokenizer, text, image, image_id):
        """Returns the ids of a text, pieces between images encoded alone and without blanks."""
        start, end = tokenizer.convert_tokens_to_ids(["<im_start>", "<im_end>"])
        pieces = image.join(piece.strip() for piece in text.split(image))
        between = [start, image_id, end]
        return encode_pieces(tokenizer, pieces, image, between, tokenizer.bos_token)

    def image_text(self, config, image, token):
        """Returns the placeholder and a blank."""
        return image + " "

    def letters(self, config):
        """Returns letter lengths; see `Family.letters`."""
        vision, width = vit_of(config), config.decoder.hidden_size
        return {
            "decoder": decoder_letters(config),
            "vision": vit_letters(vision),
            "projector": dict(e=vision.hidden_size, d=width),
        }


FAMILY = Shikra()
