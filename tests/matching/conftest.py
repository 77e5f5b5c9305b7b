"""Tiny random folders of models that match texts and images."""

import json
import pathlib
from typing import Any

import pytest

from tests.tiny_configs import blip_preprocessor, clip_preprocessor
from tests.tiny_tokenizers import question_tokenizer
from tests.tiny_weights import write_weights

SIDE = 56
_SIZES = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
)  # fmt: skip
POSITIONS = 24


def make(folder: pathlib.Path, kind: str, end: int | None = None) -> pathlib.Path:
    """Writes a folder of a "clip", a "siglip" or a "blip"; of CLIP, texts end in `end`."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    tokenizer = question_tokenizer()
    words: dict[str, Any] = dict(
        _SIZES, max_position_embeddings=POSITIONS, vocab_size=len(tokenizer) + 1,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id if end is None else end,
    )  # fmt: skip
    if kind == "siglip":
        words["projection_size"] = 32
    if kind == "blip":
        words |= {"encoder_hidden_size": 32, "layer_norm_eps": 1e-12, "num_hidden_layers": 3}
    vision = dict(_SIZES, image_size=SIDE, patch_size=14)
    config = transformers.AutoConfig.for_model(
        kind, text_config=words, vision_config=vision, projection_dim=20
    )
    names = {"clip": "CLIPModel", "siglip": "SiglipModel", "blip": "BlipForImageTextRetrieval"}
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if kind == "clip":
        settings = clip_preprocessor(SIDE)
    else:
        settings = blip_preprocessor(SIDE)
        settings["image_processor_type"] = f"{kind.capitalize()}ImageProcessor"
    settings.pop("processor_class", None)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    write_weights(getattr(transformers, names[kind]), folder, "memory", "float32", 1, False, 0)
    return folder
