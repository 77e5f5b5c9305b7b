"""Processes that share a replica take the same inputs, and fail alike."""

import dataclasses

import numpy as np
import pytest

from tests.answering.test_plan import draft
from vlm_jax.answering.meeting import Failure, Meeting, Prepared
from vlm_jax.batch import Batch
from vlm_jax.errors import PromptError, UserError
from vlm_jax.parallel.team import Team


class Pair(Team):
    """Process 0 of two; the other sends what `other` makes of the message of this one."""

    def __init__(self, *other):
        super().__init__((0, 1))
        self.other, self.sent = list(other), []

    def exchange(self, value):
        self.sent.append(value)
        return [value, self.other.pop(0)(value)]


def echo(value):
    return value


def batch(fill=0):
    tokens = np.full((2, 3), fill, np.int32)
    return Batch(tokens, tokens, tokens[..., None], tokens, tokens[:, 0], tokens[:, 0], None)


def prepared(fill=0, failures=None):
    return Prepared(batch(fill), failures or {})


def digest(of):
    pair = Pair(echo)
    Meeting(pair).batch(lambda: of)
    return pair.sent[0]["value"]["digest"]


def test_a_sample_that_one_process_cannot_read_fails_in_all():
    def measure(note):
        note(2, PromptError("Sample 2: no such file."))
        return [draft(0, "a", (5,)), draft(1, "b", (5,))]

    pair = Pair(lambda told: {"value": [[1, "Sample 1: too long."]]}, echo)
    drafts, failures = Meeting(pair).drafts(measure)
    assert [one.number for one in drafts] == [0]
    assert failures == [Failure(1, "Sample 1: too long."), Failure(2, "Sample 2: no such file.")]


def test_other_questions_are_refused():
    asked = [draft(0, "a", (5,)), draft(1, "b", (6,))]
    other = [draft(0, "a", (5,)), draft(1, "b", (7,))]
    theirs = Pair(echo, echo)
    Meeting(theirs).drafts(lambda note: other)
    pair = Pair(echo, lambda value: theirs.sent[1])
    with pytest.raises(UserError, match=r"processes 0 and 1 .* different prompts or images"):
        Meeting(pair).drafts(lambda note: asked)


def test_a_row_that_fails_in_one_process_fails_in_all():
    told = lambda own: {"value": {"failed": [[1, 7, "broken"]], "digest": digest(prepared(9))}}
    found = Meeting(Pair(told)).batch(prepared)
    assert found.failures == {1: Failure(7, "broken")}
    assert found.batch is not None


def test_a_batch_of_which_one_process_read_nothing_is_read_by_none():
    failed = [[0, 6, "broken"], [1, 7, "broken"]]
    found = Meeting(Pair(lambda own: {"value": {"failed": failed, "digest": None}})).batch(prepared)
    assert found.batch is None
    assert [found.failures[place].index for place in (0, 1)] == [6, 7]


def test_other_images_are_refused():
    assert digest(prepared()) == digest(prepared()) != digest(prepared(1))
    assert digest(Prepared(None, {})) is None
    told = lambda own: {"value": {"failed": [], "digest": digest(prepared(1))}}
    with pytest.raises(UserError, match=r"processes 0, 1 .* different images"):
        Meeting(Pair(told)).batch(prepared)


def test_an_error_is_told_once_however_deep_it_is():
    pair = Pair(echo)
    with pytest.raises(PromptError):
        pair.in_step(lambda: Meeting(pair).batch(_broken))
    assert pair.sent == [{"error": "Sample 0: broken."}]


def test_an_error_of_another_process_is_not_told_again():
    pair = Pair(lambda own: {"error": "disk full"})
    with pytest.raises(UserError, match="process 1 failed: disk full"):
        pair.in_step(lambda: Meeting(pair).batch(prepared))
    assert len(pair.sent) == 1


def test_a_process_alone_meets_nobody():
    own = dataclasses.replace(prepared(), failures={0: Failure(0, "broken")})
    assert Meeting(Team((3,))).batch(lambda: own) is own


def _broken():
    raise PromptError("Sample 0: broken.")
