"""config.json and preprocessor_config.json of tiny checkpoints, by family."""

from typing import Any

QWEN_VOCAB = 288  # the tokenizer knows 275: released heads are wider than their tokenizers too
LLAVA_VOCAB = 384

VIT = {
    "hidden_size": 48,
    "image_size": 56,
    "intermediate_size": 80,
    "num_attention_heads": 3,
    "num_hidden_layers": 3,
    "patch_size": 14,
}
"""Sizes of a tower of squares, CLIP's or EVA's."""

CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]


def llava_config(tokenizer, dtype: str, text: dict, vision: dict) -> dict[str, Any]:
    """config.json of LLaVA-1.5."""
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "ignore_index": -100,
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "pad_token_id": tokenizer.pad_token_id,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "text_config": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 112,
            "max_position_embeddings": 2048,
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-5,
            "torch_dtype": dtype,
            "vocab_size": LLAVA_VOCAB,
            **text,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            **VIT,
            "projection_dim": 32,
            "vocab_size": 32000,
            **vision,
        },
    }


def clip_preprocessor(size: int) -> dict[str, Any]:
    """preprocessor_config.json of CLIP, for squares of a side."""
    return {
        "crop_size": {"height": size, "width": size},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": CLIP_MEAN,
        "image_processor_type": "CLIPImageProcessor",
        "image_std": CLIP_STD,
        "processor_class": "LlavaProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": size},
    }


def blip_preprocessor(size: int) -> dict[str, Any]:
    """preprocessor_config.json of BLIP, for squares of a side."""
    return {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": CLIP_MEAN,
        "image_processor_type": "BlipImageProcessor",
        "image_std": CLIP_STD,
        "processor_class": "InstructBlipProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": size, "width": size},
    }


def qwen_config(ids: dict[str, Any], dtype: str, tied: bool, vision: dict) -> dict[str, Any]:
    """config.json of Qwen2.5-VL, its text fields at the root."""
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "hidden_act": "silu",
        "hidden_size": 64,
        "image_token_id": ids["<|image_pad|>"],
        "initializer_range": 0.02,
        "intermediate_size": 112,
        "max_position_embeddings": 4096,
        "max_window_layers": 3,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "rope_theta": 1000000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": tied,
        "torch_dtype": dtype,
        "use_cache": True,
        "use_sliding_window": False,
        "video_token_id": ids["<|video_pad|>"],
        "vision_config": {
            "depth": 4,
            "fullatt_block_indexes": [1, 3],
            "hidden_act": "silu",
            "hidden_size": 32,
            "in_chans": 3,
            "intermediate_size": 52,
            "model_type": "qwen2_5_vl",
            "num_heads": 2,
            "out_hidden_size": 64,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 56,
            **vision,
        },
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "vocab_size": QWEN_VOCAB,
    }


def qwen3_config(
    ids: dict[str, Any], dtype: str, tied: bool, text: dict, vision: dict
) -> dict[str, Any]:
    """config.json of Qwen3-VL."""
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "image_token_id": ids["<|image_pad|>"],
        "text_config": {
            "attention_bias": False,
            "bos_token_id": ids["<|endoftext|>"],
            "dtype": dtype,
            "eos_token_id": ids["<|im_end|>"],
            "head_dim": 16,
            "hidden_act": "silu",
            "hidden_size": 48,
            "intermediate_size": 96,
            "max_position_embeddings": 4096,
            "model_type": "qwen3_vl_text",
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "rope_scaling": {
                "mrope_interleaved": True,
                "mrope_section": [2, 3, 3],
                "rope_type": "default",
            },
            "rope_theta": 5000000,
            "vocab_size": QWEN_VOCAB,
            **text,
        },
        "tie_word_embeddings": tied,
        "video_token_id": ids["<|video_pad|>"],
        "vision_config": {
            "deepstack_visual_indexes": [0, 2],
            "depth": 4,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 32,
            "in_channels": 3,
            "intermediate_size": 52,
            "model_type": "qwen3_vl",
            "num_heads": 2,
            "num_position_embeddings": 36,
            "out_hidden_size": 48,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            **vision,
        },
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
    }


def internvl_config(ids: dict[str, Any], dtype: str, text: dict, vision: dict) -> dict[str, Any]:
    """config.json of InternVL-3.5 in transformers' layout."""
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "downsample_ratio": 0.5,
        "image_seq_length": 4,
        "image_token_id": ids["<IMG_CONTEXT>"],
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "text_config": {
            "model_type": "qwen3",
            "attention_bias": False,
            "eos_token_id": ids["<|im_end|>"],
            "head_dim": 24,
            "hidden_size": 64,
            "intermediate_size": 112,
            "max_position_embeddings": 4096,
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1e6,
            "tie_word_embeddings": False,
            "vocab_size": QWEN_VOCAB,
            **text,
        },
        "vision_config": {
            "model_type": "internvl_vision",
            "attention_bias": True,
            "hidden_size": 48,
            "image_size": [56, 56],
            "intermediate_size": 80,
            "num_attention_heads": 3,
            "num_hidden_layers": 3,
            "patch_size": [14, 14],
            **vision,
        },
    }
