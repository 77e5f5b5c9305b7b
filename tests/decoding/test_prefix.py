"""Prompts that share prefixes against the same prompts read whole."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.decoding.conftest import SLOTS, generate
from tests.decoding.test_steered import drawn, leaf
from tests.prefixes import cut
from tests.reference import IMAGES
from vlm_jax.attention.causal_projection import LARGEST_SCALE
from vlm_jax.attention.steering import Lens, Steering
from vlm_jax.decoding import DecodeSettings
from vlm_jax.decoding.generate import PART, compile_ahead

BAR = 1.5e-5
"""Largest float32 difference of logits of order 1 that another order of summation makes."""

SAMPLES = [0, 1, 1, 3, 0, 1]
QUESTIONS = [
    "Describe both.",
    "What is this thing, in some detail please?",
    "Why?",
    "Compare.",
    "Which is larger?",
    "Is there a dog?",
]
OWNERS, FIRSTS = [0, 1, 1, 2, 0, 1], [0, 1, 3]


@pytest.fixture(scope="module")
def whole(vlm):
    """Six questions about three lists of images, two and three images among them."""
    return vlm.processor.batch([IMAGES[sample] for sample in SAMPLES], QUESTIONS)


@pytest.fixture(scope="module")
def parts(whole):
    """Ragged prefixes and suffixes, both with padding behind their longest row."""
    return cut(whole, FIRSTS, prefix_pads=5, suffix_pads=3)


def real_rows(whole, suffix, logits_btv) -> list[np.ndarray]:
    """Of the whole prompts' logits those of the suffixes, per row."""
    ends, counts = np.asarray(whole.lengths_b), np.asarray(suffix.lengths_b)
    return [row[end - n : end] for row, end, n in zip(np.asarray(logits_btv), ends, counts)]


def test_logits_behind_a_prefix_are_those_of_whole_prompts(vlm, whole, parts):
    first, suffix = parts
    assert len(set(first.lengths_b.tolist())) == 3
    assert len(set(suffix.lengths_b.tolist())) > 2
    expected = real_rows(whole, suffix, vlm.generator.logits(vlm.params, whole))
    prefix = vlm.generator.read_prefix(vlm.params, first)
    assert (prefix.size, prefix.length) == first.tokens_bt.shape
    found = vlm.generator.logits(vlm.params, suffix, prefix=prefix, owner_b=OWNERS)
    for row, logits in enumerate(expected):
        np.testing.assert_allclose(found[row, : len(logits)], logits, atol=BAR, rtol=0)


def test_the_owner_matters(vlm, parts):
    """What the equality above would also give if prefixes were ignored."""
    first, suffix = parts
    prefix = vlm.generator.read_prefix(vlm.params, first)
    right = vlm.generator.logits(vlm.params, suffix, prefix=prefix, owner_b=OWNERS)
    wrong = vlm.generator.logits(vlm.params, suffix, prefix=prefix, owner_b=[1, 0, 0, 1, 2, 2])
    assert (np.abs(np.asarray(right - wrong))[:, 0].max(axis=-1) > 0.01).all()


def test_greedy_answers_behind_a_prefix_are_those_of_whole_prompts(vlm, whole, parts):
    first, suffix = parts
    expected = generate(vlm, whole)
    prefix = vlm.generator.read_prefix(vlm.params, first)
    found = generate(vlm, suffix, prefix=prefix, owner_b=OWNERS)
    np.testing.assert_array_equal(found.tokens_bn, expected.tokens_bn)
    assert len(np.unique(expected.tokens_bn, axis=0)) > 3


def test_a_prefix_is_read_once_for_many_calls(vlm, parts):
    """Neither donated nor compiled again, whichever rows go on from it."""
    first, suffix = parts
    prefix = vlm.generator.read_prefix(vlm.params, first)
    made = generate(vlm, suffix, prefix=prefix, owner_b=OWNERS)
    before = vlm.generator.compilations
    order = [4, 2, 0, 5, 1, 3]
    shuffled = jax.tree.map(lambda leaf: leaf[order], suffix)
    owners = [OWNERS[row] for row in order]
    with jax.transfer_guard("disallow"):
        again = generate(vlm, shuffled, prefix=prefix, owner_b=owners, max_new_tokens=SLOTS - 1)
    np.testing.assert_array_equal(again.tokens_bn[:, :-1], made.tokens_bn[order][:, :-1])
    assert vlm.generator.compilations == before
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(prefix))


@pytest.mark.parametrize(
    "owner_b", [None, [0, 1, 1, 2, 0], [0, 1, 1, 3, 0, 1], [0, 1, -1, 2, 0, 1]]
)
def test_owners_that_name_no_prefix_are_refused(llava_vlm, owner_b):
    batch = llava_vlm.processor.batch([IMAGES[sample] for sample in SAMPLES], QUESTIONS)
    first, suffix = cut(batch, FIRSTS)
    prefix = llava_vlm.generator.read_prefix(llava_vlm.params, first)
    with pytest.raises(ValueError, match="owner_b"):
        generate(llava_vlm, suffix, prefix=prefix, owner_b=owner_b)


def split_steerings(vlm) -> dict[str, Steering]:
    """All parts that prompts in two calls allow: without and with some that act on prefixes."""
    every = drawn(vlm, 5, examples=len(SAMPLES))
    behind = dataclasses.replace(every, head_gains=None, visual_gains=None)
    shared = jax.tree.map(lambda leaf: leaf[:1], every)
    counting = dataclasses.replace(shared.projection, zero_trace="running", prefill="causal")
    before = dataclasses.replace(behind, head_gains=shared.head_gains, projection=counting)
    return {"behind": behind, "before": before}


@pytest.mark.parametrize("name", ["behind", "before"])
def test_steered_logits_behind_a_prefix_are_those_of_whole_prompts(llava_vlm, name):
    """Steering of each row's own behind the image; shared where it acts on prefixes too."""
    vlm = llava_vlm
    whole = vlm.processor.batch([IMAGES[sample] for sample in SAMPLES], QUESTIONS)
    first, suffix = cut(whole, FIRSTS, prefix_pads=5, suffix_pads=3)
    steering = split_steerings(vlm)[name]
    expected = real_rows(whole, suffix, vlm.generator.logits(vlm.params, whole, steering))
    vanilla = real_rows(whole, suffix, vlm.generator.logits(vlm.params, whole))
    prefix = vlm.generator.read_prefix(vlm.params, first, steering)
    assert bool(prefix.states) == (name == "before")
    found = vlm.generator.logits(vlm.params, suffix, steering, prefix=prefix, owner_b=OWNERS)
    # A projection's rescale multiplies rounding too.
    bar = BAR * (LARGEST_SCALE if name == "before" else 2)
    for row, logits in enumerate(expected):
        np.testing.assert_allclose(found[row, : len(logits)], logits, atol=bar, rtol=0)
        assert np.abs(vanilla[row] - logits).max() > 1e-2


def test_steered_answers_behind_a_prefix_are_those_of_whole_prompts(llava_vlm):
    vlm = llava_vlm
    whole = vlm.processor.batch([IMAGES[sample] for sample in SAMPLES], QUESTIONS)
    first, suffix = cut(whole, FIRSTS, prefix_pads=5, suffix_pads=3)
    steering = split_steerings(vlm)["before"]
    expected = generate(vlm, whole, steering=steering)
    prefix = vlm.generator.read_prefix(vlm.params, first, steering)
    found = generate(vlm, suffix, steering=steering, prefix=prefix, owner_b=OWNERS)
    np.testing.assert_array_equal(found.tokens_bn, expected.tokens_bn)
    np.testing.assert_array_equal(found.counts.fired, expected.counts.fired)
    for ours, theirs in zip(jax.tree.leaves(found.readings), jax.tree.leaves(expected.readings)):
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


def test_settings_that_leave_prefixes_share_one_program_and_its_result(llava_vlm):
    vlm = llava_vlm
    whole = vlm.processor.batch([IMAGES[1]], ["Why?"])
    first, _ = cut(whole, [0])
    plain = vlm.generator.read_prefix(vlm.params, first)
    before = vlm.generator.compilations
    for steering in (split_steerings(vlm)["behind"], Steering(lens=Lens(leaf(vlm, 0.3)))):
        prefix = vlm.generator.read_prefix(vlm.params, first, steering)
        jax.tree.map(np.testing.assert_array_equal, prefix, plain)
    assert vlm.generator.compilations == before


def test_prefixes_that_do_not_fit_a_steering_are_refused(llava_vlm):
    vlm = llava_vlm
    whole = vlm.processor.batch([IMAGES[1]], ["Why?"])
    first, suffix = cut(whole, [0])
    plain = vlm.generator.read_prefix(vlm.params, first)
    every = drawn(vlm, 5)
    with pytest.raises(ValueError, match="Visual gains act on all rows"):
        vlm.generator.read_prefix(vlm.params, first, every)
    ask = lambda steering: vlm.generator.logits(
        vlm.params, suffix, steering, prefix=plain, owner_b=[0]
    )
    with pytest.raises(ValueError, match="Visual gains act on all rows"):
        ask(Steering(visual_gains=every.visual_gains))
    with pytest.raises(ValueError, match="head_gains: read them with this steering"):
        ask(Steering(head_gains=every.head_gains))


NEIGHBOURS = [0, 0, 1, 1, 3, 3]
OPTIONS = {"max_new_tokens": 6, "batch_size": 8}
ORDERS = {
    "in order": ([0, 2, 4], [0, 0, 1, 1, 2, 2]),
    "another order": ([2, 4, 0], [2, 2, 0, 0, 1, 1]),
}
"""The first row of each prefix, and the prefix of each row, of two neighbours that share."""


def neighbours(vlm, order: str):
    """Whole prompts, their prefixes in some order, what follows, and who goes on from what."""
    whole = vlm.processor.batch([IMAGES[sample] for sample in NEIGHBOURS], QUESTIONS)
    firsts, owners = ORDERS[order]
    return whole, *cut(whole, firsts, prefix_pads=5, suffix_pads=3), owners


@pytest.mark.parametrize("order", ORDERS)
def test_neighbours_that_share_a_prefix_read_what_each_reads_alone(vlm, order):
    whole, first, suffix, owners = neighbours(vlm, order)
    prefix = vlm.generator.read_prefix(vlm.params, first)
    asked = dict(prefix=prefix, owner_b=owners, sharing=2)
    found = vlm.generator.logits(vlm.params, suffix, **asked)
    expected = real_rows(whole, suffix, vlm.generator.logits(vlm.params, whole))
    for row, logits in enumerate(expected):
        np.testing.assert_allclose(found[row, : len(logits)], logits, atol=BAR, rtol=0)
    answers = generate(vlm, whole).tokens_bn
    np.testing.assert_array_equal(generate(vlm, suffix, **asked).tokens_bn, answers)
    assert len(np.unique(answers, axis=0)) > 3
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(prefix))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["behind", "before"])
def test_steered_neighbours_that_share_a_prefix(llava_vlm, name, order):
    """Gains of each row's own, states of each prefix, sums over its values, masses, readings."""
    vlm = llava_vlm
    whole, first, suffix, owners = neighbours(vlm, order)
    steering = split_steerings(vlm)[name]
    prefix = vlm.generator.read_prefix(vlm.params, first, steering)
    asked = dict(prefix=prefix, owner_b=owners, sharing=2)
    found = vlm.generator.logits(vlm.params, suffix, steering, **asked)
    bar = BAR * (LARGEST_SCALE if name == "before" else 2)
    expected = real_rows(whole, suffix, vlm.generator.logits(vlm.params, whole, steering))
    for row, logits in enumerate(expected):
        np.testing.assert_allclose(found[row, : len(logits)], logits, atol=bar, rtol=0)
    answers = generate(vlm, whole, steering=steering)
    made = generate(vlm, suffix, steering=steering, **asked)
    np.testing.assert_array_equal(made.tokens_bn, answers.tokens_bn)
    np.testing.assert_array_equal(made.counts.fired, answers.counts.fired)
    for ours, theirs in zip(jax.tree.leaves(made.readings), jax.tree.leaves(answers.readings)):
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


def test_beams_of_neighbours_that_share_a_prefix(llava_vlm):
    whole, first, suffix, owners = neighbours(llava_vlm, "in order")
    prefix = llava_vlm.generator.read_prefix(llava_vlm.params, first)
    answers = generate(llava_vlm, whole, num_beams=2, max_new_tokens=6)
    asked = dict(prefix=prefix, owner_b=owners, sharing=2)
    found = generate(llava_vlm, suffix, num_beams=2, max_new_tokens=6, **asked)
    np.testing.assert_array_equal(found.tokens_bn, answers.tokens_bn)


def test_neighbours_that_share_a_prefix_are_told_of(llava_vlm):
    """By the program that decodes some tokens at a time."""
    _, first, suffix, owners = neighbours(llava_vlm, "in order")
    prefix = llava_vlm.generator.read_prefix(llava_vlm.params, first)
    asked = dict(prefix=prefix, owner_b=owners, sharing=2)
    parts = []
    found = generate(llava_vlm, suffix, told=lambda *part: parts.append(part), **asked)
    np.testing.assert_array_equal(found.tokens_bn, generate(llava_vlm, suffix, **asked).tokens_bn)
    ((tokens_bn, lengths_b),) = parts
    assert (lengths_b == PART).all()
    np.testing.assert_array_equal(tokens_bn[:, :PART], found.tokens_bn[:, :PART])


@pytest.mark.parametrize("method", ["air", "adhh", "functional_heads"])
def test_methods_act_on_questions_that_share_an_image(llava_vlm, method):
    given = {} if method == "functional_heads" else {"heads": "all"}
    steered = llava_vlm.apply(method, **given)
    images = [IMAGES[sample] for sample in NEIGHBOURS]
    ask = lambda share: steered.ask(images, QUESTIONS, OPTIONS, share_prefix=share)
    for ours, theirs in zip(ask(True), ask(False), strict=True):
        assert ours.tokens == theirs.tokens
        jax.tree.map(np.testing.assert_array_equal, ours.counts, theirs.counts)
        close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=0)
        jax.tree.map(close, ours.readings, theirs.readings)


@pytest.mark.parametrize(("owner_b", "sharing"), [([0, 1, 1, 1, 2, 2], 2), ([0] * 6, 4)])
def test_neighbours_of_different_prefixes_share_none(llava_vlm, owner_b, sharing):
    _, first, suffix, _ = neighbours(llava_vlm, "in order")
    prefix = llava_vlm.generator.read_prefix(llava_vlm.params, first)
    with pytest.raises(ValueError, match=f"{sharing} neighbouring rows are to share"):
        generate(llava_vlm, suffix, prefix=prefix, owner_b=owner_b, sharing=sharing)


def test_what_neighbours_share_is_held_once(llava_vlm):
    """Decoding holds I prefixes; with copies, one more for each row that has its own."""
    vlm, rows, prefixes, length = llava_vlm, 8, 2, 1024
    decoder, shapes = vlm.config.decoder, vlm.processor.shapes
    values = 2 * decoder.num_kv_heads * decoder.head_dim * decoder.num_layers
    one = length * values * vlm.params["decoder/embed_vd"].dtype.itemsize
    held = {}
    for sharing in (1, 2, 4):
        owners = np.arange(rows) // sharing if sharing == 4 else np.zeros(rows, np.int32)

        def compile(name, program, *args, sharing=sharing, **static):
            memory = program.lower(*args, **static).compile().memory_analysis()
            held[name, sharing] = memory.argument_size_in_bytes + memory.temp_size_in_bytes
            return compile_ahead(name, program, *args, **static)

        vlm.generator.warm(
            vlm.params,
            shapes(rows, 16),
            DecodeSettings(max_new_tokens=8),
            prefix=shapes(prefixes, length, 1),
            owner_b=owners,
            sharing=sharing,
            compile=compile,
        )
    assert held["decode", 1] - held["decode", 4] >= 0.95 * rows * one
    assert held["decode", 2] - held["decode", 4] >= 0.95 * rows / 2 * one
    weights = sum(leaf.nbytes for leaf in vlm.params.values())
    assert held["decode", 4] < weights + (prefixes + 1) * one
    assert held["prefill", 4] < held["prefill", 2] < held["prefill", 1]
