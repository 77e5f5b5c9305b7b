"""Definition and data: models split into a flat dict and merge back."""

import dataclasses

import jax
import numpy as np

from tests.compiles import counted
from vlm_jax import models
from vlm_jax.families import read_config


def test_split_and_merge_are_inverse(vlm):
    graphdef, shapes = models.abstract(vlm.config)
    assert {path: leaf.shape for path, leaf in shapes.items()} == {
        path: array.shape for path, array in vlm.params.items()
    }
    again_def, again = models.split(models.merge(graphdef, vlm.params))
    assert again_def == graphdef
    assert set(again) == set(vlm.params)
    for path, array in again.items():
        assert array is vlm.params[path]


def test_init_is_seeded_and_scaled(tiny_llava):
    config = read_config(tiny_llava)
    config = dataclasses.replace(
        config,
        decoder=dataclasses.replace(config.decoder, num_layers=1),
        vision=dataclasses.replace(config.vision, num_layers=1, feature_layers=(-1,)),
    )
    first = models.init(config, 0)
    with counted() as compiled:
        second, other = models.init(config, 0), models.init(config, 1)
    assert not compiled
    jax.tree.map(np.testing.assert_array_equal, first, second)
    path = "decoder/layers/0/wq_dnh"
    assert np.abs(first[path] - other[path]).max() > 0.1
    assert abs(np.std(first[path]) * config.decoder.hidden_size**0.5 - 1) < 0.1
    assert {array.dtype.name for array in first.values()} == {"float32"}
