"""Negative controls: mistakes that a looser bar would let through break ours."""

import dataclasses

import numpy as np
import pytest

from tests.models.conftest import error, forward
from tests.reference import LOGITS_BAR


def _decoder(config, **changes):
    return dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, **changes))


def test_a_wrong_epsilon_breaks_the_bar(vlm, read):
    right = vlm.config.decoder.rms_norm_eps
    wrong = {1e-5: 1e-6, 1e-6: 1e-5}[right]
    found = forward(vlm, read.batch, _decoder(vlm.config, rms_norm_eps=wrong))
    assert LOGITS_BAR < error(found, read.theirs) < 0.1


def test_an_approximate_gelu_breaks_the_bar(vlm, read):
    config = dataclasses.replace(vlm.config, projector_act="gelu_pytorch_tanh")
    found = forward(vlm, read.batch, config)
    assert LOGITS_BAR < error(found, read.theirs) < 0.1
    # The sample without an image has no projector to be wrong in.
    assert error(found[2:3], read.theirs[2:3]) <= LOGITS_BAR


def test_a_forgotten_bias_breaks_the_bar(vlm, read):
    names = [
        name for name in vlm.params if name.endswith(("layers/1/bk_kh", "vision/layers/1/bo_d"))
    ]
    params = vlm.params | {name: 0 * vlm.params[name] for name in names}
    assert names
    found = np.asarray(vlm.generator.logits(params, read.batch))
    assert error(found, read.theirs) > LOGITS_BAR


def test_one_dimensional_positions_break_the_bar(vlm, read):
    if vlm.config.decoder.mrope_section is None:
        pytest.skip("this family's positions are one-dimensional")
    places = np.arange(read.batch.tokens_bt.shape[1], dtype=np.int32)
    flat = np.broadcast_to(places[None, :, None], read.batch.positions_bt3.shape)
    found = forward(vlm, dataclasses.replace(read.batch, positions_bt3=flat))
    assert error(found, read.theirs) > 0.1
    assert error(found[2:3], read.theirs[2:3]) <= LOGITS_BAR


def test_windows_everywhere_break_the_bar(vlm, read):
    if vlm.config.family != "qwen2_5_vl":
        pytest.skip("this family has no windows")
    vision = dataclasses.replace(vlm.config.vision, full_attention_layers=())
    found = forward(vlm, read.batch, dataclasses.replace(vlm.config, vision=vision))
    assert error(found, read.theirs) > 0.1
