"""The published `config.json` facts of the released checkpoints, and their parameter counts.

As on the hub: Qwen2.5-VL with its text fields at the root (the 32B without what its transformers
version had as a default), LLaVA-1.5 likewise sparse. Rounded, the counts are those that the hub
shows; in full they are what the reference classes have.
"""

from typing import Any


def _qwen(
    *, width: int, ffn: int, layers: int, heads: int, kv_heads: int, vocab: int, tied: bool,
    vision_ffn: int,
) -> dict[str, Any]:  # fmt: skip
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "vision_token_id": 151654,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "hidden_act": "silu",
        "hidden_size": width,
        "initializer_range": 0.02,
        "intermediate_size": ffn,
        "max_position_embeddings": 128000,
        "max_window_layers": layers,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vision_config": {
            "depth": 32,
            "hidden_act": "silu",
            "hidden_size": 1280,
            "intermediate_size": vision_ffn,
            "num_heads": 16,
            "in_chans": 3,
            "out_hidden_size": width,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vocab_size": vocab,
    }


def _llava(**text: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": 32000,
        "model_type": "llava",
        "pad_token_id": 32001,
        "projector_hidden_act": "gelu",
        "text_config": {
            "architectures": ["LlamaForCausalLM"],
            "max_position_embeddings": 4096,
            "model_type": "llama",
            "rms_norm_eps": 1e-05,
            "torch_dtype": "float16",
            "vocab_size": 32064,
            **text,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "vision_config": {
            "hidden_size": 1024,
            "image_size": 336,
            "intermediate_size": 4096,
            "model_type": "clip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "patch_size": 14,
            "projection_dim": 768,
            "vocab_size": 32000,
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vocab_size": 32064,
    }


def _llava_next(**text: Any) -> dict[str, Any]:
    root = _llava(**text)
    vocab = root["text_config"]["vocab_size"]
    return root | {
        "architectures": ["LlavaNextForConditionalGeneration"],
        "model_type": "llava_next",
        "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
        "image_token_index": vocab - 64,
        "use_image_newline_parameter": True,
        "vocab_size": vocab,
    }


def _internvl(**text: Any) -> dict[str, Any]:
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "downsample_ratio": 0.5,
        "image_seq_length": 256,
        "image_token_id": 151671,
        "model_type": "internvl",
        "projector_hidden_act": "gelu",
        "text_config": {
            "head_dim": 128,
            "max_position_embeddings": 40960,
            "model_type": "qwen3",
            "num_key_value_heads": 8,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": False,
            "vocab_size": 151936,
            **text,
        },
        "tie_word_embeddings": False,
        "vision_config": {
            "attention_bias": True,
            "hidden_size": 1024,
            "image_size": [448, 448],
            "intermediate_size": 4096,
            "model_type": "internvl_vision",
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "patch_size": [14, 14],
        },
        "vision_feature_layer": -1,
    }


def _qwen3_vl(deep: list[int], depth: int, width: int, **text: Any) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "image_token_id": 151655,
        "model_type": "qwen3_vl",
        "text_config": {
            "attention_bias": False,
            "bos_token_id": 151643,
            "eos_token_id": 151645,
            "head_dim": 128,
            "hidden_act": "silu",
            "max_position_embeddings": 262144,
            "model_type": "qwen3_vl_text",
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-06,
            "rope_scaling": {
                "mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"
            },
            "rope_theta": 5000000,
            "vocab_size": 151936,
            **text,
        },
        "tie_word_embeddings": text.get("tie_word_embeddings", False),
        "video_token_id": 151656,
        "vision_config": {
            "deepstack_visual_indexes": deep,
            "depth": depth,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": width,
            "in_channels": 3,
            "intermediate_size": 4096 if width == 1024 else 4304,
            "model_type": "qwen3_vl",
            "num_heads": 16,
            "num_position_embeddings": 2304,
            "out_hidden_size": text["hidden_size"],
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        "vision_end_token_id": 151653,
        "vision_start_token_id": 151652,
    }  # fmt: skip


def _instructblip(**text: Any) -> dict[str, Any]:
    return {
        "architectures": ["InstructBlipForConditionalGeneration"],
        "image_token_index": text["vocab_size"] - 64,
        "model_type": "instructblip",
        "num_query_tokens": 32,
        "qformer_config": {"model_type": "instructblip_qformer", "vocab_size": 30523},
        "text_config": {
            "model_type": "llama",
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": False,
            **text,
        },
        "vision_config": {"model_type": "instructblip_vision_model"},
    }


def _deepseek_vl2(width: int, total: int, **language: Any) -> dict[str, Any]:
    return {
        "candidate_resolutions": [
            [384 * wide, 384 * high] for wide in range(1, 10) for high in range(1, 10 // wide + 1)
            if wide * high <= 9
        ],
        "global_view_pos": "head",
        "language_config": {
            "first_k_dense_replace": 1,
            "max_position_embeddings": 4096,
            "model_type": "deepseek_v2",
            "moe_layer_freq": 1,
            "n_shared_experts": 2,
            "num_experts_per_tok": 6,
            "q_lora_rank": None,
            "hidden_size": width,
            "vocab_size": total,
            **language,
        },
        "model_type": "deepseek_vl_v2",
        "projector_config": {"model_type": "mlp_projector", "n_embed": width},
        "tile_tag": "2D",
        "torch_dtype": "bfloat16",
        "vision_config": {
            "layers": 27, "mlp_ratio": 3.7362, "model_name": "siglip_so400m_patch14_384",
            "model_type": "vision", "patch_size": 14, "width": 1152,
        },
    }  # fmt: skip


CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen2.5-VL-3B": _qwen(
        width=2048, ffn=11008, layers=36, heads=16, kv_heads=2, vocab=151936, tied=True,
        vision_ffn=3420,
    ),
    "Qwen2.5-VL-7B": _qwen(
        width=3584, ffn=18944, layers=28, heads=28, kv_heads=4, vocab=152064, tied=False,
        vision_ffn=3420,
    ),
    "Qwen2.5-VL-32B": {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "eos_token_id": 151645,
        "hidden_act": "silu",
        "hidden_size": 5120,
        "image_token_id": 151655,
        "initializer_range": 0.02,
        "intermediate_size": 27648,
        "max_position_embeddings": 128000,
        "max_window_layers": 64,
        "model_type": "qwen2_5_vl",
        "num_attention_heads": 40,
        "num_hidden_layers": 64,
        "num_key_value_heads": 8,
        "pad_token_id": 151643,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_section": [16, 24, 24], "rope_type": "default", "type": "default"},
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "video_token_id": 151656,
        "vision_config": {
            "hidden_size": 1280,
            "in_chans": 3,
            "intermediate_size": 3456,
            "model_type": "qwen2_5_vl",
            "out_hidden_size": 5120,
            "spatial_patch_size": 14,
            "tokens_per_second": 2,
            "torch_dtype": "bfloat16",
        },
        "vision_end_token_id": 151653,
        "vision_start_token_id": 151652,
        "vision_token_id": 151654,
        "vocab_size": 152064,
    },
    "Qwen2.5-VL-72B": _qwen(
        width=8192, ffn=29568, layers=80, heads=64, kv_heads=8, vocab=152064, tied=False,
        vision_ffn=3456,
    ),
    "LLaVA-1.5-7B": _llava(),
    "LLaVA-1.5-13B": _llava(
        hidden_size=5120, intermediate_size=13824, num_attention_heads=40, num_hidden_layers=40,
        num_key_value_heads=40,
    ),
    "LLaVA-NeXT-7B-vicuna": _llava_next(),
    "LLaVA-NeXT-7B-mistral": _llava_next(
        model_type="mistral", intermediate_size=14336, num_key_value_heads=8, rope_theta=1e6,
        max_position_embeddings=32768, sliding_window=None,
    ),
    "LLaVA-NeXT-13B": _llava_next(
        hidden_size=5120, intermediate_size=13824, num_attention_heads=40, num_hidden_layers=40,
        num_key_value_heads=40,
    ),
    "LLaVA-NeXT-34B": _llava_next(
        hidden_size=7168, intermediate_size=20480, num_attention_heads=56, num_hidden_layers=60,
        num_key_value_heads=8, rope_theta=5e6, vocab_size=64064,
    ),
    "InstructBLIP-7B": _instructblip(vocab_size=32064),
    "InstructBLIP-13B": _instructblip(
        vocab_size=32064, hidden_size=5120, intermediate_size=13824, num_attention_heads=40,
        num_hidden_layers=40,
    ),
    "MiniGPT-4-7B": {"model_type": "minigpt4", "text_config": {"model_type": "llama"}},
    "Shikra-7B": {
        "model_type": "shikra",
        "mm_use_im_start_end": True,
        "mm_vision_select_layer": -2,
        "use_mm_proj": True,
        "vision_config": {
            "hidden_size": 1024, "image_size": 224, "intermediate_size": 4096,
            "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14,
        },
        "vocab_size": 32003,
    },
    "InternVL3.5-1B": _internvl(
        hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16
    ),
    "InternVL3.5-4B": _internvl(
        hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32
    ),
    "InternVL3.5-8B": _internvl(
        hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32
    ),
    "Qwen3-VL-2B": _qwen3_vl(
        [5, 11, 17], 24, 1024, hidden_size=2048, intermediate_size=6144, num_hidden_layers=28,
        num_attention_heads=16, tie_word_embeddings=True,
    ),
    "Qwen3-VL-4B": _qwen3_vl(
        [5, 11, 17], 24, 1024, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36,
        num_attention_heads=32, tie_word_embeddings=True,
    ),
    "Qwen3-VL-8B": _qwen3_vl(
        [8, 16, 24], 27, 1152, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36,
        num_attention_heads=32,
    ),
    "Qwen3-VL-32B": _qwen3_vl(
        [8, 16, 24], 27, 1152, hidden_size=5120, intermediate_size=25600, num_hidden_layers=64,
        num_attention_heads=64,
    ),
    "DeepSeek-VL2-Tiny": _deepseek_vl2(
        1280, 129280, use_mla=False, kv_lora_rank=None, qk_nope_head_dim=0, qk_rope_head_dim=0,
        v_head_dim=0, intermediate_size=6848, moe_intermediate_size=896, num_hidden_layers=12,
        num_attention_heads=10, num_key_value_heads=10, n_routed_experts=64, topk_method="greedy",
    ),
    "DeepSeek-VL2-Small": _deepseek_vl2(
        2048, 102400, intermediate_size=10944, moe_intermediate_size=1408, num_hidden_layers=27,
        num_attention_heads=16, num_key_value_heads=16, n_routed_experts=64, topk_method="greedy",
    ),
    "Kimi-VL-A3B": {
        "media_placeholder_token_id": 163605,
        "model_type": "kimi_vl",
        "text_config": {
            "eos_token_id": 163585, "first_k_dense_replace": 1, "hidden_act": "silu",
            "hidden_size": 2048, "intermediate_size": 11264, "kv_lora_rank": 512,
            "max_position_embeddings": 131072, "moe_intermediate_size": 1408, "moe_layer_freq": 1,
            "n_group": 1, "n_routed_experts": 64, "n_shared_experts": 2, "norm_topk_prob": True,
            "num_attention_heads": 16, "num_experts_per_tok": 6, "num_hidden_layers": 27,
            "num_key_value_heads": 16, "q_lora_rank": None, "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64, "rms_norm_eps": 1e-5, "rope_scaling": None,
            "rope_theta": 800000.0, "routed_scaling_factor": 2.446, "scoring_func": "sigmoid",
            "topk_group": 1, "topk_method": "noaux_tc", "v_head_dim": 128, "vocab_size": 163840,
        },
        "tie_word_embeddings": False,
        "vision_config": {"model_type": "moonvit"},
    },
    # Layers and heads are the defaults of the authors' class.
    "DeepSeek-VL2": _deepseek_vl2(
        2560, 129280, intermediate_size=12288, moe_intermediate_size=1536, n_routed_experts=72,
        topk_method="noaux_tc", scoring_func="sigmoid", norm_topk_prob=True, n_group=1,
        topk_group=1, routed_scaling_factor=2.0,
    ),
}  # fmt: skip

PARAMETERS = {
    "Qwen2.5-VL-3B": 3_754_622_976,
    "Qwen2.5-VL-7B": 8_292_166_656,
    "Qwen2.5-VL-32B": 33_452_718_336,
    "Qwen2.5-VL-72B": 73_410_777_344,
    "LLaVA-1.5-7B": 7_063_427_072,
    "LLaVA-1.5-13B": 13_351_494_656,
    "LLaVA-NeXT-7B-vicuna": 7_063_431_168,
    "LLaVA-NeXT-7B-mistral": 7_566_747_648,
    "LLaVA-NeXT-13B": 13_351_499_776,
    "LLaVA-NeXT-34B": 34_752_083_968,
    "InstructBLIP-7B": 7_913_726_720,
    "InstructBLIP-13B": 14_192_093_952,
    "MiniGPT-4-7B": 7_832_625_024,
    "Shikra-7B": 7_045_818_368,
    "InternVL3.5-1B": 1_060_897_792,
    "InternVL3.5-4B": 4_732_489_216,
    "InternVL3.5-8B": 8_528_318_464,
    "Qwen3-VL-2B": 2_127_532_032,
    "Qwen3-VL-4B": 4_437_815_808,
    "Qwen3-VL-8B": 8_767_123_696,
    "Qwen3-VL-32B": 33_357_390_064,
    "DeepSeek-VL2-Tiny": 3_355_263_088,
    "DeepSeek-VL2-Small": 16_133_111_152,
    "DeepSeek-VL2": 27_464_895_896,
    "Kimi-VL-A3B": 16_407_656_048,
}

PUBLISHED = {name: root for name, root in CONFIGS.items() if "architectures" in root}
"""Those whose class transformers has."""
