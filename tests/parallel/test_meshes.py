"""Eight host devices, laid out in any way, give the answers of one."""

import numpy as np
import pytest

from tests import tiny
from tests.parallel.answers import MESHES, answers, layouts

FAMILIES = ("llava", "qwen2_5_vl")
BAR = 1e-5
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("meshes")
    # Eight query heads divide over every mesh here; four key heads do not divide over eight.
    heads = dict(num_attention_heads=8, num_key_value_heads=4, num_hidden_layers=1)
    rope = dict(rope_scaling={"type": "mrope", "mrope_section": [2, 1, 1]})
    vision = dict(depth=2, fullatt_block_indexes=[1])
    return {
        "llava": tiny.llava(folder / "llava", text=heads, vision=dict(num_hidden_layers=2)),
        "qwen2_5_vl": tiny.qwen2_5_vl(folder / "qwen", text=heads | rope, vision=vision),
    }


@pytest.fixture(scope="module")
def alone(eight, folders):
    """What each model answers on one of the eight devices."""
    return {family: eight(answers, folder, 1, 1) for family, folder in folders.items()}


@pytest.fixture(scope="module")
def found(eight, folders):
    """How the parameters lie on every mesh, and the log."""
    return eight(layouts, folders)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "mesh", [(2, 4), *(pytest.param(mesh, marks=SLOW) for mesh in ((8, 1), (4, 2), (1, 8)))]
)
def test_answers_of_eight_devices_are_those_of_one(eight, folders, alone, family, mesh):
    expected, found = alone[family], eight(answers, folders[family], *mesh)
    assert len(expected["tokens"]) == 8
    assert len({tuple(tokens) for tokens in expected["tokens"]}) > 4
    assert found["tokens"] == expected["tokens"]
    np.testing.assert_allclose(found["logits"], expected["logits"], atol=BAR, rtol=0)


@SLOW
@pytest.mark.parametrize("family", ["llava_next", "internvl", "instructblip"])
def test_other_families_on_eight_devices(eight, tmp_path, family):
    folder = getattr(tiny, family)(tmp_path / family)
    expected, found = (eight(answers, folder, *mesh) for mesh in ((1, 1), (2, 4)))
    assert found["tokens"] == expected["tokens"]
    np.testing.assert_allclose(found["logits"], expected["logits"], atol=BAR, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_lie_where_their_names_say(found, family):
    layer = "decoder/layers/0"
    laid = {mesh: found[0][family, mesh] for mesh in MESHES}
    expected = {
        f"{layer}/wq_dnh": ([None, "model", None], [64, 2, 8]),
        f"{layer}/wk_dkh": ([None, "model", None], [64, 1, 8]),
        f"{layer}/wo_nhd": (["model", None, None], [2, 8, 64]),
        f"{layer}/w_down_df": ([None, "model"], [64, 28]),
        f"{layer}/mlp_norm_d": ([None], [64]),
    }
    for path, (spec, shard) in expected.items():
        assert laid[2, 4]["specs"][path] == spec, path
        assert laid[2, 4]["shards"][path] == shard, path
    vocabulary = 384 if family == "llava" else 288
    assert laid[1, 8]["shards"]["decoder/head_vd"] == [vocabulary // 8, 64]
    assert laid[1, 8]["shards"][f"{layer}/wq_dnh"] == [64, 1, 8]
    assert laid[8, 1]["shards"][f"{layer}/wq_dnh"] == [64, 8, 8]


def test_heads_that_do_not_divide_are_replicated_and_the_log_says_so(found):
    laid, log = found
    for family in FAMILIES:
        report = laid[family, (1, 8)]
        assert report["specs"]["decoder/layers/0/wk_dkh"] == [None, None, None]
        assert report["shards"]["decoder/layers/0/wk_dkh"] == [64, 4, 8]
    said = [line for line in log if line.startswith("Dim 'k' (size 4) of decoder/")]
    assert len(said) == 1
    assert said[0].endswith("does not divide over 8 devices: replicated.")
