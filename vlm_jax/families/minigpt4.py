"""MiniGPT-4 with Vicuna: EVA, a Q-Former that reads images alone, one linear map.

It was released as parts, all of them pickles: `scripts/minigpt4_folder.py` makes one folder of
safetensors of them, with the names of the original model and a config.json of ours.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from vlm_jax.config import VLMConfig
from vlm_jax.families.base import Row, encode_pieces
from vlm_jax.families.decoders import decoder, decoder_rows, read_text
from vlm_jax.families.fields import Count, Epsilon, Ids, Object, ids, read
from vlm_jax.families.q_former import (
    QFormerFamily,
    attention_rows,
    eva,
    mlp_rows,
    q_former,
    reads_image,
)
from vlm_jax.families.vit import timm_rows


class _Root(msgspec.Struct, kw_only=True):
    text_config: Object = {}
    vision_config: Object = {}
    qformer_config: Object = {}
    num_query_tokens: Count = 32
    # Of the norm behind the tower, which is torch's default and not the tower's.
    vision_norm_eps: Epsilon = 1e-5
    eos_token_id: Ids = None


_BLOCK, _OURS = "visual_encoder.blocks.{i}.", "vision/layers/{i}/"
_LAYER, _FORMER = "Qformer.bert.encoder.layer.{i}.", "qformer/layers/{i}/"


class MiniGPT4(QFormerFamily):
    """MiniGPT-4 with Vicuna-7B v0 or 13B.

    The placeholder of an image is no token: its id is that of unknown words, which a tokenizer
    with bytes never gives. The marks around it are text (the first of them system).
    """

    name = "minigpt4"
    model_types = ("minigpt4",)
    line = "MiniGPT-4: EVA, a Q-Former, one linear map, a Vicuna decoder"
    image_token = "<ImageHere>"
    most_images = 1
    stops = ("###",)
    rows = (
        Row("visual_encoder.cls_token", "vision/class_d", "a b d -> (a b d)"),
        Row("visual_encoder.pos_embed", "vision/positions_pd", "a p d -> (a p) d"),
        Row("visual_encoder.patch_embed.proj.weight", "vision/patch_de", "d c y x -> d (c y x)"),
        Row("visual_encoder.patch_embed.proj.bias", "vision/patch_bias_d", "d -> d"),
        *timm_rows(
            _BLOCK,
            _OURS,
            Row(_BLOCK + "attn.qkv.weight", _OURS + "wqkv_d3nh", "(s n h) d -> d s n h"),
            Row(_BLOCK + "attn.q_bias", _OURS + "bq_nh", "(n h) -> n h"),
            Row(_BLOCK + "attn.v_bias", _OURS + "bv_nh", "(n h) -> n h"),
        ),
        Row("ln_vision.weight", "vision/post_norm_scale_d", "d -> d"),
        Row("ln_vision.bias", "vision/post_norm_bias_d", "d -> d"),
        Row("query_tokens", "qformer/queries_pd", "a q d -> (a q) d"),
        Row("Qformer.bert.embeddings.LayerNorm.weight", "qformer/norm_scale_d", "d -> d"),
        Row("Qformer.bert.embeddings.LayerNorm.bias", "qformer/norm_bias_d", "d -> d"),
        *attention_rows(_LAYER + "attention.", _FORMER + "attention/", "self.", "d"),
        *attention_rows(_LAYER + "crossattention.", _FORMER + "cross/", "self.", "e", reads_image),
        *mlp_rows(_LAYER + "intermediate_query.", _LAYER + "output_query.", _FORMER + "query_mlp/"),
        Row("llama_proj.weight", "projector/w_de", "d e -> d e"),
        Row("llama_proj.bias", "projector/b_d", "d -> d"),
        *decoder_rows("llama_model.model.", "llama_model.lm_head.weight"),
    )
    buffers = (r"\.rotary_emb\.inv_freq$", r"\.embeddings\.position_ids$")

    def read(self, root: Mapping[str, Any], where: str) -> VLMConfig:
        """Reads `config.json`; see `Family.read`."""
        fields = read(root, _Root, where)
        text = read_text(fields.text_config, f"{where}: text_config")
        vision = eva(
            fields.vision_config,
            f"{where}: vision_config",
            biased="qv",
            post_norm_eps=fields.vision_norm_eps,
        )
        former = q_former(
            fields.qformer_config,
            fields.num_query_tokens,
            vision,
            f"{where}: qformer_config",
            reads_text=False,
        )
        return VLMConfig(
            family=self.name,
            decoder=decoder(text, f"{where}: text_config", text.tie_word_embeddings),
            vision=vision,
            qformer=former,
            image_token_id=None,
            eos_ids=ids(fields.eos_token_id if "eos_token_id" in root else text.eos_token_id),
        )

    def template(self, found):
        """Returns the folder's template, or the authors' turns."""
        return found or (
            "{% for message in messages %}"
            "{% if message['role'] == 'user' %}{{ '###Human: ' + message['content'] + ' ' }}"
            "{% elif message['role'] == 'assistant' %}"
            "{{ '###Assistant: ' + message['content'] + ' ' }}"
            "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}{{ '###Assistant:' }}{% endif %}"
        )

    def placeholder(self, config, tokenizer):
        """Returns `<ImageHere>` and the id of unknown words."""
        return self.image_token, tokenizer.unk_token_id or 0

    def encode(self, tokenizer, text, image, image_id):
        """Returns the ids of a text, what stands around an image encoded piece by piece."""
        return encode_pieces(tokenizer, text, image, [image_id], tokenizer.bos_token)

    def image_text(self, config, image, token):
        """Returns the placeholder between the marks of an image, and a blank."""
        return f"<Img>{image}</Img> "


FAMILY = MiniGPT4()
