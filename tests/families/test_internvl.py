"""InternVL-3.5 in both layouts: tiles and thumbnail, pixel shuffle, normed queries and keys."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

import vlm_jax
from convert import export_hf, import_hf
from tests import tiny
from tests.families import parity
from tests.reference import IMAGES, PROMPTS, picture
from vlm_jax.batch import Kind
from vlm_jax.config import DynamicTilesConfig
from vlm_jax.errors import ConfigError
from vlm_jax.families import find, parse_config
from vlm_jax.families.internvl_chat import SYSTEM
from vlm_jax.processing import Processor
from vlm_jax.processing.cutters import DynamicTiles


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.internvl(tmp_path_factory.mktemp("internvl") / "hf")


@pytest.fixture(scope="module")
def pair(folder):
    return parity.Pair.of(folder)


@pytest.fixture(scope="module")
def original(folder, tmp_path_factory):
    return tiny.internvl_chat(folder, tmp_path_factory.mktemp("opengvlab") / "hf")


@pytest.mark.parametrize("check", parity.checks("logits", "greedy", "batches", "methods", "kinds"))
def test_it_is_the_reference(pair, check):
    getattr(parity, f"check_{check}")(pair)


@pytest.mark.parametrize(
    ("width", "height", "grid", "tokens"),
    [
        (640, 480, (4, 3), 3328), (480, 640, (3, 4), 3328), (640, 427, (3, 2), 1792),
        (448, 448, (1, 1), 256), (1280, 720, (4, 2), 2304), (1000, 300, (3, 1), 1024),
        (900, 900, (2, 2), 1280), (1024, 1024, (3, 3), 2560), (2000, 100, (12, 1), 3328),
        (120, 77, (3, 2), 1792),
    ],
)  # fmt: skip
def test_token_counts_at_the_released_size(width, height, grid, tokens):
    vision = parse_config(tiny_released()).vision
    cut = DynamicTiles(vision, DynamicTilesConfig(), None)
    assert cut.resized(width, height) == (448 * grid[0], 448 * grid[1])
    assert cut.extent(width, height).tokens == tokens
    regions_m4 = cut.regions(width, height)
    assert regions_m4.shape == (tokens, 4)
    cell = 1 / (16 * grid[0]), 1 / (16 * grid[1])
    np.testing.assert_allclose(regions_m4[0], [0, 0, *cell])
    np.testing.assert_allclose(regions_m4[grid[0] * grid[1] * 256 - 1, 2:], [1, 1])
    if grid != (1, 1):
        np.testing.assert_allclose(regions_m4[-256], [0, 0, 1 / 16, 1 / 16])  # the thumbnail


def tiny_released() -> dict:
    from tests.released import CONFIGS

    return CONFIGS["InternVL3.5-8B"]


@pytest.mark.parametrize("size", [(56, 56), (80, 60), (120, 60), (113, 40), (300, 30)])
def test_pixels_are_the_references_bit_for_bit(pair, original, size):
    image = picture(*size)
    made = pair.reference.image_processor(
        images=[image], return_tensors="np", crop_to_patches=True, min_patches=1, max_patches=12
    )
    tiles = made["pixel_values"]
    cells = tiles.reshape(len(tiles), 3, 4, 14, 4, 14).transpose(0, 2, 4, 1, 3, 5)
    for processor in (pair.vlm.processor, vlm_jax.load(original, dtype="float32").processor):
        batch = processor.batch([[image]], ["What?"])
        ours = batch.images.patches_bgue[0, : len(tiles)]
        np.testing.assert_array_equal(ours, cells.reshape(len(tiles), 16, -1))


def test_fewer_tiles_at_most(folder, pair):
    image = picture(300, 30)
    few = Processor.from_folder(folder, max_tiles=4).batch([[image]], ["What?"])
    assert int((few.kinds_bt == Kind.IMAGE).sum()) == 4 * (4 + 1)
    assert int((pair.vlm.processor.batch([[image]], ["What?"]).kinds_bt == Kind.IMAGE).sum()) > 20
    with pytest.raises(ConfigError, match="max_tiles must be a whole number from 1 to 12"):
        Processor.from_folder(folder, max_tiles=13)


def test_the_original_layout_is_the_same_model(pair, original, tmp_path):
    vlm = vlm_jax.load(original, dtype="float32")
    assert vlm.config.family == "internvl_chat"
    batch = pair.batch()
    found = np.asarray(vlm.generator.logits(vlm.params, batch))
    np.testing.assert_allclose(found, pair.logits(batch), atol=parity.ORDER_BAR, rtol=0)
    import_hf(original, tmp_path / "ours", progress=False)
    export_hf(tmp_path / "ours", tmp_path / "back", progress=False)
    name = "model.safetensors"
    assert (tmp_path / "back" / name).read_bytes() == (original / name).read_bytes()
    assert any(".attn.qkv." in key for key in load_file(original / name))


def test_prompts_of_both_layouts(pair, original):
    ours, theirs = pair.vlm.processor, vlm_jax.load(original, dtype="float32").processor
    read = lambda processor, images: processor.tokenizer.decode(
        processor.encode(processor.template("What?", images))
    )
    context = "<img><IMG_CONTEXT></img>\n"
    turn = "<|im_end|>\n<|im_start|>assistant\n"
    assert read(ours, 1) == f"<|im_start|>user\n{context}What?{turn}"
    begins = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
    assert read(theirs, 0) == f"{begins}What?{turn}"
    assert read(theirs, 1) == f"{begins}{context}What?{turn}"
    assert read(theirs, 2) == f"{begins}Image-1: {context}Image-2: {context}What?{turn}"
    # Older templates write the images of the authors' code; marks are never doubled.
    written = lambda text: find("internvl").written(text, "<IMG_CONTEXT>")
    assert written("<image>\nA") == written("<IMG_CONTEXT>\nA") == context + "A"
    assert written(context) == context


def test_the_norms_of_queries_and_keys_matter(pair):
    vlm, batch = pair.vlm, pair.batch()
    for name in ("q_norm_h", "k_norm_h"):
        path = f"decoder/layers/1/{name}"
        assert vlm.params[path].shape == (24,)
        other = vlm.params | {path: 1.3 * vlm.params[path]}
        found = np.asarray(vlm.generator.logits(other, batch))
        assert np.abs(found - pair.logits(batch)).max() > 1e-3, name


def test_a_root_that_says_tied_of_an_untied_model(tmp_path):
    source = tiny.internvl(tmp_path / "hf")
    root = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(root | {"tie_word_embeddings": True}))
    vlm = vlm_jax.load(source, dtype="float32")
    assert "decoder/head_vd" in vlm.params
    assert len(vlm.generate([IMAGES[0]], [PROMPTS[0]], max_new_tokens=2)) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("ps_version", "v1"), ("pad2square", True), ("select_layer", -4), ("downsample_ratio", 0.25)],
)
def test_what_the_original_layout_cannot_be(original, field, value):
    root = json.loads((original / "config.json").read_text()) | {field: value}
    with pytest.raises(ConfigError, match=f"{field} must be"):
        parse_config(root)
