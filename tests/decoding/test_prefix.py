"""Prompts that share prefixes against the same prompts read whole."""

import jax
import numpy as np
import pytest

from tests.decoding.conftest import SLOTS, generate
from tests.prefixes import cut
from tests.reference import IMAGES

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
