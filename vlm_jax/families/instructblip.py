"""InstructBLIP with a Vicuna decoder: EVA, a Q-Former that reads the question, one linear map."""

from collections.abc import Mapping
from typing import Any

import msgspec

from vlm_jax.config import VLMConfig
from vlm_jax.families.base import Row
from vlm_jax.families.decoders import decoder, decoder_rows, read_text
from vlm_jax.families.fields import Count, Ids, Index, Object, ids, read
from vlm_jax.families.q_former import (
    QFormerFamily,
    attention_rows,
    eva,
    mlp_rows,
    q_former,
    reads_image,
)
from vlm_jax.families.vit import vit_of


class _Root(msgspec.Struct, kw_only=True):
    text_config: Object = {}
    vision_config: Object = {}
    qformer_config: Object = {}
    num_query_tokens: Count = 32
    image_token_id: Index | None = None
    image_token_index: Index | None = None  # older folders have none
    eos_token_id: Ids = None


_TEXT = "language_model.model."
_BLOCK, _OURS = "vision_model.encoder.layers.{i}.", "vision/layers/{i}/"
_LAYER, _FORMER = "qformer.encoder.layer.{i}.", "qformer/layers/{i}/"


def _qkv_bias(config: VLMConfig, layer: int) -> bool:
    return bool(vit_of(config).biased)


class InstructBlip(QFormerFamily):
    """InstructBLIP. Its prompt is the bare question behind the image's tokens.

    The image's tokens come before the beginning of sequence, so that nothing is system. They are
    outputs of a Q-Former that read the question: they have no place in the image, and features
    belong to an image and a question together.
    """

    name = "instructblip"
    model_types = ("instructblip",)
    line = "InstructBLIP: EVA, a Q-Former that reads the question, a Vicuna decoder"
    image_token = "<image>"
    question_tokenizer = "qformer_tokenizer"
    most_images = 1
    rows = (
        Row("vision_model.embeddings.class_embedding", "vision/class_d", "a b d -> (a b d)"),
        Row(
            "vision_model.embeddings.patch_embedding.weight",
            "vision/patch_de",
            "d c y x -> d (c y x)",
        ),
        Row("vision_model.embeddings.patch_embedding.bias", "vision/patch_bias_d", "d -> d"),
        Row(
            "vision_model.embeddings.position_embedding", "vision/positions_pd", "a p d -> (a p) d"
        ),
        Row(_BLOCK + "self_attn.qkv.weight", _OURS + "wqkv_d3nh", "(s n h) d -> d s n h"),
        Row(_BLOCK + "self_attn.qkv.bias", _OURS + "bqkv_3nh", "(s n h) -> s n h", when=_qkv_bias),
        Row(_BLOCK + "self_attn.projection.weight", _OURS + "wo_nhd", "d (n h) -> n h d"),
        Row(_BLOCK + "self_attn.projection.bias", _OURS + "bo_d", "d -> d"),
        Row(_BLOCK + "layer_norm1.weight", _OURS + "norm1_scale_d", "d -> d"),
        Row(_BLOCK + "layer_norm1.bias", _OURS + "norm1_bias_d", "d -> d"),
        Row(_BLOCK + "layer_norm2.weight", _OURS + "norm2_scale_d", "d -> d"),
        Row(_BLOCK + "layer_norm2.bias", _OURS + "norm2_bias_d", "d -> d"),
        Row(_BLOCK + "mlp.fc1.weight", _OURS + "w_up_fd", "f d -> f d"),
        Row(_BLOCK + "mlp.fc1.bias", _OURS + "b_up_f", "f -> f"),
        Row(_BLOCK + "mlp.fc2.weight", _OURS + "w_down_df", "d f -> d f"),
        Row(_BLOCK + "mlp.fc2.bias", _OURS + "b_down_d", "d -> d"),
        Row("vision_model.post_layernorm.weight", "vision/post_norm_scale_d", "d -> d"),
        Row("vision_model.post_layernorm.bias", "vision/post_norm_bias_d", "d -> d"),
        Row("query_tokens", "qformer/queries_pd", "a q d -> (a q) d"),
        Row("qformer.embeddings.word_embeddings.weight", "qformer/embed_vd", "v d -> v d"),
        Row("qformer.embeddings.position_embeddings.weight", "qformer/positions_pd", "p d -> p d"),
        Row("qformer.embeddings.layernorm.weight", "qformer/norm_scale_d", "d -> d"),
        Row("qformer.embeddings.layernorm.bias", "qformer/norm_bias_d", "d -> d"),
        *attention_rows(_LAYER + "attention.", _FORMER + "attention/", "attention.", "d"),
        *attention_rows(
            _LAYER + "crossattention.", _FORMER + "cross/", "attention.", "e", reads_image
        ),
        *mlp_rows(_LAYER + "intermediate.", _LAYER + "output.", _FORMER + "word_mlp/"),
        *mlp_rows(_LAYER + "intermediate_query.", _LAYER + "output_query.", _FORMER + "query_mlp/"),
        Row("language_projection.weight", "projector/w_de", "d e -> d e"),
        Row("language_projection.bias", "projector/b_d", "d -> d"),
        *decoder_rows(_TEXT, "language_model.lm_head.weight"),
    )
    buffers = (r"\.rotary_emb\.inv_freq$", r"\.embeddings\.position_ids$")

    def read(self, root: Mapping[str, Any], where: str) -> VLMConfig:
        """Reads `config.json`; see `Family.read`."""
        fields = read(root, _Root, where)
        text = read_text(fields.text_config, f"{where}: text_config", default="opt")
        vision = eva(fields.vision_config, f"{where}: vision_config")
        image = fields.image_token_id
        return VLMConfig(
            family=self.name,
            decoder=decoder(text, f"{where}: text_config", text.tie_word_embeddings),
            vision=vision,
            qformer=q_former(
                fields.qformer_config,
                fields.num_query_tokens,
                vision,
                f"{where}: qformer_config",
                reads_text=True,
            ),
            image_token_id=fields.image_token_index if image is None else image,
            eos_ids=ids(fields.eos_token_id if "eos_token_id" in root else text.eos_token_id),
        )

    def template(self, found):
        """Returns the folder's template, or one that writes the bare words: they ship none."""
        return found or (
            "{% for message in messages %}{{ message['content'] }}"
            "{% if not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}"
        )

    def placeholder(self, config, tokenizer):
        """Returns `<image>` with the id that config.json or the tokenizer says.

        Older folders say none; then the pad stands for it, whose embedding nothing reads.
        """
        known = config.image_token_id
        if known is None:
            known = tokenizer.get_vocab().get(self.image_token, tokenizer.pad_token_id)
        return self.image_token, known or 0

    def encode(self, tokenizer, text, image, image_id):
        """Returns the ids of a text behind those of its images: image, BOS, words."""
        bare = text.replace(image, "")
        return [image_id] * text.count(image) + super().encode(tokenizer, bare, image, image_id)

    def image_text(self, config, image, token):
        """Returns the placeholder."""
        return image


FAMILY = InstructBlip()
