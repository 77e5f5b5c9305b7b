"""Eight host devices, laid out in any way, give the answers of one."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests import tiny
from tests.parallel.answers import MESHES

FAMILIES = ("llava", "qwen2_5_vl")
BAR = 1e-5
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Everything that the process with eight devices reports."""
    folder = tmp_path_factory.mktemp("meshes")
    # Eight query heads divide over every mesh here; four key heads do not divide over eight.
    heads = dict(num_attention_heads=8, num_key_value_heads=4, num_hidden_layers=1)
    tiny.llava(folder / "llava", text=heads, vision=dict(num_hidden_layers=2))
    rope = dict(rope_scaling={"type": "mrope", "mrope_section": [2, 1, 1]})
    vision = dict(depth=2, fullatt_block_indexes=[1])
    tiny.qwen2_5_vl(folder / "qwen", text=heads | rope, vision=vision)
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    command = [sys.executable, "-m", "tests.parallel.answers", folder, folder / "llava"]
    subprocess.run(
        [*command, folder / "qwen"],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "NPROC": "16", "JAX_PLATFORMS": "cpu"},
        check=True,
        timeout=280,
    )
    report = json.loads((folder / "found.json").read_text())
    report["logits"] = dict(np.load(folder / "logits.npz"))
    assert report["devices"] == 8
    return report


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mesh", MESHES[1:])
def test_answers_of_eight_devices_are_those_of_one(found, family, mesh):
    name, alone = f"{family} {mesh[0]}x{mesh[1]}", f"{family} 1x1"
    assert len(found["found"][alone]["tokens"]) == 8
    assert len({tuple(tokens) for tokens in found["found"][alone]["tokens"]}) > 4
    assert found["found"][name]["tokens"] == found["found"][alone]["tokens"]
    ours, expected = found["logits"][name], found["logits"][alone]
    np.testing.assert_allclose(ours, expected, atol=BAR, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_lie_where_their_names_say(found, family):
    layer = "decoder/layers/0"
    specs = {mesh: found["found"][f"{family} {mesh[0]}x{mesh[1]}"] for mesh in MESHES}
    expected = {
        f"{layer}/wq_dnh": ([None, "model", None], [64, 2, 8]),
        f"{layer}/wk_dkh": ([None, "model", None], [64, 1, 8]),
        f"{layer}/wo_nhd": (["model", None, None], [2, 8, 64]),
        f"{layer}/w_down_df": ([None, "model"], [64, 28]),
        f"{layer}/mlp_norm_d": ([None], [64]),
    }
    for path, (spec, shard) in expected.items():
        assert specs[2, 4]["specs"][path] == spec, path
        assert specs[2, 4]["shards"][path] == shard, path
    vocabulary = 384 if family == "llava" else 288
    assert specs[1, 8]["shards"]["decoder/head_vd"] == [vocabulary // 8, 64]
    assert specs[1, 8]["shards"][f"{layer}/wq_dnh"] == [64, 1, 8]
    assert specs[8, 1]["shards"][f"{layer}/wq_dnh"] == [64, 8, 8]


def test_heads_that_do_not_divide_are_replicated_and_the_log_says_so(found):
    for family in FAMILIES:
        report = found["found"][f"{family} 1x8"]
        assert report["specs"]["decoder/layers/0/wk_dkh"] == [None, None, None]
        assert report["shards"]["decoder/layers/0/wk_dkh"] == [64, 4, 8]
    said = [line for line in found["log"] if line.startswith("Dim 'k' (size 4) of decoder/")]
    assert len(said) == 1
    assert said[0].endswith("does not divide over 8 devices: replicated.")
