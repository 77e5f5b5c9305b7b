"""Tiny random checkpoints in the published layouts, made by the torch reference classes.

Every parameter is drawn at random, norms and biases too: fresh models have unit norms and zero
biases, behind which a swapped norm or a forgotten bias would hide. torch and transformers are
imported inside the functions, so that tests without a reference need neither.
"""

import json
import pathlib
import re
from typing import Any

from tests.tiny_configs import (
    CLIP_MEAN,
    CLIP_STD,
    LLAVA_VOCAB,
    VIT,
    blip_preprocessor,
    clip_preprocessor,
    internvl_config,
    llava_config,
    qwen3_config,
    qwen_config,
)
from tests.tiny_tokenizers import (
    INTERNVL_SPECIALS,
    LLAVA_TEMPLATE,
    QWEN3_VL_TEMPLATE,
    QWEN_SPECIALS,
    QWEN_TEMPLATE,
    instructblip_tokenizer,
    internvl_tokenizer,
    llava_tokenizer,
    question_tokenizer,
    qwen_tokenizer,
)
from tests.tiny_weights import save_shards, write_json, write_weights

PINPOINTS = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]

_LLAVAS = {
    "llava": "LlavaForConditionalGeneration",
    "llava_next": "LlavaNextForConditionalGeneration",
}


def llava(
    folder: str | pathlib.Path,
    *,
    naming: str = "hub",
    dtype: str = "float32",
    shards: int = 1,
    template: str | None = LLAVA_TEMPLATE,
    nested: bool = False,
    seed: int = 0,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    **root: Any,
) -> pathlib.Path:
    """Writes a LLaVA-1.5 folder: CLIP at 56 pixels with a class token, Llama with 4:2 heads.

    Args:
        folder: where to write; created.
        naming: "hub" (released names), "saved" (as transformers 5 saves) or "memory" (state dict).
        dtype: of the tensors on disk.
        shards: safetensors files; more than one come with an index.
        template: chat template; None writes none.
        nested: whether config.json has every field, as transformers 5 writes it, or is sparse.
        seed: of the parameters.
        text, vision, root: fields of the configs that replace the tiny ones, e.g.
            `text=dict(num_key_value_heads=4)`.

    Returns:
        The folder.
    """
    import transformers

    folder = pathlib.Path(folder)
    tokenizer = llava_tokenizer(template)
    config = llava_config(tokenizer, dtype, text or {}, vision or {}) | root
    size = config["vision_config"]["image_size"]
    tokenizer.save_pretrained(folder)
    write_json(folder, "config.json", config)
    write_json(
        folder,
        "generation_config.json",
        {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": tokenizer.pad_token_id},
    )
    kind = _LLAVAS[config["model_type"]]
    preprocessor = clip_preprocessor(size)
    if "image_grid_pinpoints" in config:
        preprocessor["image_processor_type"] = "LlavaNextImageProcessor"
        preprocessor["image_grid_pinpoints"] = config["image_grid_pinpoints"]
        config["image_seq_length"] = (size // config["vision_config"]["patch_size"]) ** 2
        write_json(folder, "config.json", config)
    write_json(folder, "preprocessor_config.json", preprocessor)
    write_json(
        folder,
        "processor_config.json",
        {
            "image_token": "<image>",
            "num_additional_image_tokens": 1,
            "patch_size": config["vision_config"]["patch_size"],
            "processor_class": kind.replace("ForConditionalGeneration", "Processor"),
            "vision_feature_select_strategy": config["vision_feature_select_strategy"],
        },
    )
    write_weights(getattr(transformers, kind), folder, naming, dtype, shards, nested, seed)
    return folder


def qwen2_5_vl(
    folder: str | pathlib.Path,
    *,
    naming: str = "hub",
    dtype: str = "float32",
    shards: int = 1,
    template: str | None = QWEN_TEMPLATE,
    nested: bool = False,
    seed: int = 0,
    tied: bool = False,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    **root: Any,
) -> pathlib.Path:
    """Writes a Qwen2.5-VL folder: 4:2 heads, m-rope [2, 3, 3], 2x2-unit windows, full layers 1, 3.

    Args: as `llava`; `tied` shares the head with the embedding table; `nested` also moves the text
        fields into `text_config`, where the released folders keep them at the root.

    Returns:
        The folder.
    """
    import transformers

    folder = pathlib.Path(folder)
    tokenizer = qwen_tokenizer(template)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in QWEN_SPECIALS}
    config = qwen_config(ids, dtype, tied, vision or {}) | (text or {}) | root
    tokenizer.save_pretrained(folder)
    write_json(folder, "config.json", config)
    write_json(
        folder,
        "generation_config.json",
        {
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]],
            "pad_token_id": ids["<|endoftext|>"],
        },
    )
    write_json(
        folder,
        "preprocessor_config.json",
        {
            "image_mean": CLIP_MEAN,
            "image_processor_type": "Qwen2VLImageProcessor",
            "image_std": CLIP_STD,
            "max_pixels": 28 * 28 * 64,
            "merge_size": 2,
            "min_pixels": 28 * 28 * 4,
            "patch_size": 14,
            "processor_class": "Qwen2_5_VLProcessor",
            "temporal_patch_size": 2,
        },
    )
    write_weights(
        transformers.Qwen2_5_VLForConditionalGeneration, folder, naming, dtype, shards, nested, seed
    )
    return folder


def qwen3_vl(
    folder: str | pathlib.Path,
    *,
    naming: str = "hub",
    dtype: str = "float32",
    shards: int = 1,
    nested: bool = False,
    seed: int = 0,
    tied: bool = False,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    **root: Any,
) -> pathlib.Path:
    """Writes a Qwen3-VL folder: 4:2 heads of 16, m-rope [2, 3, 3], two deep layers.

    Args: as `llava`; `tied` shares the head with the embedding table.
    """
    import transformers

    folder = pathlib.Path(folder)
    tokenizer = qwen_tokenizer(QWEN3_VL_TEMPLATE)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in QWEN_SPECIALS}
    config = qwen3_config(ids, dtype, tied, text or {}, vision or {}) | root
    tokenizer.save_pretrained(folder)
    write_json(folder, "config.json", config)
    stops = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    write_json(folder, "generation_config.json", {"eos_token_id": stops, "pad_token_id": stops[1]})
    preprocessor = {
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "image_std": [0.5, 0.5, 0.5],
        "merge_size": 2,
        "patch_size": 16,
        "processor_class": "Qwen3VLProcessor",
        "size": {"longest_edge": 32 * 32 * 64, "shortest_edge": 32 * 32 * 4},
        "temporal_patch_size": 2,
    }
    write_json(folder, "preprocessor_config.json", preprocessor)
    write_weights(
        transformers.Qwen3VLForConditionalGeneration, folder, naming, dtype, shards, nested, seed
    )
    return folder


def llava_next(folder: str | pathlib.Path, **options: Any) -> pathlib.Path:
    """Writes a LLaVA-NeXT folder: `llava` with tiles of 56 pixels and a newline; args as there."""
    return llava(folder, model_type="llava_next", image_grid_pinpoints=PINPOINTS, **options)


def internvl(
    folder: str | pathlib.Path,
    *,
    naming: str = "hub",
    dtype: str = "float32",
    shards: int = 1,
    nested: bool = False,
    seed: int = 0,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
    **root: Any,
) -> pathlib.Path:
    """Writes an InternVL-3.5 folder in transformers' layout: tiles of 56 pixels, Qwen3 with 4:2
    heads of 24.

    Args: as `llava`.
    """
    import transformers

    folder = pathlib.Path(folder)
    tokenizer = internvl_tokenizer()
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in INTERNVL_SPECIALS}
    config = internvl_config(ids, dtype, text or {}, vision or {}) | root
    tokenizer.save_pretrained(folder)
    write_json(folder, "config.json", config)
    stops = {"eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"]}
    write_json(folder, "generation_config.json", stops)
    preprocessor = {
        "crop_to_patches": False,  # as released: the processor switches it on at each call
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_processor_type": "GotOcr2ImageProcessorFast",
        "image_std": [0.229, 0.224, 0.225],
        "max_patches": 12,
        "min_patches": 1,
        "processor_class": "InternVLProcessor",
        "size": {"height": 56, "width": 56},
    }
    write_json(folder, "preprocessor_config.json", preprocessor)
    write_weights(
        transformers.InternVLForConditionalGeneration, folder, naming, dtype, shards, nested, seed
    )
    return folder


def internvl_chat(source: str | pathlib.Path, folder: str | pathlib.Path) -> pathlib.Path:
    """Writes the model of an `internvl` folder of hub names in its authors' layout."""
    import torch
    from safetensors.torch import load_file

    source, folder = pathlib.Path(source), pathlib.Path(folder)
    internvl_tokenizer().save_pretrained(folder)
    theirs = json.loads((source / "config.json").read_text())
    text, vision = theirs["text_config"], theirs["vision_config"]
    llm = {name: value for name, value in text.items() if name != "model_type"}
    config = {
        "architectures": ["InternVLChatModel"],
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": 56,
        "llm_config": llm | {"architectures": ["Qwen3ForCausalLM"]},
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "model_type": "internvl_chat",
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "use_thumbnail": True,
        "vision_config": {
            "hidden_size": vision["hidden_size"],
            "image_size": 56,
            "intermediate_size": vision["intermediate_size"],
            "layer_norm_eps": 1e-6,
            "model_type": "intern_vit_6b",
            "norm_type": "layer_norm",
            "num_attention_heads": vision["num_attention_heads"],
            "num_hidden_layers": vision["num_hidden_layers"],
            "patch_size": 14,
            "qk_normalization": False,
            "qkv_bias": True,
        },
    }
    write_json(folder, "config.json", config)
    image = {
        "crop_size": 56,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
        "size": 56,
    }
    write_json(folder, "preprocessor_config.json", image)
    rules = (
        (r"vision_tower\.embeddings\.cls_token", "vision_model.embeddings.class_embedding"),
        (r"patch_embeddings\.projection", "patch_embedding"),
        (r"position_embeddings", "position_embedding"),
        (r"vision_tower\.encoder\.layer\.", "vision_model.encoder.layers."),
        (r"vision_tower\.", "vision_model."),
        (r"attention\.projection_layer", "attn.proj"),
        (r"lambda_(\d)", r"ls\1"),
        (r"layernorm_before", "norm1"),
        (r"layernorm_after", "norm2"),
        (r"multi_modal_projector\.layer_norm", "mlp1.0"),
        (r"multi_modal_projector\.linear_1", "mlp1.1"),
        (r"multi_modal_projector\.linear_2", "mlp1.3"),
    )
    tensors = {}
    for name, value in load_file(source / "model.safetensors").items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        tensors[name] = value
    for name in [n for n in tensors if ".attention.q_proj." in n]:
        parts = [tensors.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        tensors[name.replace("attention.q_proj", "attn.qkv")] = torch.cat(parts)
    save_shards(folder, tensors, 1)
    return folder


def instructblip(
    folder: str | pathlib.Path,
    *,
    dtype: str = "float32",
    shards: int = 1,
    seed: int = 0,
    old: bool = False,
    **root: Any,
) -> pathlib.Path:
    """Writes an InstructBLIP folder: EVA at 56 pixels, a Q-Former of 4 layers, Llama.

    Args:
        folder, dtype, shards, seed: as `llava`.
        old: whether it is one of before transformers knew its image token.
        root: fields of config.json that replace the tiny ones.
    """
    import transformers

    folder = pathlib.Path(folder)
    tokenizer = instructblip_tokenizer(image=not old)
    tokenizer.save_pretrained(folder)
    question_tokenizer().save_pretrained(folder / "qformer_tokenizer")
    config = {
        "architectures": ["InstructBlipForConditionalGeneration"],
        "model_type": "instructblip",
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "num_query_tokens": 5,
        "torch_dtype": dtype,
        "text_config": {
            "model_type": "llama",
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_size": 64,
            "intermediate_size": 112,
            "max_position_embeddings": 512,
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
            "rms_norm_eps": 1e-6,
            "vocab_size": LLAVA_VOCAB,
        },
        "vision_config": {
            "model_type": "instructblip_vision_model",
            **VIT,
        },
        "qformer_config": {
            "model_type": "instructblip_qformer",
            "cross_attention_frequency": 2,
            "encoder_hidden_size": 48,
            "hidden_size": 32,
            "intermediate_size": 56,
            "max_position_embeddings": 64,
            "num_attention_heads": 2,
            "num_hidden_layers": 4,
            "vocab_size": 123,
        },
    }
    if old:
        del config["image_token_index"]
    write_json(folder, "config.json", config | root)
    write_json(folder, "preprocessor_config.json", blip_preprocessor(56))
    write_weights(
        transformers.InstructBlipForConditionalGeneration, folder, "memory", dtype, shards, False,
        seed,
    )  # fmt: skip
    return folder


def reference(folder: str | pathlib.Path, attention: str = "sdpa", dtype: str = "float32"):
    """Loads a folder with torch, on the CPU, in eval mode; `attention` is "sdpa" or "eager"."""
    import torch
    import transformers

    model = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation=attention
    )
    return model.eval()
