"""Where heads look, token by token: the masses of the decode loop, and those of no other rows."""

import numpy as np
import pytest

import vlm_jax
from tests.compiles import counted
from vlm_jax.errors import ConfigError

PROMPT = "Please describe this image in detail."
AIR = {"heads": "identified", "text_gain": 0.5}


@pytest.mark.parametrize("steered", [False, True])
def test_masses_are_those_of_the_decode_steps(shipped_llava, scenes, steered):
    model = shipped_llava.apply("air", **AIR) if steered else shipped_llava
    seen = model.attention(scenes[0], PROMPT, max_new_tokens=8)
    read = model.generate(scenes[0], PROMPT, max_new_tokens=8, return_readings=True)
    assert (seen.answer, seen.tokens) == (read.text, read.tokens)
    assert not read.ended
    assert seen.image.shape == (8, 6, 8)
    for name in ("image", "text", "system"):
        mean_ln = getattr(seen, name).mean(0)
        np.testing.assert_allclose(mean_ln, getattr(read.readings, f"{name}_bn"), atol=1e-5)
    # The first token is chosen by the prompt's last row.
    one = model.generate(scenes[0], PROMPT, max_new_tokens=1, return_readings=True)
    np.testing.assert_allclose(seen.image[0], one.readings.image_bn, atol=1e-5)


def test_masses_add_up_and_have_words(shipped_llava, scenes):
    first, second = shipped_llava.attention(scenes[:2], PROMPT, max_new_tokens=60)
    for seen, image in ((first, scenes[0]), (second, scenes[1])):
        assert seen.answer == shipped_llava.generate(image, PROMPT, max_new_tokens=60)
        np.testing.assert_allclose(seen.image + seen.text + seen.system, 1, atol=1e-5)
        assert len(seen.pieces) == len(seen.tokens) == len(seen.image)
        assert [piece.strip() for piece in seen.pieces] == seen.answer.split()
    assert "tokens, 6 layers, 8 heads" in repr(first)
    assert first._repr_html_().count("<tr>") == 1 + len(first.tokens)


def test_without_an_image_no_head_looks_at_one(qwen_vlm):
    seen = qwen_vlm.attention(prompts="Hello", max_new_tokens=3)
    assert seen.image.shape[1:] == (3, 4)
    assert not seen.image.any()


def test_two_passes_are_refused(shipped_llava):
    model = shipped_llava.apply("functional_heads", passes=2, perception_gain=2.0)
    with counted() as compiled, pytest.raises(ConfigError, match="passes=2"):
        model.attention(prompts="Hello")
    assert not compiled, "it is refused before an answer is made"


def test_pieces_of_a_model_are_never_markup():
    from vlm_jax.masses import Masses

    ones = np.ones((1, 1, 1), np.float32)
    page = Masses("<b>", (1,), ("<b>",), ones, ones, ones)._repr_html_()
    assert "<b>" not in page
    assert "&lt;b&gt;" in page
    assert vlm_jax.VLM.attention.__doc__
