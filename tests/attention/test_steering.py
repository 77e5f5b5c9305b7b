"""Steered attention against the dense oracle: prompts, cached decoding, every part and switch."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.attention.steered import (
    CHOICES,
    LAYOUTS,
    TWO_PROMPT_SEGMENTS,
    Layout,
    build,
    counts,
    read,
    steer,
    widen,
)
from vlm_jax.attention import Segment, Visibility, attend
from vlm_jax.attention.causal_projection import LARGEST_SCALE
from vlm_jax.attention.steering import (
    EnergyRescale,
    HeadGains,
    ImageBoost,
    Lens,
    LogitGains,
    Projection,
    Reallocation,
    Registers,
    Rows,
    Steering,
    VisualGains,
)
from vlm_jax.batch import Kind

GOLDEN = pathlib.Path(__file__).parents[1] / "decoding" / "golden_numeric.json"
WITHOUT_COUNTS = [choice for choice in CHOICES if not counts(choice)]


def steps_of(choice: str) -> int:
    """Tokens after the prompt: two where a row leaves something to the next, else one."""
    carries = "running" in str(CHOICES[choice]) or "prefill_cached" in str(CHOICES[choice])
    return 2 if carries else 1


def compare(layout, choice, seed, dtype, bar):
    """Both forms on one problem; the oracle is always in float64."""
    steps = steps_of(choice)
    with jax.enable_x64(dtype == "float64"):
        problem, steering = build(layout, seed, dtype, steps), steer(choice, layout, seed, dtype)
        found = jax.device_get(read(problem, steering))
    with jax.enable_x64(True):
        expected = jax.device_get(read(widen(problem), widen(steering), dense=True))
    assert found[0].dtype == found[1].dtype == dtype
    valid = problem.valid[..., None, None]
    error = lambda a, b: float(np.abs(a - b).max(initial=0))
    errors = [
        error(np.where(valid, found[0], 0), np.where(valid, expected[0], 0)),
        error(found[1], expected[1]),
        *(error(a, b) for a, b in zip(jax.tree.leaves(found[2]), jax.tree.leaves(expected[2]))),
    ]
    assert np.isfinite(found[0]).all()
    assert max(errors) <= bar, errors


def layout_of(choice: str) -> Layout:
    """The layouts in turn."""
    return LAYOUTS[list(CHOICES).index(choice) % len(LAYOUTS)]


@pytest.mark.parametrize("choice", CHOICES)
def test_every_part_equals_the_oracle(choice):
    layout = layout_of(choice)
    for seed in range(4):
        compare(layout, choice, seed, "float64", 1e-12)


@settings(max_examples=4, deadline=None)
@given(
    layout=st.sampled_from(LAYOUTS), choice=st.sampled_from([*CHOICES]), seed=st.integers(0, 10**6)
)
def test_all_layouts_equal_the_oracle(layout, choice, seed):
    compare(layout, choice, seed, "float64", 1e-12)


@settings(max_examples=4, deadline=None)
@given(
    layout=st.sampled_from(TWO_PROMPT_SEGMENTS),
    choice=st.sampled_from(WITHOUT_COUNTS),
    seed=st.integers(0, 10**6),
)
def test_two_prompt_segments_equal_the_oracle(layout, choice, seed):
    compare(layout, choice, seed, "float64", 1e-12)


@pytest.mark.parametrize("choice", ["all", "all shrink", "AIR* as released", "renormalised"])
def test_float32_is_within_its_bar(choice):
    """The rescale is a quotient of a difference: its condition number is its square."""
    bar = 2e-6 * (LARGEST_SCALE if counts(choice) else 1)
    for seed in range(4):
        compare(LAYOUTS[1], choice, seed, "float32", bar)


@pytest.mark.parametrize("choice", ["all", "AIR* as released"])
def test_prompts_of_several_tiles_equal_the_oracle(choice):
    compare(Layout(1, 520, 1, 2), choice, 0, "float64", 1e-12)


def test_choices_do_something_and_triggers_go_both_ways():
    for choice, switches in CHOICES.items():
        layout, steps = layout_of(choice), steps_of(choice)  # whose programs are compiled already
        with jax.enable_x64(True):
            pairs = [
                jax.device_get(
                    [
                        read(build(layout, n, steps=steps), s)
                        for s in (steer(choice, layout, n), None)
                    ]
                )
                for n in range(8)
            ]
        outs = [zip(found[:2], plain[:2]) for found, plain in pairs]
        change = max(np.abs(a - b).max() for pair in outs for a, b in pair)
        assert (change > 1e-3) == (choice != "nothing"), choice
        mean = lambda flag, pairs=pairs: np.mean(
            [getattr(reading, flag) for (_, _, readings), _ in pairs for reading in readings]
        )
        flags = ["perception_bn", "reasoning_bn"] if "visual_gains" in switches else []
        for flag in [*flags, *(["fired_bn"] if "reallocation" in switches else [])]:
            assert 0 < mean(flag) < 1, (choice, flag)


@pytest.mark.parametrize(("dtype", "prefill"), [("float32", "off"), ("bfloat16", "official")])
def test_identities_keep_every_bit_in_prompts_of_several_tiles(dtype, prefill):
    """Gains of one and heads that are off, with everything read that could be."""
    layout = Layout(1, 600, 1, 2)
    narrow = lambda a: a.astype(dtype) if a.dtype == np.float32 else a
    problem = jax.tree.map(narrow, build(layout, 0, "float32", steps=1, images=1))
    full = lambda value: np.full((1, 2), value, np.float32)
    steering = Steering(
        energy_rescale=EnergyRescale(full(0), full(2), prefill=prefill),
        logit_gains=LogitGains(full(1), full(1)),
        lens=Lens(full(0)),
        head_gains=HeadGains(full(1)),
        visual_gains=VisualGains(full(0.5), full(1), full(0.4), full(1)),
        reallocation=Reallocation(full(1), full(1), full(0)),
        projection=Projection(full(0), full(0.3), zero_trace="running", prefill="causal"),
        image_boost=ImageBoost(full(0)),
        registers=Registers(full(np.inf), full(1024), full(0), mode="budget", log_length=True),
    )
    for found, vanilla in zip(read(problem, steering)[:2], read(problem, None)[:2]):
        np.testing.assert_array_equal(np.asarray(found, "f"), np.asarray(vanilla, "f"))


def test_registers_are_the_published_masks():
    """Weights of a whole prompt, by its definition with slots above the diagonal."""
    golden = json.loads(GOLDEN.read_text())["farsight"]
    scores, sigma = jnp.asarray(golden["scores"]), np.full((1, 1), golden["sigma"], np.float32)
    length = len(scores)
    places = jnp.arange(length, dtype=jnp.int32)[None]
    one, ones = jnp.eye(length)[None, None], np.ones((1, 1), np.float32)
    kinds = jnp.full((1, length), Kind.TEXT, jnp.int8)
    rows = Rows(jnp.zeros((1, length), bool), jnp.ones((1, length), bool), places[:, -1])
    weights = jax.jit(functools.partial(attend, scale=1.0))(
        scores[None, :, None],
        [Segment(one, one, Visibility(order=places), kinds)],
        Visibility(order=places),
        steering=Steering(registers=Registers(sigma, ones, 0 * ones)),
        rows=rows,
    )[0]
    np.testing.assert_allclose(weights[0, :, 0], golden["attention"], atol=1e-6)
    np.testing.assert_allclose(weights[0, :, 0].sum(-1), golden["row_mass"], rtol=1e-5)
