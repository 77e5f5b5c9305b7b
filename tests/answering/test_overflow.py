"""Answers of a model that overflows float16 are an error that names the layer."""

import pytest

import vlm_jax
from tests.processing.conftest import picture
from vlm_jax.errors import UserError


@pytest.fixture(scope="module")
def half(tiny_qwen):
    return vlm_jax.load(tiny_qwen, dtype="float16")


def overflowing(vlm, layer: int):
    """The model with a layer whose output passes 65,504."""
    names = [f"decoder/layers/{layer}/{name}" for name in ("w_gate_fd", "w_up_fd", "w_down_df")]
    params = dict(vlm.params)
    return vlm.with_params(params | {name: params[name] * 200 for name in names})


PICTURE = picture(30, 30)


@pytest.mark.parametrize("images", [[[], []], [[PICTURE], [PICTURE]]])
@pytest.mark.parametrize("layer", [0, 1])
def test_the_layer_is_named(half, images, layer):
    with pytest.raises(UserError, match=f"float16 overflows in layer {layer} of the decoder"):
        overflowing(half, layer).generate(images, ["hi", "you"], max_new_tokens=4)


def test_a_model_that_does_not_overflow_answers(half):
    assert len(half.generate(None, ["hi"], max_new_tokens=4)) == 1


def test_the_last_layer_is_named_too(half):
    last = half.config.decoder.num_layers - 1
    with pytest.raises(UserError, match=f"float16 overflows in layer {last} of the decoder"):
        overflowing(half, last).generate(None, ["hi"], max_new_tokens=4)
