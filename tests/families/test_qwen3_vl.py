"""Qwen3-VL: DeepStack, resampled positions, interleaved m-rope."""

import dataclasses
import json

import numpy as np
import pytest

from tests import tiny
from tests.families import parity
from tests.reference import IMAGES, PROMPTS, picture
from vlm_jax.errors import ConfigError
from vlm_jax.families import parse_config
from vlm_jax.processing.cutters import run_layout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.qwen3_vl(tmp_path_factory.mktemp("qwen3") / "hf")


@pytest.fixture(scope="module")
def pair(folder):
    return parity.Pair.of(folder)


@pytest.mark.parametrize("check", parity.checks("logits", "greedy", "kinds"))
def test_it_is_the_reference(pair, check):
    getattr(parity, f"check_{check}")(pair)


def test_frequencies_take_turns(pair):
    def axes(*section):
        decoder = dataclasses.replace(pair.vlm.config.decoder, mrope_section=section)
        return list(decoder.rope_axes or ())

    assert axes(2, 1, 1) == [0, 1, 2, 0]
    assert axes(24, 20, 20) == 20 * [0, 1, 2] + 4 * [0]
    # A last turn that the frequencies end within, as in the reference.
    assert axes(2, 3, 3) == [0, 1, 2, 0, 1, 2, 0, 1]


@pytest.mark.parametrize("size", [(60, 84), (112, 56), (200, 90), (30, 170)])
def test_patches_are_the_references_bit_for_bit(pair, size):
    image = picture(*size)
    made = pair.reference.image_processor(images=[image], return_tensors="np")
    flat, (_, rows, cols) = made["pixel_values"], made["image_grid_thw"][0].tolist()
    batch = pair.vlm.processor.batch([[image]], ["What?"])
    patches = np.asarray(batch.images.patches_bgue)[0].reshape(-1, flat.shape[1])
    np.testing.assert_array_equal(patches[: len(flat)], flat)
    assert not patches[len(flat) :].any()
    assert (np.asarray(batch.slots_bt)[0].max() + 1) * 4 == len(flat) == rows * cols


def test_runs_of_units():
    layout = run_layout(6, 14, 2)
    assert layout.index_gu.shape == (2, 64)
    np.testing.assert_array_equal(layout.index_gu.ravel()[:84], np.arange(84))
    assert (layout.index_gu.ravel()[84:] == -1).all()
    np.testing.assert_array_equal(layout.slots_m, np.arange(21))
    # Patches of a unit together, units row by row.
    assert layout.positions_gu2.reshape(-1, 2)[:6].tolist() == [
        [0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3],
    ]  # fmt: skip


def test_what_the_deep_layers_give_matters(pair):
    vlm, batch = pair.vlm, pair.batch()
    for layer in (0, 1):
        path = f"projector/deep/{layer}/w2_df"
        other = vlm.params | {path: 1.3 * vlm.params[path]}
        found = np.asarray(vlm.generator.logits(other, batch))
        assert np.abs(found - pair.logits(batch)).max() > 1e-3, path
        row = [not images for images in pair.images].index(True)
        np.testing.assert_array_equal(found[row], pair.logits(batch)[row])


def test_the_head_is_tied_where_the_root_says_so(tmp_path):
    import vlm_jax

    vlm = vlm_jax.load(tiny.qwen3_vl(tmp_path / "hf", tied=True), dtype="float32")
    assert "decoder/head_vd" not in vlm.params
    assert len(vlm.generate([IMAGES[0]], [PROMPTS[0]], max_new_tokens=2)) == 1


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("deepstack_visual_indexes", [2, 0], "must rise"),
        ("deepstack_visual_indexes", [0, 4], "must rise, within its 4 layers"),
        ("deepstack_visual_indexes", [0, 1, 2, 3], "more than the decoder's 3 layers"),
        ("num_position_embeddings", 35, "must be a square"),
        ("out_hidden_size", 52, "must be the hidden_size of the decoder, 48"),
        ("hidden_act", "tanh", "hidden_act 'tanh' is not supported"),
    ],
)
def test_what_the_tower_cannot_be(folder, field, value, said):
    root = json.loads((folder / "config.json").read_text())
    root["vision_config"][field] = value
    with pytest.raises(ConfigError, match=said):
        parse_config(root)
