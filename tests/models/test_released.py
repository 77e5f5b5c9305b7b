"""The released sizes by `eval_shape`: names, shapes and counts, without a single weight."""

import math

import jax
import pytest

from convert.table import bind
from tests.released import CONFIGS, PARAMETERS
from vlm_jax import models
from vlm_jax.families import parse_config
from vlm_jax.parallel import make_mesh, param_shardings


@pytest.mark.parametrize("name", CONFIGS)
def test_released_size(name):
    config = parse_config(CONFIGS[name])
    _, shapes = models.abstract(config)
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in shapes.values())
    count = sum(math.prod(leaf.shape) for leaf in shapes.values())
    assert count == PARAMETERS[name]
    tensors = bind(config).by_path
    assert {path: leaf.shape for path, leaf in shapes.items()} == {
        path: tuple(tensor.shape) for path, tensor in tensors.items()
    }
    assert set(param_shardings(shapes, make_mesh())) == set(shapes)


def test_shapes_of_a_7b():
    _, shapes = models.abstract(parse_config(CONFIGS["Qwen2.5-VL-7B"]))
    shapes = {path: leaf.shape for path, leaf in shapes.items()}
    assert shapes["decoder/embed_vd"] == (152064, 3584)
    assert shapes["decoder/head_vd"] == (152064, 3584)
    assert shapes["decoder/layers/27/wq_dnh"] == (3584, 28, 128)
    assert shapes["decoder/layers/27/bk_kh"] == (4, 128)
    assert shapes["decoder/layers/0/w_down_df"] == (3584, 18944)
    assert shapes["vision/patch_de"] == (1280, 1176)
    assert shapes["vision/layers/31/wqkv_d3nh"] == (1280, 3, 16, 80)
    assert shapes["projector/w1_fe"] == (5120, 5120)
    assert shapes["projector/w2_df"] == (3584, 5120)
