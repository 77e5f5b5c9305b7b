"""Methods by name, acting together, or each on its own examples of one batch."""

import dataclasses

import jax
import ml_collections
import numpy as np
import pytest

from tests.reference import IMAGES, PROMPTS
from tests.steering.method_fixtures import model_config
from vlm_jax.attention.steering import Steering
from vlm_jax.errors import ConfigError
from vlm_jax.steering.combine import stack
from vlm_jax.steering.config import (
    is_random,
    read_method,
    with_seed,
    without_control,
)
from vlm_jax.steering.methods import METHODS, build, compose, settings_of

SMALL = model_config(6, 8)
HEADS = ((1, 2), (4, 0))
VECTORS = "activation_addition", "vti"


def needed(name: str) -> dict:
    """Returns what a method has no default for."""
    listed = settings_of(name)
    given = {"heads": HEADS} if listed.get("heads", None) == () else {}
    if "vectors" in listed:
        given["vectors"] = np.ones((6, SMALL.decoder.hidden_size), np.float32)
    return given


def test_every_method_is_built_by_name():
    for name in METHODS.names():
        leaves = jax.tree.leaves(build(name, SMALL, **needed(name)))
        assert leaves
        wide = SMALL.decoder.hidden_size if name in VECTORS else 8
        assert all(leaf.shape == (1, 6, wide) and leaf.dtype == np.float32 for leaf in leaves), name


def test_no_method_looks_ahead_or_at_other_examples_unless_it_is_asked_to():
    """But visual gains, one number for all rows of a prompt, and what acts in rows of images."""
    own = {"visual_gains": None, "vectors": None, "registers": None}
    looks = lambda steering: not dataclasses.replace(steering, **own).shares_prefix
    for name in METHODS.names():
        logit = {"qk_rescale": "logit"} if "qk_rescale" in settings_of(name) else {}
        steering = build(name, SMALL, **needed(name), **logit)
        assert not looks(steering), name
        assert (steering.visual_gains is not None) == (name in ("functional_heads", "policy"))
        assert (steering.vectors is not None) == (name in VECTORS)
        assert (steering.registers is not None) == (name == "farsight")
    assert looks(build("air_star", SMALL, heads=HEADS, faithful=True))
    assert looks(build("air", SMALL, heads=HEADS, prefill="official"))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: build("ari", SMALL), "did you mean 'air'"),
        (lambda: build("air", SMALL, head=HEADS), r"no setting 'head'.*did you mean 'heads'"),
        (lambda: build("air", SMALL, heads=[(9, 9)]), "method 'air': heads: there is no head"),
        (lambda: compose([], SMALL), "at least one method"),
        (
            lambda: compose([("air", {"heads": HEADS}), ("adhh", {"heads": HEADS})], SMALL),
            "'air' and 'adhh' both set reallocation",
        ),
        (lambda: read_method({"heads": HEADS}, SMALL), "names no method"),
        (lambda: read_method([3], SMALL), "a method is a mapping"),
        (lambda: read_method("aird", SMALL), "no method 'aird'.*did you mean 'air'"),
        (
            lambda: read_method(
                {"method": "air", "heads": HEADS, "visual_gain": 1, "text_gain": 1, "shrinkage": 0},
                SMALL,
            ),
            "No example uses the steering",
        ),
    ],
)
def test_one_clear_error_for_each_bad_composition(call, match):
    with pytest.raises(ConfigError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_the_order_of_methods_means_nothing():
    config = model_config(3, 4)
    gains = ("functional_heads", {"reasoning_first_layer": 0, "perception_last_layer": 2})
    others = ("air", {"heads": ((0, 1),)})
    one, other = compose([gains, others], config), compose([others, gains], config)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other)):
        assert np.array_equal(a, b)


def test_a_config_section_is_a_method():
    section = ml_collections.ConfigDict({"method": "air", "heads": HEADS, "visual_gain": 2.0})
    found = read_method(section, SMALL)
    assert found.reallocation.image.max() == 2
    both = read_method([section, {"method": "functional_heads", "perception_gain": 1.5}], SMALL)
    assert both.reallocation is not None
    assert both.visual_gains.perception_gain.max() == np.float32(1.5)
    assert jax.tree.structure(both.reallocation) == jax.tree.structure(found.reallocation)


def test_draws_of_a_random_control():
    section = [
        {"method": "air", "heads": HEADS, "control": "random"},
        {"method": "functional_heads"},
    ]
    assert is_random(section)
    assert not is_random({"method": "air", "heads": HEADS, "control": "all"})
    seeded = with_seed(section, 7)
    assert seeded[0]["seed"] == 7
    assert "seed" not in seeded[1]
    assert without_control(seeded) == [{"method": "air", "heads": HEADS}, section[1]]


def test_a_stack_runs_each_setting_as_if_alone(llava_vlm):
    config = llava_vlm.config
    heads = ((0, 1), (1, 3), (2, 2))
    settings = [
        build("air", config, heads=heads, text_threshold=0.0),
        Steering(),
        build("functional_heads", config, perception_from=0.1, perception_gain=3.0),
        build("adhh", config, heads=heads, threshold=0.1),
    ]
    batch = llava_vlm.processor.batch([IMAGES[0]] * 4, [PROMPTS[0]] * 4)
    logits = lambda steering: np.asarray(
        llava_vlm.generator.logits(llava_vlm.params, batch, steering)
    )
    length = int(batch.lengths_b[0])
    stacked = stack(settings)
    together = logits(stacked)[:, :length]
    for index in range(len(settings)):
        alone = logits(jax.tree.map(lambda leaf, row=index: leaf[row : row + 1], stacked))
        np.testing.assert_allclose(together[index], alone[0, :length], atol=1e-5, rtol=0)
    np.testing.assert_allclose(together[1], logits(None)[1, :length], atol=1e-5, rtol=0)
    assert all(np.abs(together[index] - together[1]).max() > 1e-3 for index in (0, 2, 3))


def test_rows_of_a_stack_name_their_setting():
    one, two = (build("adhh", SMALL, heads=HEADS, threshold=t) for t in (0.4, 0.5))
    found = stack([one, two], rows=[1, 0, 1]).reallocation.threshold[:, 1, 2]
    np.testing.assert_allclose(found, [0.5, 0.4, 0.5])


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda a, b: stack([]), "at least one"),
        (lambda a, b: stack([a, b], rows=[0, 2]), "no example has 2"),
        (lambda a, b: stack([a, b], rows=[1, 1]), "steering 0 is used by no example"),
        (lambda a, b: stack([stack([a, a]), b]), "same for all examples"),
    ],
)
def test_a_stack_refuses_nonsense(call, match):
    one, two = (build("adhh", SMALL, heads=HEADS, threshold=t) for t in (0.4, 0.5))
    with pytest.raises(ConfigError, match=match):
        call(one, two)


def test_a_stack_needs_one_value_of_each_switch():
    skip, running = (build("air", SMALL, heads=HEADS, zero_trace=z) for z in ("skip", "running"))
    with pytest.raises(ConfigError, match=r"projection\.zero_trace is 'running' and 'skip'"):
        stack([skip, running])
    faithful = build("air_star", SMALL, heads=HEADS, faithful=True)
    with pytest.raises(ConfigError, match="would sum over settings"):
        stack([faithful, faithful])
