"""Steering through whole models: bit-exact identities, one compilation, batches, composition."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import vlm_jax
from tests import tiny
from tests.compiles import counted
from tests.reference import IMAGES, PROMPTS
from vlm_jax.attention.steering import (
    EnergyRescale,
    HeadGains,
    Lens,
    LogitGains,
    Projection,
    Reallocation,
    Steering,
    VisualGains,
)
from vlm_jax.decoding import DecodeSettings, StepCounts
from vlm_jax.models import abstract, merge

STEPS, SLOTS = 3, 4


def leaf(vlm, value, examples=1):
    shape = (examples, vlm.config.decoder.num_layers, vlm.config.decoder.num_heads)
    return np.broadcast_to(np.asarray(value, np.float32).reshape(-1, 1, 1), shape).copy()


def drawn(vlm, seed, examples=1):
    """All parts, with other values in every head."""
    rng = np.random.default_rng(seed)
    draw = lambda low, high: rng.uniform(low, high, leaf(vlm, 0, examples).shape).astype("f")
    return Steering(
        energy_rescale=EnergyRescale(draw(-1, 1), draw(0.8, 1.2)),
        logit_gains=LogitGains(draw(0.8, 1.2), draw(0.8, 1.2)),
        lens=Lens(draw(0.0, 0.4)),
        head_gains=HeadGains(draw(0.5, 1.5)),
        visual_gains=VisualGains(draw(0.5, 0.9), draw(1, 1.5), draw(0.0, 0.4), draw(0.5, 1)),
        reallocation=Reallocation(draw(1, 3), draw(0, 1), draw(0.0, 0.6)),
        projection=Projection(draw(-1, 1), draw(0, 0.4)),
    )


def neutral_values(vlm):
    """Every part at its identity, every trigger and class alive."""
    one, zero = leaf(vlm, 1), leaf(vlm, 0)
    return Steering(
        logit_gains=LogitGains(one, one),
        lens=Lens(zero),
        head_gains=HeadGains(one),
        visual_gains=VisualGains(leaf(vlm, 0.6), one, leaf(vlm, 0.4), one),
        reallocation=Reallocation(one, one, zero, renormalise=True),
        projection=Projection(one, zero),
    )


def no_head_listed(vlm):
    """Strong settings that no head is listed for."""
    strong = leaf(vlm, 3.5)
    inf, off = leaf(vlm, np.inf), leaf(vlm, 0)
    return Steering(
        energy_rescale=EnergyRescale(off, strong),
        visual_gains=VisualGains(inf, strong, -inf, strong, mode="prefill_cached"),
        reallocation=Reallocation(strong, off, inf),
        projection=Projection(off, leaf(vlm, 0.3), zero_trace="running", prefill="causal"),
    )


def make_batch(vlm):
    return vlm.processor.batch(IMAGES, PROMPTS)


@functools.cache
def stepper(vlm):
    graphdef = abstract(vlm.config)[0]
    return jax.jit(lambda params, *rest: merge(graphdef, params).step(*rest))


def read_logits(vlm, batch, steering, tokens):
    """Logits after the prompts, and after some given tokens, [1 + STEPS, B, V]."""
    generator = vlm.generator
    steering = generator._put.steering(steering)
    logits, cache, _ = generator.programs.prefill(
        vlm.params, generator._put.rows(batch), steering, slots=SLOTS
    )
    found = [np.asarray(logits)]
    for index in range(STEPS):
        logits, cache, _ = stepper(vlm)(vlm.params, tokens[:, index], cache, steering)
        found.append(np.asarray(logits))
    return np.stack(found)


def prompt_logits(vlm, batch, steering):
    """Logits at all real places of the prompts."""
    found = np.asarray(vlm.generator.logits(vlm.params, batch, steering))
    return found[np.asarray(batch.kinds_bt) != 0]


def generate(vlm, batch, steering, count=STEPS):
    made = vlm.generator(
        vlm.params,
        batch,
        DecodeSettings(max_new_tokens=count),
        slots=SLOTS,
        pad_id=0,
        steering=steering,
    )
    return made.tokens_bn[:, :count], made.readings


@pytest.fixture(scope="module", params=["llava", "qwen2_5_vl"])
def shallow(request, tmp_path_factory):
    """A model of two layers: its programs are compiled with every optimisation."""
    folder, layers = tmp_path_factory.mktemp("shallow") / request.param, {"num_hidden_layers": 2}
    if request.param == "llava":
        return vlm_jax.load(tiny.llava(folder, text=layers, vision=layers))
    vision = {"depth": 2, "fullatt_block_indexes": [1]}
    return vlm_jax.load(tiny.qwen2_5_vl(folder, text=layers, vision=vision))


@pytest.mark.bits
def test_neutral_values_keep_every_bit_of_the_model(shallow):
    vlm = shallow
    batch, steering = make_batch(vlm), neutral_values(vlm)
    tokens, _ = generate(vlm, batch, None)
    np.testing.assert_array_equal(generate(vlm, batch, steering)[0], tokens)
    same(vlm, batch, steering, tokens)


@pytest.mark.bits
def test_unlisted_heads_keep_every_bit_of_the_model(shallow):
    vlm = shallow
    batch = make_batch(vlm)
    same(vlm, batch, no_head_listed(vlm), generate(vlm, batch, None)[0])


def same(vlm, batch, steering, tokens):
    np.testing.assert_array_equal(
        prompt_logits(vlm, batch, steering), prompt_logits(vlm, batch, None)
    )
    np.testing.assert_array_equal(
        read_logits(vlm, batch, steering, tokens), read_logits(vlm, batch, None, tokens)
    )


def test_each_example_has_its_own_steering_and_meets_no_other(llava_vlm):
    """In one batch: four settings; and a sample alone, in another padding."""
    vlm = llava_vlm
    batch, steering = make_batch(vlm), drawn(vlm, 0, examples=4)
    tokens, _ = generate(vlm, batch, None)
    whole = read_logits(vlm, batch, steering, tokens)
    change = np.abs(whole - read_logits(vlm, batch, None, tokens)).max(axis=(0, 2))
    assert (change > 1e-2).all()
    for row in (1, 3):
        alone = vlm.processor.batch([IMAGES[row]], [PROMPTS[row]])
        own = jax.tree.map(lambda a, row=row: a[row : row + 1], steering)
        found = read_logits(vlm, alone, own, tokens[row : row + 1])
        np.testing.assert_allclose(found[:, 0], whole[:, row], atol=3e-5, rtol=0)


def test_text_only_samples_keep_their_logits(llava_vlm):
    """Sample 2 has no image: nothing weighs its text against one."""
    vlm = llava_vlm
    batch = make_batch(vlm)
    tokens, _ = generate(vlm, batch, None)
    steering = dataclasses.replace(
        drawn(vlm, 1), energy_rescale=None, head_gains=None, projection=None
    )
    found, vanilla = (read_logits(vlm, batch, s, tokens) for s in (steering, None))
    np.testing.assert_allclose(found[:, 2], vanilla[:, 2], atol=3e-5, rtol=0)
    assert (np.abs(found - vanilla).max(axis=(0, 2))[[0, 1, 3]] > 1e-2).all()


def test_a_sweep_compiles_once(llava_vlm):
    """A hundred points over strengths, thresholds and head sets."""
    vlm = llava_vlm
    small = vlm.processor.batch([IMAGES[1]], [PROMPTS[1]])
    generate(vlm, small, drawn(vlm, 0), 2)
    before, answers = vlm.generator.compilations, set()
    with counted() as compiled:
        for seed in range(100):
            with jax.transfer_guard("disallow"):
                tokens, readings = generate(vlm, small, drawn(vlm, seed), 2)
            answers.add((*tokens[0].tolist(), float(readings.fired_bn.sum())))
    assert vlm.generator.compilations == before
    assert not compiled
    assert len(answers) > 5


def test_each_step_counts_the_heads_of_its_row(llava_vlm):
    """Against steps taken one by one; behind a row's end there is nothing to count."""
    vlm = llava_vlm
    batch, steering = make_batch(vlm), drawn(vlm, 0, examples=4)
    ask = lambda **options: vlm.generator(
        vlm.params, batch, DecodeSettings(max_new_tokens=SLOTS), steering=steering, **options
    )
    made = ask()
    placed = vlm.generator._put.steering(steering)
    rows = vlm.generator._put.rows(batch)
    _, cache, watched = vlm.generator.programs.prefill(vlm.params, rows, placed, slots=SLOTS)
    found = []
    for index in range(SLOTS):
        found.append(watched.readings)
        token = made.tokens_bn[:, index]
        _, cache, watched = stepper(vlm)(vlm.params, token, cache, placed)
    for name in ("fired", "perception", "reasoning"):
        expected = np.stack([getattr(step, f"{name}_bn") for step in found], axis=1).sum(-1)
        counts = getattr(made.counts, name)
        np.testing.assert_array_equal(counts, expected)
        assert len(np.unique(counts)) > 2
    stopped = ask(stop_ids=[int(made.tokens_bn[0, 0])])
    steps = np.arange(SLOTS)[None] < (stopped.lengths_b + stopped.ended_b)[:, None]
    assert steps[0].sum() == 1
    expected = np.where(steps[..., None], made.counts.fired, 0)
    np.testing.assert_array_equal(stopped.counts.fired, expected)


def test_only_parts_that_choose_heads_are_counted(llava_vlm):
    every = drawn(llava_vlm, 0)
    count = lambda steering: StepCounts.empty((1, SLOTS, 3), steering)
    assert count(None) is None
    assert count(Steering(lens=every.lens, head_gains=every.head_gains)) is None
    fired = count(Steering(reallocation=every.reallocation))
    assert fired is not None
    assert fired.fired.shape == (1, SLOTS, 3)
    assert fired.perception is None
    classes = count(Steering(visual_gains=every.visual_gains))
    assert classes is not None
    assert classes.fired is None
    assert classes.perception.shape == classes.reasoning.shape == (1, SLOTS, 3)


def test_gains_of_zero_remove_a_head(llava_vlm):
    """A head gain composes with the weights: zero is the same as a head without output rows."""
    vlm = llava_vlm
    small = vlm.processor.batch([IMAGES[1]], [PROMPTS[1]])
    gain = leaf(vlm, 1)
    gain[0, 1, 2] = 0
    found = vlm.generator.logits(vlm.params, small, Steering(head_gains=HeadGains(gain)))
    path = "decoder/layers/1/wo_nhd"
    cut = vlm.with_params(vlm.params | {path: vlm.params[path].at[2].set(0)})
    expected = cut.generator.logits(cut.params, small)
    real = np.asarray(small.kinds_bt) != 0
    np.testing.assert_allclose(found[real], expected[real], atol=3e-5, rtol=0)
    assert np.abs(np.asarray(found - vlm.generator.logits(vlm.params, small)))[real].max() > 1e-2
