"""DeepSeek-VL2: latent attention, experts, tiles beside a whole view."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.ImageOps
import pytest

import vlm_jax
from convert import export_hf, import_hf
from tests.families import parity
from tests.families.tiny_deepseek import SIDE, Reference, deepseek_vl2
from tests.reference import IMAGES, picture
from tests.released import CONFIGS
from vlm_jax.analysis.branch import branched_probabilities, head_outputs
from vlm_jax.analysis.rows import RowReader
from vlm_jax.attention.steering import HeadGains, Steering
from vlm_jax.errors import ConfigError
from vlm_jax.families import parse_config
from vlm_jax.models import Watch
from vlm_jax.models.network import abstract, merge
from vlm_jax.processing.cutters import ViewTiles

# Small's checks are everybody's; the other kinds differ in attention or router alone.
CHECKS = [
    *(("small", check) for check in ("logits", "batches", "prefixes", "kinds")),
    ("base", "logits"),
    *(pytest.param("small", check, marks=pytest.mark.slow) for check in ("greedy", "methods")),
    *(pytest.param("tiny", check, marks=pytest.mark.slow) for check in ("logits", "methods")),
    pytest.param("base", "greedy", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    made = {}

    def pair(kind: str) -> parity.Pair:
        if kind not in made:
            folder = deepseek_vl2(tmp_path_factory.mktemp(kind) / "hf", kind)
            made[kind] = parity.Pair.of(folder, Reference)
        return made[kind]

    return pair


@pytest.mark.parametrize(("kind", "check"), CHECKS)
def test_it_is_the_reference(pairs, kind, check):
    getattr(parity, f"check_{check}")(pairs(kind))


@pytest.mark.parametrize(
    ("width", "height", "tiles", "tokens"),
    [
        (384, 384, (1, 1), 421), (100, 100, (1, 1), 421), (385, 384, (2, 1), 617),
        (640, 480, (2, 2), 1023), (480, 640, (2, 2), 1023), (500, 375, (2, 1), 617),
        (375, 500, (1, 2), 631), (1024, 768, (3, 2), 1415), (1920, 1080, (4, 2), 1807),
        (1080, 1920, (2, 4), 1835), (4000, 3000, (3, 3), 2017), (2000, 500, (4, 1), 1009),
        (300, 1200, (1, 4), 1051), (3000, 400, (8, 1), 1793), (100, 4000, (1, 9), 2101),
    ],
)  # fmt: skip
def test_token_counts_at_the_released_size(width, height, tiles, tokens):
    config: Any = parse_config(CONFIGS["DeepSeek-VL2-Tiny"])
    cut = ViewTiles(config.vision, config.tiles, 2, (0.5,) * 3, (0.5,) * 3)
    assert cut.resized(width, height) == (384 * tiles[0], 384 * tiles[1])
    extent = cut.extent(width, height)
    assert extent.tokens == tokens
    assert extent.groups == 1 + tiles[0] * tiles[1]
    assert (extent.slots_m == -1).sum() == 14 + 14 * tiles[1]
    assert (extent.slots_m == -2).sum() == 1
    used = np.sort(extent.slots_m[extent.slots_m >= 0])
    np.testing.assert_array_equal(used, np.arange(196 * extent.groups))
    regions_m4 = cut.regions(width, height)
    np.testing.assert_array_equal(np.isnan(regions_m4).any(1), extent.slots_m < 0)
    whole, tiled = regions_m4[:210], regions_m4[211:]
    pixels, picture_size = np.array(cut.resized(width, height)), np.array([width, height])
    canvas = pixels * np.max(picture_size / pixels)
    for view, size in ((whole, np.full(2, max(width, height))), (tiled, canvas)):
        covers = np.nanmax(view[:, 2:], 0) - np.nanmin(view[:, :2], 0)
        np.testing.assert_allclose(covers, size / picture_size)
        np.testing.assert_allclose(np.nanmax(view[:, 2:], 0) + np.nanmin(view[:, :2], 0), 1)
    assert cut.among(2).extent(width, height).tokens == tokens
    assert cut.among(3).extent(width, height).tokens == 421


@pytest.mark.parametrize("size", [(104, 104), (200, 90), (60, 200), (300, 290)])
def test_pixels_are_pillows_bit_for_bit(pairs, size):
    image, vlm = picture(*size), pairs("small").vlm
    batch = vlm.processor.batch([[image]], ["What?"])
    whole = PIL.ImageOps.pad(image, (SIDE, SIDE), color=(127, 127, 127))
    levels = (np.asarray(whole, np.float32) / 255 - np.float32(0.5)) / np.float32(0.5)
    cells = levels[:98, :98].reshape(7, 14, 7, 14, 3).transpose(0, 2, 4, 1, 3)
    found = np.asarray(batch.images.patches_bgue)[0, 0]
    np.testing.assert_array_equal(found, cells.reshape(49, -1))


def test_prompts(pairs):
    processor = pairs("small").vlm.processor
    begin = processor.tokenizer.bos_token
    turn = "What?\n\n<|Assistant|>:"
    assert processor.template(" What? ") == f"{begin}<|User|>: {turn}"
    assert processor.template("What?", 1) == f"{begin}<|User|>: <image>\n{turn}"
    both = "This is image_1: <image>\nThis is image_2: <image>\n"
    assert processor.template("What?", 2) == f"{begin}<|User|>: {both}{turn}"
    ids = processor.encode(processor.template("What?"))
    assert ids.count(processor.tokenizer.bos_token_id) == 1
    assert processor.stop_ids == (processor.tokenizer.eos_token_id,)


@pytest.mark.parametrize(
    ("kind", "dtype", "shards"), [("base", "bfloat16", 3), ("tiny", "float16", 1)]
)
def test_it_comes_back_in_equal_bytes(kind, dtype, shards, tmp_path):
    source = deepseek_vl2(tmp_path / "hf", kind, dtype=dtype, shards=shards)
    import_hf(source, tmp_path / "ours", progress=False)
    export_hf(tmp_path / "ours", tmp_path / "back", progress=False)
    files = sorted(path.name for path in source.iterdir())
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == files
    for name in files:
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes(), name


def test_a_model_without_a_source_is_exported_under_hub_names(pairs, tmp_path):
    vlm = pairs("small").vlm
    vlm.save(tmp_path / "ours")
    export_hf(tmp_path / "ours", tmp_path / "back", progress=False)
    again = vlm_jax.load(tmp_path / "back", dtype="float32")
    for path, array in vlm.params.items():
        np.testing.assert_array_equal(np.asarray(again.params[path]), np.asarray(array), path)


def test_the_eight_experts_of_a_layer_are_one_array(pairs):
    params = pairs("small").vlm.params
    assert params["decoder/layers/1/w_gate_xfd"].shape == (8, 40, 64)
    assert params["decoder/layers/0/w_gate_fd"].shape == (112, 64)
    assert params["decoder/layers/1/wo_nhd"].shape == (4, 12, 64)


def test_gains_folded_into_latent_heads_are_gains_of_heads(pairs):
    vlm = pairs("small").vlm
    gains = np.ones((3, 4), np.float32)
    gains[1, 2], gains[2, 1] = 0.0, 3.0
    folded = vlm.apply("head_gains", gains=gains)
    steering = Steering(head_gains=HeadGains(jnp.asarray(gains[None])))
    batch = vlm.processor.batch([IMAGES[1]], ["What is it?"])
    found = np.asarray(vlm.generator.logits(folded.params, batch))
    steered = np.asarray(vlm.generator.logits(vlm.params, batch, steering))
    np.testing.assert_allclose(found, steered, atol=parity.ORDER_BAR, rtol=0)
    assert np.abs(found - np.asarray(vlm.generator.logits(vlm.params, batch))).max() > 1e-2


@pytest.mark.parametrize(
    ("section", "changes", "said"),
    [
        ("language_config", dict(rope_scaling={"type": "yarn", "factor": 4}), "rope type 'yarn'"),
        ("language_config", dict(kv_lora_rank=None), "needs a kv_lora_rank"),
        ("language_config", dict(v_head_dim=0), "needs v_head_dim above 0"),
        ("language_config", dict(attention_bias=True), "attention_bias must be False"),
        ("language_config", dict(moe_layer_freq=2), "moe_layer_freq must be 1"),
        ("language_config", dict(topk_method="best"), "topk_method must be"),
        ("language_config", dict(scoring_func="sigmoid"), "'greedy' with scoring_func 'sigmoid'"),
        ("language_config", dict(num_experts_per_tok=None), "num_experts_per_tok"),
        ("language_config", dict(num_experts_per_tok=9), "9 of 8 experts cannot be chosen"),
        ("projector_config", dict(projector_type="linear"), "projector_type must be"),
        ("projector_config", dict(token_pooling=True), "token_pooling must be"),
        (None, dict(tile_tag="1D"), "tile_tag must be '2D'"),
        (None, dict(global_view_pos="tail"), "global_view_pos must be 'head'"),
        (None, dict(candidate_resolutions=[[104, 100]]), "no multiple of the tower's"),
    ],
)
def test_what_cannot_be_is_said(tmp_path, section, changes, said):
    folder = deepseek_vl2(tmp_path / "hf")
    root = json.loads((folder / "config.json").read_text())
    (root if section is None else root[section]).update(changes)
    with pytest.raises(ConfigError, match=said):
        parse_config(root)


@pytest.mark.slow
def test_heads_are_ablated_where_the_cache_holds_latents(pairs):
    vlm = pairs("small").vlm
    batch, graphdef = vlm.processor.batch([IMAGES[1]], ["What?"]), abstract(vlm.config)[0]
    prompt = jax.jit(lambda params, batch: merge(graphdef, params).read(batch)[1])(
        vlm.params, batch
    )
    rest = jax.tree.map(jnp.asarray, dataclasses.replace(batch, images=None))
    query = jnp.int32(int(batch.lengths_b[0]) - 1)
    asked = graphdef, vlm.params, rest, prompt, jnp.int32(0), query
    outputs = head_outputs(*asked)
    assert outputs.shape == (3, 4, vlm.config.decoder.row_dim)
    found = branched_probabilities(*asked, jnp.int32(5))
    whole = jax.nn.softmax(vlm.generator.logits(vlm.params, batch)[0, int(query)])[5]
    np.testing.assert_allclose(found[0], whole, rtol=1e-4)
    assert np.abs(np.asarray(found[1:]) - found[0]).max() > 1e-4
    means = branched_probabilities(*asked, jnp.int32(5), 0 * outputs)
    np.testing.assert_allclose(means, found, rtol=1e-5)


def test_rows_of_attention_are_those_that_hooks_watch(pairs):
    """A prompt's last row, whose logits have a scale of their own."""
    vlm, batch = pairs("small").vlm, pairs("small").batch([0])
    depth, count = vlm.config.decoder.num_layers, vlm.config.decoder.num_heads
    watch = Watch(weights=tuple(range(depth)))
    graphdef = abstract(vlm.config)[0]
    read = jax.jit(lambda params, batch: merge(graphdef, params).prefill(batch, 1, watch=watch)[2])
    watched = read(vlm.params, batch)
    last = int(batch.lengths_b[0]) - 1
    heads = [(layer, head) for layer in range(depth) for head in range(count)]
    rows = RowReader(vlm.config, rows=1)(vlm.params, batch, np.array([last]), heads)
    largest_ls = rows.weights_qhs[0].reshape(depth, count, -1).max(axis=1)
    length = largest_ls.shape[-1]
    np.testing.assert_allclose(largest_ls, watched.weights_bjs[0, :, :length], atol=1e-6)
    np.testing.assert_allclose(rows.masses_qlnc.sum(-1), 1, atol=1e-5)
    assert (rows.value_norms_hs[:, : last + 1] > 0).all()
