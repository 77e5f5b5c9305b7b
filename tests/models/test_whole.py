"""The whole model against torch in float32: ragged batches, several images, greedy answers."""

import numpy as np
import pytest

from tests.models.conftest import error, forward
from tests.reference import IMAGES, LOGITS_BAR, PROMPTS, prompt_ids
from vlm_jax.decoding import DecodeSettings


def test_logits_of_a_ragged_batch_equal_the_reference(read):
    assert len(set(read.batch.lengths_b.tolist())) > 2
    assert 0.5 < np.std(read.theirs[0]) < 3
    assert error(read.ours, read.theirs) <= LOGITS_BAR
    for row, expected in zip(read.ours, read.theirs):
        np.testing.assert_array_equal(row[: len(expected)].argmax(-1), expected.argmax(-1))


def test_greedy_tokens_equal_the_reference(vlm, reference, read):
    count, stops = 12, vlm.processor.stop_ids
    made = vlm.generator(
        vlm.params,
        read.batch,
        DecodeSettings(max_new_tokens=count),
        slots=16,
        stop_ids=stops,
        pad_id=vlm.processor.pad_id,
    )
    for row, images in enumerate(IMAGES):
        expected = reference.greedy(prompt_ids(read.batch, row), images, count, stops)
        assert made.tokens_bn[row, : len(expected)].tolist() == expected
        length = len(expected) - (expected[-1] in stops)
        assert made.lengths_b[row] == length
        assert made.ended_b[row] == (length < len(expected))


@pytest.mark.parametrize("row", [1, 3])
def test_a_sample_alone_equals_itself_in_a_batch(vlm, read, row):
    alone = vlm.processor.batch([IMAGES[row]], [PROMPTS[row]])
    length = len(read.theirs[row])
    found = forward(vlm, alone)[0, :length]
    np.testing.assert_allclose(found, read.ours[row, :length], atol=1.5e-5, rtol=0)
    assert error([found], [read.theirs[row]]) <= LOGITS_BAR


def test_padding_changes_nothing(vlm, read):
    length = read.batch.tokens_bt.shape[1] + 48
    groups = read.batch.images.ids_bgu.shape[1] + 5
    order = [2, 0, 3, 1]
    padded = vlm.processor.batch(
        [IMAGES[i] for i in order], [PROMPTS[i] for i in order], length=length, groups=groups
    )
    found = forward(vlm, padded)
    for place, row in enumerate(order):
        real = len(read.theirs[row])
        np.testing.assert_allclose(found[place, :real], read.ours[row, :real], atol=1.5e-5, rtol=0)


def test_the_image_and_its_place_matter(vlm, read):
    """What the invariances above would also give if images were ignored."""
    swapped = vlm.processor.batch([IMAGES[0][::-1]], [PROMPTS[0]])
    length = int(swapped.lengths_b[0])
    assert length == len(read.theirs[0])
    found = forward(vlm, swapped)[0, length - 1]
    assert np.abs(found - read.ours[0, length - 1]).max() > 0.01
