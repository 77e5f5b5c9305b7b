"""InternVL 3.5 in its authors' layout (OpenGVLab): other names and words, the same network."""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from vlm_jax.config import DynamicTilesConfig, VLMConfig
from vlm_jax.errors import ConfigError
from vlm_jax.families.base import Row
from vlm_jax.families.decoders import decoder, decoder_rows, read_text
from vlm_jax.families.fields import Count, Depth, Epsilon, Ids, Object, ids, one_of, read
from vlm_jax.families.internvl import (
    InternVL,
    Vision,
    intern_vit,
    projector_rows,
    tower_rows,
)
from vlm_jax.families.vit import vit_of

Tiles = Annotated[int, msgspec.Meta(ge=1, le=40)]


# The defaults of the authors' class are another tower's (InternViT-6B): nothing is guessed.
class _Vision(msgspec.Struct, kw_only=True):
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Depth
    num_attention_heads: Count
    image_size: Count
    patch_size: Count = 14
    num_channels: Count = 3
    hidden_act: str = "gelu"
    layer_norm_eps: Epsilon = 1e-6
    norm_type: str
    qkv_bias: bool
    qk_normalization: bool


class _Root(msgspec.Struct, kw_only=True):
    llm_config: Object
    vision_config: Object
    downsample_ratio: float
    ps_version: str
    select_layer: int = -1
    pad2square: bool = False
    dynamic_image_size: bool = True
    min_dynamic_patch: Tiles = 1
    max_dynamic_patch: Tiles
    use_thumbnail: bool
    eos_token_id: Ids = None


_DECODERS = {"Qwen3ForCausalLM": "qwen3", "Qwen2ForCausalLM": "qwen2"}
_TOWER = "vision_model."
_LAYER = "vision_model.encoder.layers.{i}."
_OURS = "vision/layers/{i}/"

SYSTEM = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位"  # noqa: RUF001
    "联合开发的多模态大语言模型。"
)
# The authors' code writes turns itself (`internvl2_5`) and counts images if there are several.
TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    f"<|im_start|>system\n{SYSTEM}<|im_end|>\n{{% endif %}}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% set images = message['content'] | selectattr('type', 'equalto', 'image') | list %}"
    "{% for item in images %}"
    "{% if images | length > 1 %}{{ 'Image-' ~ loop.index ~ ': ' }}{% endif %}"
    "{{ '<IMG_CONTEXT>\n' }}{% endfor %}"
    "{% for item in message['content'] if item['type'] == 'text' %}{{ item['text'] }}{% endfor %}"
    "{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _qkv_bias(config: VLMConfig, layer: int) -> bool:
    return bool(vit_of(config).biased)


class InternVLChat(InternVL):
    """InternVL 3.5 in the original layout, whose code is never run: all it does is here."""

    name = "internvl_chat"
    model_types = ("internvl_chat",)
    line = "InternVL 3.5 in the authors' layout (OpenGVLab)"
    spellings = ()
    rows = (
        *tower_rows(
            _TOWER,
            {
                "class": "class_embedding",
                "patch": "patch_embedding",
                "positions": "position_embedding",
                "layer": "encoder.layers",
                "out": "attn.proj",
                "scale1": "ls1",
                "scale2": "ls2",
                "norm1": "norm1",
                "norm2": "norm2",
            },
            (
                Row(_LAYER + "attn.qkv.weight", _OURS + "wqkv_d3nh", "(s n h) d -> d s n h"),
                Row(
                    _LAYER + "attn.qkv.bias", _OURS + "bqkv_3nh", "(s n h) -> s n h", when=_qkv_bias
                ),
            ),
        ),
        *projector_rows("mlp1.0", "mlp1.1", "mlp1.3"),
        *decoder_rows("language_model.model.", "language_model.lm_head.weight"),
    )

    def read(self, root: Mapping[str, Any], where: str) -> VLMConfig:
        """Reads `config.json`; see `Family.read`."""
        fields = read(root, _Root, where)
        one_of(fields.downsample_ratio, (0.5,), "downsample_ratio", where)
        one_of(fields.ps_version, ("v2",), "ps_version", where)
        one_of(fields.select_layer, (-1,), "select_layer", where)
        one_of(fields.pad2square, (False,), "pad2square", where)
        if fields.min_dynamic_patch > fields.max_dynamic_patch:
            raise ConfigError(
                f"{where}: min_dynamic_patch {fields.min_dynamic_patch} is more than "
                f"max_dynamic_patch {fields.max_dynamic_patch}."
            )
        llm = fields.llm_config
        classes = llm.get("architectures")
        named = str(classes[0]) if isinstance(classes, list) and classes else "nameless"
        kind = llm.get("model_type", _DECODERS.get(named, named))
        text = read_text(llm | {"model_type": kind}, f"{where}: llm_config")
        there = f"{where}: vision_config"
        theirs = read(fields.vision_config, _Vision, there)
        one_of(theirs.qk_normalization, (False,), "qk_normalization", there)
        vision = Vision(
            hidden_size=theirs.hidden_size,
            intermediate_size=theirs.intermediate_size,
            num_hidden_layers=theirs.num_hidden_layers,
            num_attention_heads=theirs.num_attention_heads,
            num_channels=theirs.num_channels,
            image_size=theirs.image_size,
            patch_size=theirs.patch_size,
            hidden_act=theirs.hidden_act,
            layer_norm_eps=theirs.layer_norm_eps,
            norm_type=theirs.norm_type,
            attention_bias=theirs.qkv_bias,
        )
        single = not fields.dynamic_image_size
        return VLMConfig(
            family=self.name,
            decoder=decoder(text, f"{where}: llm_config", text.tie_word_embeddings),
            vision=intern_vit(vision, there, fused_qkv=True),
            image_token_id=None,  # it differs between decoders: the tokenizer knows it by its text
            eos_ids=ids(fields.eos_token_id if "eos_token_id" in root else text.eos_token_id),
            tiles=DynamicTilesConfig(
                1 if single else fields.min_dynamic_patch,
                1 if single else fields.max_dynamic_patch,
                fields.use_thumbnail,
            ),
        )

    def template(self, found):
        """Returns the authors' own: their folders ship the decoder's, which thinks and sees not."""
        return TEMPLATE


FAMILY = InternVLChat()
