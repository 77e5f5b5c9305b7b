"""Two passes: classes of the unsteered prompt, each example its own gains."""

import dataclasses

import numpy as np
import pytest

from tests.reference import IMAGES, PROMPTS
from vlm_jax.errors import ConfigError
from vlm_jax.steering.methods import build
from vlm_jax.steering.methods.functional_heads import functional_heads
from vlm_jax.steering.methods.policy import policy
from vlm_jax.steering.two_pass import answer_in_two_passes

FIELDS = {
    "perception_from": 0.3,
    "reasoning_to": 0.1,
    "reasoning_first_layer": 0,
    "perception_last_layer": 2,
    "perception_gain": 3.0,
    "reasoning_gain": 1.5,
}
OPTIONS = {"max_new_tokens": 6, "batch_size": 4}


def test_two_passes_equal_the_cached_prefill_where_depth_does_not_matter(llava_vlm):
    """With gains in the last layer alone, no ratio is read on a changed stream."""
    last = {**FIELDS, "reasoning_first_layer": 2, "reasoning_to": 0.5, "perception_from": 1.0}
    found = list(
        answer_in_two_passes(
            llava_vlm,
            IMAGES,
            PROMPTS,
            steering=functional_heads(llava_vlm.config, **last),
            **OPTIONS,
        )
    )
    steering = functional_heads(llava_vlm.config, mode="prefill_cached", **last)
    expected = {a.index: a for a in llava_vlm.answer(IMAGES, PROMPTS, steering=steering, **OPTIONS)}
    assert sorted(a.index for a in found) == [0, 1, 2, 3]
    for answer in found:
        assert answer.tokens == expected[answer.index].tokens
    reasoning = np.stack([answer.readings.reasoning_bn for answer in found])
    assert reasoning[:, 2].any()
    assert not reasoning[:, :2].any()


def test_two_passes_change_answers_and_each_prompt_reads_for_itself(llava_vlm):
    steering = functional_heads(llava_vlm.config, passes=2, **FIELDS)
    plain = {a.index: a.tokens for a in llava_vlm.answer(IMAGES, PROMPTS, **OPTIONS)}
    ask = lambda images, prompts: {
        a.index: a
        for a in answer_in_two_passes(llava_vlm, images, prompts, steering=steering, **OPTIONS)
    }
    found = ask(IMAGES + IMAGES[:1], PROMPTS + PROMPTS[:1])
    assert sorted(found) == [0, 1, 2, 3, 4]
    assert found[4].tokens == found[0].tokens
    assert {n: found[n].tokens for n in plain} != plain
    assert found[2].tokens == ask(IMAGES[2:3], PROMPTS[2:3])[0].tokens
    assert np.isfinite(found[0].readings.image_bn).all()


def test_policies_keep_the_gain_of_neutral_heads(llava_vlm):
    """Every head is neutral, so beta alone acts, in one pass or two."""
    none = {"perception_from": 1.0, "reasoning_to": 0.0}
    steering = policy(llava_vlm.config, policy="C", enhance="reasoning", alpha=1.5, **none)
    one = {
        a.index: a.tokens for a in llava_vlm.answer(IMAGES, PROMPTS, steering=steering, **OPTIONS)
    }
    two = answer_in_two_passes(llava_vlm, IMAGES, PROMPTS, steering=steering, **OPTIONS)
    assert {a.index: a.tokens for a in two} == one


@dataclasses.dataclass(frozen=True)
class Failure:
    index: int
    reason: str


def test_a_sample_that_cannot_be_read_fails_alone(llava_vlm):
    class Model:
        def answer(self, images, prompts, **settings):
            if settings["max_new_tokens"] == 1:
                settings["batch_size"] = 4
                yield Failure(1, "torn")
                kept = [n for n in range(len(prompts)) if n != 1]
            else:
                kept = list(range(len(prompts)))
            asked = [images[n] for n in kept], [prompts[n] for n in kept]
            for made in llava_vlm.answer(*asked, **settings):
                yield dataclasses.replace(made, index=kept[made.index])

    steering = functional_heads(llava_vlm.config, **FIELDS)
    found = list(answer_in_two_passes(Model(), IMAGES, PROMPTS, steering=steering, **OPTIONS))
    assert [a.index for a in found if isinstance(a, Failure)] == [1]
    assert sorted(a.index for a in found) == [0, 1, 2, 3]


def test_two_passes_need_classes(llava_vlm):
    fixed = functional_heads(llava_vlm.config, control="all", **FIELDS)
    with pytest.raises(ConfigError, match="two passes need gains by class"):
        list(answer_in_two_passes(llava_vlm, IMAGES, PROMPTS, steering=fixed, **OPTIONS))
    with pytest.raises(ConfigError, match="mode='prefill_cached' has no meaning"):
        build("functional_heads", llava_vlm.config, passes=2, mode="prefill_cached")
    with pytest.raises(ConfigError, match="passes must be a whole number from 1 to 2"):
        build("policy", llava_vlm.config, passes=3)
