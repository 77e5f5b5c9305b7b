"""The tiny checkpoints are what they claim: loadable by the reference, random, image-aware."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests import tiny
from tests.tiny_weights import NAMINGS

MAKERS = {"llava": tiny.llava, "qwen2_5_vl": tiny.qwen2_5_vl}


def _image_inputs(family: str, model) -> dict:
    generator = torch.Generator().manual_seed(1)
    if family == "llava":
        ids = torch.tensor([[1, 300, *[model.config.image_token_index] * 16, 301, 302]])
        pixels = torch.randn(1, 3, 56, 56, generator=generator)
        return dict(input_ids=ids, pixel_values=pixels)
    ids = torch.tensor([[263, 270, *[model.config.image_token_id] * 6, 271, 65, 66]])
    kinds = (ids == model.config.image_token_id).int()
    pixels = torch.randn(24, 1176, generator=generator)
    grid = torch.tensor([[1, 4, 6]])
    return dict(input_ids=ids, pixel_values=pixels, image_grid_thw=grid, mm_token_type_ids=kinds)


@pytest.mark.parametrize("family", MAKERS)
def test_the_image_reaches_the_logits(family, tmp_path):
    model = tiny.reference(MAKERS[family](tmp_path))
    inputs = _image_inputs(family, model)
    with torch.no_grad():
        logits = model(**inputs).logits
        other = model(**inputs | {"pixel_values": -inputs["pixel_values"]}).logits
    assert 0.5 < logits.std() < 3
    assert (logits - other)[0, -1].abs().max() > 0.05


@pytest.mark.parametrize("family", MAKERS)
@pytest.mark.parametrize("naming", NAMINGS)
def test_the_reference_finds_every_tensor(family, naming, tmp_path):
    import transformers

    folder = MAKERS[family](tmp_path / "a", naming=naming, shards=2, nested=naming != "hub")
    model, report = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, parameter in model.named_parameters():
        assert parameter.std() > 0.01, f"{name} is constant"
    if naming == "saved":
        fresh = type(model)(model.config)
        fresh.save_pretrained(tmp_path / "b")
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == set(load_file(tmp_path / "b/model.safetensors"))


def test_a_tied_head_is_not_on_disk(tmp_path):
    folder = tiny.qwen2_5_vl(tmp_path, tied=True)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    model = tiny.reference(folder)
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
