"""The architectures of the testbed's models, as published `config.json` files, and their chats.

A family is one entry here: its configuration, its special tokens and how a chat is laid out. All
else in this room reads these and knows no family.
"""

import dataclasses
from typing import Any

from vlm_jax.config import VLMConfig
from vlm_jax.errors import ConfigError
from vlm_jax.families import parse_config
from vlm_jax.testbed import smollm2
from vlm_jax.testbed.language import WORDS


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One published architecture at the testbed's size.

    Attributes:
        name: what recipes call it; `model_type` in `config.json`, but for a released decoder.
        image_size: side of the scenes in pixels.
        cell: side in pixels of an image token's part of the image, labelled in pre-training.
        specials: special tokens; ids 0, 1, ... in this order, before the words.
        unknown, pad, bos, eos, image: which of them is which; `bos` may be None.
        before, between, after: text of a chat before its images, after them, and after the user's
            turn.
        gap: what stands between `after` and the answer.
        system: what stands before and behind a system message; no training text has one.
        released: whether decoder and tokenizer are a released language model's, which stays as it
            is; texts are then spelt as people write them.
    """

    name: str
    image_size: int
    cell: int
    specials: tuple[str, ...]
    unknown: str
    pad: str
    bos: str | None
    eos: str
    image: str
    before: str
    between: str
    after: str
    gap: str
    system: tuple[str, str]
    released: bool = False

    @property
    def tokens(self) -> tuple[str, ...]:
        """The vocabulary of a model that is trained here, by id."""
        return self.specials + WORDS

    @property
    def ids(self) -> dict[str, int]:
        """The ids of the special tokens."""
        return {token: index for index, token in enumerate(self.specials)}


LLAVA = Architecture(
    name="llava",
    image_size=56,
    cell=8,
    specials=("<unk>", "<s>", "</s>", "<pad>", "<image>"),
    unknown="<unk>",
    pad="<pad>",
    bos="<s>",
    eos="</s>",
    image="<image>",
    before="USER: ",
    between="\n",
    after=" ASSISTANT:",
    gap=" ",
    system=("", " "),
)

QWEN2_5_VL = Architecture(
    name="qwen2_5_vl",
    image_size=56,
    cell=8,
    specials=(
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
        "<unk>",
    ),
    unknown="<unk>",
    pad="<|endoftext|>",
    bos=None,
    eos="<|im_end|>",
    image="<|image_pad|>",
    before="<|im_start|>user\n<|vision_start|>",
    between="<|vision_end|>",
    after="<|im_end|>\n<|im_start|>assistant\n",
    gap="",
    system=("<|im_start|>system\n", "<|im_end|>\n"),
)

# A LLaVA whose decoder is a released model. `<file_sep>`, which no text of it has, is renamed to be
# the placeholder of images, so that the embedding table keeps its size.
SMOLLM2 = Architecture(
    name="smollm2",
    image_size=56,
    cell=8,
    specials=(
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<repo_name>",
        "<reponame>",
        "<image>",
    ),
    unknown="<|endoftext|>",
    pad="<|endoftext|>",
    bos=None,
    eos="<|im_end|>",
    image="<image>",
    before="<|im_start|>user\n",
    between="\n",
    after="<|im_end|>\n<|im_start|>assistant\n",
    gap="",
    system=("<|im_start|>system\n", "<|im_end|>\n"),
    released=True,
)

FAMILIES = {family.name: family for family in (LLAVA, QWEN2_5_VL, SMOLLM2)}


def get_family(name: str) -> Architecture:
    """Looks a family up by its `model_type`.

    Raises:
        ConfigError: there is no testbed of this family.
    """
    if name not in FAMILIES:
        raise ConfigError(f"there is no testbed of family {name!r}: choose {', '.join(FAMILIES)}.")
    return FAMILIES[name]


def _llava_config(family: Architecture) -> dict[str, Any]:
    ids = family.ids
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "dtype": "float16",
        "image_token_index": ids[family.image],
        "image_seq_length": 49,
        "pad_token_id": ids[family.pad],
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": False,
        # The tower is trained to label its last layer, so that is the layer that is read.
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "text_config": {
            "model_type": "llama",
            "vocab_size": len(family.tokens),
            "hidden_size": 96,
            "intermediate_size": 256,
            "num_hidden_layers": 6,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 16,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 256,
            "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": None if family.bos is None else ids[family.bos],
            "eos_token_id": ids[family.eos],
            "pad_token_id": ids[family.pad],
            "tie_word_embeddings": False,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_channels": 3,
            "image_size": family.image_size,
            "patch_size": family.cell,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
            "projection_dim": 128,
        },
    }


def _qwen2_5_vl_config(family: Architecture) -> dict[str, Any]:
    ids = family.ids
    merge = 2
    patch = family.cell // merge
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "dtype": "float16",
        "image_token_id": ids[family.image],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "eos_token_id": ids[family.eos],
        "pad_token_id": ids[family.pad],
        "tie_word_embeddings": True,
        "text_config": {
            "model_type": "qwen2_5_vl_text",
            "vocab_size": len(family.tokens),
            "hidden_size": 128,
            "intermediate_size": 192,
            "num_hidden_layers": 6,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 256,
            "use_sliding_window": False,
            "rope_parameters": {
                "rope_theta": 10000.0,
                "rope_type": "default",
                "mrope_section": [2, 3, 3],
            },
            "bos_token_id": None,
            "eos_token_id": ids[family.eos],
            "pad_token_id": ids[family.pad],
            "tie_word_embeddings": True,
        },
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": 4,
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_heads": 2,
            "in_channels": 3,
            "hidden_act": "silu",
            "patch_size": patch,
            "spatial_merge_size": merge,
            "temporal_patch_size": 2,
            # Windows of 4 x 4 image tokens, so that the last ones of 7 x 7 are cut short.
            "window_size": 4 * family.cell,
            "fullatt_block_indexes": [1, 3],
            "out_hidden_size": 128,
            "tokens_per_second": 2,
        },
    }


def _smollm2_config(family: Architecture) -> dict[str, Any]:
    config = _llava_config(family)
    decoder = {
        "vocab_size": smollm2.VOCABULARY,
        "hidden_size": smollm2.WIDTH,
        "intermediate_size": smollm2.FFN,
        "num_hidden_layers": smollm2.NUM_LAYERS,
        "num_attention_heads": smollm2.HEADS,
        "num_key_value_heads": smollm2.KEY_HEADS,
        "head_dim": smollm2.HEAD_DIM,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
        "tie_word_embeddings": True,
    }
    return config | {"tie_word_embeddings": True, "text_config": config["text_config"] | decoder}


_CONFIGS = {"llava": _llava_config, "qwen2_5_vl": _qwen2_5_vl_config, "smollm2": _smollm2_config}


def hf_config(family: Architecture) -> dict[str, Any]:
    """Returns the family's `config.json` as a parsed object."""
    return _CONFIGS[family.name](family)


def model_config(family: str = "llava") -> VLMConfig:
    """Returns the architecture of the family's testbed model."""
    return parse_config(hf_config(get_family(family)), f"testbed {family}")
