"""Which questions are read together."""

import numpy as np
import pytest

from vlm_jax.answering.plan import Sizes, batch_rows, make_plan
from vlm_jax.processing import Draft, bucket
from vlm_jax.processing.cutters import Extent

IMAGE = Extent((2, 2), 1, np.arange(4))


def draft(number, image, question, system=2):
    """A prompt of `system` tokens, maybe an image, and a question of ids."""
    images = () if image is None else (f"{image}.png",)
    ids = (1,) * system + ((9,) if images else ()) + tuple(question)
    extents = (IMAGE,) * len(images)
    return Draft(number, ids, images, images, extents, system + 1 if images else 0)


def plan(drafts, most=4, once=True, shared=lambda questions: questions > 1):
    sizes = Sizes(lambda count: batch_rows(count, most, 1), bucket, lambda groups: groups)
    return make_plan(drafts, sizes, once=once, shared=shared)


def test_a_draft_counts_its_tokens():
    one = draft(0, "a", [5, 6, 7])
    assert (one.length, one.suffix_length, one.groups) == (2 + 4 + 3, 3, 1)
    assert draft(0, None, [5]).suffix_length == draft(0, None, [5]).length == 3


def test_equal_questions_are_asked_once_and_answer_all_samples():
    drafts = [draft(n, "a", [5, n % 2]) for n in range(6)] + [draft(6, "b", [5, 0])]
    made = plan(drafts)
    (chunk,), (whole,) = made.chunks, made.batches
    (batch,) = chunk.batches
    assert sorted(question.samples for question in batch.questions) == [(0, 2, 4), (1, 3, 5)]
    assert [question.samples for question in whole.questions] == [(6,)]
    assert made.questions == 3
    assert plan(drafts, once=False).questions == 7


def test_every_question_continues_its_own_image():
    drafts = [draft(n, "abc"[n % 3], [5] * (1 + n)) for n in range(12)]
    made = plan(drafts, most=2)
    assert not made.batches
    assert [len(chunk.prefixes) for chunk in made.chunks] == [2, 1]
    seen = []
    for chunk in made.chunks:
        assert chunk.length == 16
        assert chunk.groups == 1
        for batch in chunk.batches:
            assert len(batch.questions) <= batch.rows
            assert batch.length >= max(q.draft.suffix_length for q in batch.questions)
            for question, owner in zip(batch.questions, batch.owners, strict=True):
                assert chunk.prefixes[owner].draft.prefix == question.draft.prefix
                seen += question.samples
    assert sorted(seen) == list(range(12))


def laid(counts: list[int], most: int):
    """Returns the chunks of images with so many questions each, of lengths in turn."""
    drafts = [
        draft(len(counts) * number + image, f"image {image}", [5, number] + [7] * (number % 3))
        for image, count in enumerate(counts)
        for number in range(count)
    ]
    made = plan(drafts, most=most)
    assert made.questions == sum(counts)
    return made.chunks


@pytest.mark.parametrize(
    ("counts", "most", "sharing", "in_order", "batches"),
    [
        ([18] * 8, 32, 4, True, 5),
        ([18] * 4, 4, 1, True, 18),
        ([32], 32, 32, True, 1),
        ([3, 4, 4, 4], 8, 2, True, 2),
        ([18] * 5, 32, 2, False, 3),
        ([2, 2, 2, 9], 4, 2, False, 4),
        ([3, 5, 3, 3], 4, 1, False, 4),
    ],
)
def test_neighbouring_rows_share_prefixes(counts, most, sharing, in_order, batches):
    (chunk,) = laid(counts, most)
    prefixes = chunk.fill([question.draft.prefix for question in chunk.prefixes])
    assert len(prefixes) == chunk.rows
    assert len(chunk.batches) == batches
    for batch in chunk.batches:
        assert (batch.sharing, batch.in_order) == (sharing, in_order)
        owners = batch.row_owners
        assert len(owners) == batch.rows
        groups = [owners[row : row + sharing] for row in range(0, batch.rows, sharing)]
        assert all(len(set(group)) == 1 for group in groups)
        if in_order:
            assert [group[0] for group in groups] == list(range(chunk.rows))
        for row, question in zip(batch.places, batch.questions, strict=True):
            assert prefixes[owners[row]] == question.draft.prefix
        held = batch.fill(batch.questions)
        assert [held[row] for row in batch.places] == list(batch.questions)


def test_images_with_as_many_questions_are_read_together():
    chunks = laid([2, 6] * 4, 4)
    assert [len(chunk.batches) for chunk in chunks] == [2, 6]
    assert all(batch.in_order for chunk in chunks for batch in chunk.batches)


def test_another_system_prompt_is_another_prefix():
    made = plan([draft(0, "a", [5]), draft(1, "a", [6]), draft(2, "a", [6], system=3)])
    assert [len(chunk.prefixes) for chunk in made.chunks] == [1]
    assert [q.samples for batch in made.batches for q in batch.questions] == [(2,)]


def test_an_image_without_words_behind_it_is_read_whole():
    made = plan([draft(0, "a", []), draft(1, "a", [6])])
    assert not made.chunks
    assert made.questions == 2


def test_prompts_without_an_image_are_read_whole_and_batches_hold_like_sizes():
    drafts = [draft(n, None, [5] * (1 + 40 * (n % 2) + n)) for n in range(8)]
    made = plan(drafts, shared=lambda questions: True)
    assert not made.chunks
    assert [batch.length for batch in made.batches] == [16, 64]
    assert [batch.rows for batch in made.batches] == [4, 4]


def test_chunks_are_known_by_what_they_read():
    drafts = [draft(n, "ab"[n % 2], [5, n]) for n in range(4)]
    others = [draft(n, "ab"[n % 2], [7, n]) for n in range(4)]
    assert plan(drafts).chunks[0].key == plan(others).chunks[0].key
    more = [*others, draft(4, "c", [1]), draft(5, "c", [2])]
    assert plan(drafts).chunks[0].key != plan(more).chunks[0].key


def test_rows_are_few_sizes_that_divide_over_the_data_axis():
    assert [batch_rows(count, 8, 1) for count in (1, 2, 3, 5, 8, 100)] == [1, 2, 4, 8, 8, 8]
    assert [batch_rows(count, 8, 3) for count in (1, 4, 100)] == [3, 6, 9]
