"""Architectural variants that released and fine-tuned folders have, against torch in float32."""

import numpy as np
import pytest

import vlm_jax
from tests import tiny
from tests.models.conftest import error
from tests.reference import IMAGES, LOGITS_BAR, PROMPTS, Reference, prompt_ids

VARIANTS = {
    "one key head per query head": (tiny.llava, dict(text=dict(num_key_value_heads=4))),
    "one key head": (tiny.llava, dict(text=dict(num_key_value_heads=1))),
    "features of the last layer": (tiny.llava, dict(vision_feature_layer=-1)),
    "features of several layers, class token kept": (
        tiny.llava,
        dict(vision_feature_layer=[-3, 1, -1], vision_feature_select_strategy="full"),
    ),
    "class token kept, linear rope": (
        tiny.llava,
        dict(
            vision_feature_select_strategy="full",
            text=dict(rope_scaling={"type": "linear", "factor": 2.0}, rope_theta=5e3),
        ),
    ),
    "biases in attention, wide heads": (
        tiny.llava,
        dict(text=dict(attention_bias=True, head_dim=24), multimodal_projector_bias=False),
    ),
    "qwen2 text": (tiny.llava, dict(text=dict(model_type="qwen2"), projector_hidden_act="relu")),
    "a SigLIP tower, its pooling head on disk": (
        tiny.llava,
        dict(
            vision=dict(model_type="siglip_vision_model"),
            vision_feature_select_strategy="full",
            multimodal_projector_bias=False,
        ),
    ),
    "tied head": (tiny.qwen2_5_vl, dict(tied=True)),
    "small windows, one full layer": (
        tiny.qwen2_5_vl,
        dict(vision=dict(window_size=28, fullatt_block_indexes=[2]), nested=True),
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_equals_the_reference(name, tmp_path):
    make, options = VARIANTS[name]
    folder = make(tmp_path, seed=7, **options)
    vlm, reference = vlm_jax.load(folder), Reference.from_folder(folder)
    images, prompts = IMAGES[:2], PROMPTS[:2]
    batch = vlm.processor.batch(images, prompts)
    theirs = [reference.logits(prompt_ids(batch, i), images[i]) for i in range(2)]
    ours, lengths = vlm.logits(images, prompts)
    assert lengths.tolist() == [len(row) for row in theirs]
    assert error(ours, theirs) <= LOGITS_BAR
    for row, expected in zip(ours, theirs):
        np.testing.assert_array_equal(row[: len(expected)].argmax(-1), expected.argmax(-1))
