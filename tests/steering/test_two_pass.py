"""Two passes: classes of the unsteered prompt, each example its own gains."""

import numpy as np

from tests.reference import IMAGES, PROMPTS
from vlm_jax.steering.functional import functional_heads, read_classes
from vlm_jax.steering.two_pass import answer_in_two_passes

FIELDS = {
    "perception_from": 0.3,
    "reasoning_to": 0.1,
    "reasoning_first_layer": 0,
    "perception_last_layer": 2,
    "perception_gain": 3.0,
    "reasoning_gain": 1.5,
}


def test_two_passes_equal_the_cached_prefill_where_depth_does_not_matter(llava_vlm):
    """With gains in the last layer alone, no ratio is read on a changed stream."""
    last = {**FIELDS, "reasoning_first_layer": 2, "perception_from": 1.0}
    classes = read_classes(llava_vlm.config, **last)
    options = {"max_new_tokens": 6, "batch_size": 4}
    found = list(answer_in_two_passes(llava_vlm, IMAGES, PROMPTS, classes, **options))
    steering = functional_heads(llava_vlm.config, mode="prefill_cached", **last)
    expected = list(llava_vlm.answer(IMAGES, PROMPTS, steering=steering, **options))
    assert [a.index for a in found] == [0, 1, 2, 3]
    assert [a.tokens for a in found] == [a.tokens for a in expected]


def test_two_passes_change_answers_and_pad_the_last_batch(llava_vlm):
    classes = read_classes(llava_vlm.config, **FIELDS)
    options = {"max_new_tokens": 6, "batch_size": 4}
    plain = [a.tokens for a in llava_vlm.answer(IMAGES, PROMPTS, **options)]
    found = list(
        answer_in_two_passes(
            llava_vlm, IMAGES + IMAGES[:1], PROMPTS + PROMPTS[:1], classes, **options
        )
    )
    assert [a.index for a in found] == [0, 1, 2, 3, 4]
    assert found[4].tokens == found[0].tokens
    assert [a.tokens for a in found[:4]] != plain
    assert np.isfinite(found[0].readings.image_bn).all()
