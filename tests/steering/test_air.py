"""AIR, AIR* and AD-HH: their leaves, their presets, and what they do to a model."""

import jax
import numpy as np
import pytest

from tests.reference import IMAGES, PROMPTS
from tests.steering.method_fixtures import model_config
from vlm_jax.decoding import DecodeSettings
from vlm_jax.errors import ConfigError
from vlm_jax.steering.calibration import calibrate
from vlm_jax.steering.controls import choose_heads
from vlm_jax.steering.heads import HeadSets, per_layer
from vlm_jax.steering.layers import scaled_layers
from vlm_jax.steering.methods.adhh import adhh
from vlm_jax.steering.methods.air import air
from vlm_jax.steering.methods.air_star import air_star
from vlm_jax.steering.presets import HEAD_SETS

LLAVA = model_config(32, 32)
SMALL = model_config(6, 8)
HEADS = ((1, 2), (4, 0))


def listed(leaf, neutral) -> list[tuple[int, int]]:
    return [tuple(pair) for pair in np.argwhere(leaf[0] != neutral).tolist()]


def same_leaves(one, other) -> bool:
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b) for a, b in leaves)


def test_air_acts_on_the_first_twenty_published_heads():
    steering = air(LLAVA, heads="llava-1.5-7b")
    part = steering.reallocation
    assert listed(part.threshold, np.inf) == sorted(HEAD_SETS["llava-1.5-7b"].sensitive[:20])
    assert {*part.image[0].ravel().tolist()} == {1, 3.5}
    assert {*part.text[0].ravel().tolist()} == {1, np.float32(0.1)}
    assert listed(part.image, 1) == listed(part.text, 1) == listed(part.threshold, np.inf)
    assert (part.renormalise, part.text_includes_system, part.trigger_reduce) == (
        False,
        False,
        "sample",
    )
    assert listed(steering.projection.on, 0) == listed(part.threshold, np.inf)
    assert steering.projection.beta.max() == np.float32(0.3)
    assert (steering.projection.zero_trace, steering.projection.prefill) == ("skip", "off")
    assert all(leaf.shape == (1, 32, 32) for leaf in jax.tree.leaves(steering))
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(steering))


def test_the_modules_of_air_make_up_the_whole():
    whole = air(SMALL, heads=HEADS)
    first = air(SMALL, heads=HEADS, modules="reallocation")
    second = air(SMALL, heads=HEADS, modules="projection")
    assert first.projection is None
    assert second.reallocation is None
    assert same_leaves(whole.reallocation, first.reallocation)
    assert same_leaves(whole.projection, second.projection)


def test_adhh_is_reallocation_without_an_image_gain():
    general = air(
        SMALL,
        heads=HEADS,
        modules="reallocation",
        visual_gain=1.0,
        text_gain=0.0,
        text_threshold=0.5,
    )
    assert same_leaves(general, adhh(SMALL, heads=HEADS, threshold=0.5))
    assert adhh(SMALL, heads=HEADS).reallocation.threshold[0, 1, 2] == np.float32(0.4)


def test_air_star_covers_the_released_layers():
    steering = air_star(LLAVA, heads="llava-1.5-7b")
    layers = lambda leaf, neutral: sorted({layer for layer, _ in listed(leaf, neutral)})
    assert layers(steering.logit_gains.image, 1) == list(range(9, 15))
    assert layers(steering.logit_gains.system, 1) == list(range(9, 15))
    assert layers(steering.lens.strength, 0) == list(range(5, 18))
    assert layers(steering.projection.on, 0) == list(range(5, 18))
    assert len(listed(steering.projection.on, 0)) == 13 * 32
    assert len(listed(steering.reallocation.threshold, np.inf)) == 20
    assert steering.reallocation.text.min() == 0
    assert steering.projection.beta.max() == np.float32(0.1)
    assert steering.projection.prefill == "causal"
    assert steering.reallocation.trigger_reduce == "sample"


def test_faithful_air_star_is_acausal_and_sums_over_the_batch():
    steering = air_star(LLAVA, heads="llava-1.5-7b", faithful=True)
    assert steering.projection.prefill == "official"
    assert steering.reallocation.trigger_reduce == "batch_sum"


def test_the_energy_rescale_is_off_until_it_is_asked_for():
    assert air(SMALL, heads=HEADS).energy_rescale is None
    assert air_star(SMALL, heads=HEADS).energy_rescale is None
    paper = air(SMALL, heads=HEADS, qk_rescale="logit").energy_rescale
    assert listed(paper.on, 0) == sorted(HEADS)
    assert paper.prefill == "off"
    for faithful, prefill in ((False, "off"), (True, "official")):
        part = air_star(
            LLAVA, heads="llava-1.5-7b", faithful=faithful, qk_rescale="logit"
        ).energy_rescale
        assert listed(part.on, 0) == [(layer, n) for layer in range(5, 18) for n in range(32)]
        assert (part.target == 1).all()
        assert part.prefill == prefill
    with pytest.raises(ConfigError, match="faithful=True projects prompts as released"):
        air_star(LLAVA, heads="llava-1.5-7b", faithful=True, prefill="causal")


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 6, 28, 32, 40, 60])
def test_layer_ranges_scale_with_depth(layers):
    chosen = scaled_layers(5, 17, layers)
    assert len(chosen) >= 1
    assert chosen[0] >= 0
    assert chosen[-1] < layers
    assert abs(chosen.start / layers - 5 / 32) <= 0.5 / layers
    if layers == 40:
        assert (chosen[0], chosen[-1]) == (6, 21)


@pytest.mark.parametrize("method", [air, adhh, air_star])
@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({}, "heads says no head"),
        ({"heads": "llava-1.5-7b"}, "32 layers of 32 heads, but this one has 6 of 8"),
        ({"heads": "llava-1.5-7"}, "did you mean 'llava-1.5-7b'"),
        ({"heads": [(6, 0)]}, r"no head \(6, 0\); the model has layers 0 to 5"),
        ({"heads": [(0, 8)]}, r"no head \(0, 8\)"),
        ({"heads": [(0, -1)]}, r"no head \(0, -1\)"),
        ({"heads": [(0, 1), (0, 1)]}, "listed twice"),
        ({"heads": [3]}, "a head is a pair"),
        ({"heads": HEADS, "count": 3}, "list 2 sensitive heads, so count=3 cannot be"),
        ({"heads": HEADS, "count": 0}, "count=0 cannot be"),
        ({"heads": HEADS, "control": "other"}, "list 0 insensitive heads"),
        ({"heads": HEADS, "control": "inert"}, "list 0 inert heads"),
        ({"heads": HEADS, "control": "rnd"}, "did you mean 'random'"),
        ({"heads": HEADS, "control": "no_sinks"}, "mass before the image"),
        ({"heads": "all", "control": "random"}, "random heads of these layers are the same"),
    ],
)
def test_one_clear_error_for_each_bad_head(method, fields, match):
    with pytest.raises(ConfigError, match=match) as caught:
        method(SMALL, **fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"visual_gain": float("nan")}, "visual_gain must be a finite number"),
        ({"text_gain": float("inf")}, "text_gain must be a finite number"),
        ({"text_threshold": 1.5}, "text_threshold must be a finite number from 0 to 1"),
        ({"shrinkage": -0.1}, "shrinkage must be"),
        ({"shrinkage": "much"}, "shrinkage must be"),
        ({"modules": "R"}, "modules must be one of"),
        ({"zero_trace": "on"}, "zero_trace must be one of"),
        ({"prefill": "acausal"}, "prefill must be one of"),
        ({"renormalise": 1}, "renormalise must be True or False"),
        ({"qk_rescale": "weights"}, "did you mean 'weight'"),
        ({"qk_rescale": "weight"}, "is an edit of weights: make the folder by --job=fold"),
        ({"modules": "reallocation", "zero_trace": "running"}, "zero_trace is of a module that"),
        ({"modules": "reallocation", "prefill": "causal"}, "prefill is of a module that"),
        ({"modules": "projection", "renormalise": True}, "renormalise is of a module that"),
    ],
)
def test_one_clear_error_for_each_bad_strength(fields, match):
    with pytest.raises(ConfigError, match=match):
        air(SMALL, heads=HEADS, **fields)


def test_air_star_refuses_layers_that_are_not_there():
    with pytest.raises(ConfigError, match="projection_layers must be the first and last"):
        air_star(SMALL, heads=HEADS, projection_layers=(2, 6))
    with pytest.raises(ConfigError, match="rebalance_layers must be the first and last"):
        air_star(SMALL, heads=HEADS, rebalance_layers=(3, 2))


def test_random_heads_are_matched_by_layer():
    sets = HEAD_SETS["llava-1.5-7b"]
    named = choose_heads(sets, None)
    draws = [choose_heads(sets, None, "random", seed) for seed in range(6)]
    assert len(set(draws)) == 6
    for drawn in draws:
        assert per_layer(drawn) == per_layer(named)
        assert len(set(drawn)) == 20
    assert draws[3] == choose_heads(sets, None, "random", 3)


def test_random_heads_cover_a_layer_evenly():
    sets = HeadSets("two", (1, 4), sensitive=((0, 0), (0, 1)))
    counts = np.zeros(4)
    for seed in range(400):
        for _, head in choose_heads(sets, None, "random", seed):
            counts[head] += 1
    assert np.all(np.abs(counts - 200) < 45)


def test_the_other_controls_of_a_ranking():
    sets = HEAD_SETS["llava-1.5-7b"]
    assert choose_heads(sets, 20, "other") == sets.insensitive[:20]
    assert len(choose_heads(sets, None, "all")) == 1024
    mass = np.zeros((6, 8))
    mass[HEADS[0]] = 0.95
    known = HeadSets("known", (6, 8), sensitive=HEADS, inert=((3, 3), (2, 2)), system_mass_ln=mass)
    assert choose_heads(known, 1, "inert") == ((3, 3),)
    assert choose_heads(known, None, "no_sinks") == (HEADS[1],)


def test_readings_say_where_it_fired(llava_vlm):
    heads = ((0, 1), (2, 3))
    options = {"max_new_tokens": 6, "batch_size": 4}
    # Without an image all mass is on text, and no threshold is out of reach.
    shown = [row for row, images in enumerate(IMAGES) if images]
    asked = [IMAGES[row] for row in shown], [PROMPTS[row] for row in shown]
    plain = [answer.tokens for answer in llava_vlm.answer(*asked, **options)]
    for threshold, rate in ((0.0, 1.0), (1.0, 0.0)):
        steering = air(
            llava_vlm.config,
            heads=heads,
            modules="reallocation",
            text_threshold=threshold,
            visual_gain=20.0,
        )
        answers = list(llava_vlm.answer(*asked, steering=steering, **options))
        found = calibrate(answer.readings for answer in answers)
        assert np.mean([found.fired_ln[head] for head in heads]) == pytest.approx(rate)
        assert found.fired_ln[1, 1] == 0
        tokens = [answer.tokens for answer in answers]
        assert (tokens == plain) == (rate == 0)


def test_air_star_runs_on_a_model(llava_vlm):
    steering = air_star(llava_vlm.config, heads=((1, 0), (2, 2)))
    batch = llava_vlm.processor.batch(IMAGES, PROMPTS)
    made = llava_vlm.generator(
        llava_vlm.params, batch, DecodeSettings(max_new_tokens=2), steering=steering
    )
    assert np.isfinite(made.readings.text_bn).all()
    assert made.readings.fired_bn.shape == (4, 3, 4)
