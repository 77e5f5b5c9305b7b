"""What makes mitigv's greedy tokens ours, and what keeps them from it (without it: skipped)."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("mitigv", reason="pip install --no-deps mitigv==0.1.7")

import vlm_jax
from benchmarks.decode_mitigv import METHODS, our_answers
from benchmarks.mitigv_decoding import Mitigv
from tests.reference import picture
from vlm_jax.decoding.named import read_named

pytestmark = pytest.mark.slow

STEPS = 8
IMAGES = [picture(56, 70, 1), picture(84, 56, 2), picture(60, 60, 3)]
QUESTIONS = ["Describe it.", "What is this thing, please?", "Why?"]


@pytest.fixture(scope="module")
def ours(tiny_llava):
    vlm = vlm_jax.load(tiny_llava)
    return {
        name: our_answers(vlm, read_named(name, settings), IMAGES, QUESTIONS, STEPS)
        for name, (settings, _) in METHODS.items()
    }


def theirs(folder, name, attention="sdpa", **options) -> Mitigv:
    return Mitigv(folder, name, STEPS, attention, **options, **METHODS[name][1])


@pytest.mark.parametrize("name", METHODS)
def test_the_same_prompts_get_the_same_tokens(tiny_llava, ours, name):
    mitigv = theirs(tiny_llava, name, "eager" if name == "pai" else "sdpa")
    prompts = [mitigv.templated(question) for question in QUESTIONS]
    np.testing.assert_array_equal(mitigv.one_by_one(IMAGES, prompts), ours[name])
    np.testing.assert_array_equal(mitigv.together(IMAGES, prompts), ours[name])


def test_a_bare_question_loses_its_template_where_there_is_no_image(tiny_llava, ours):
    bare = theirs(tiny_llava, "m3id").one_by_one(IMAGES, QUESTIONS)
    assert np.any(bare != ours["m3id"])
    np.testing.assert_array_equal(
        theirs(tiny_llava, "vcd").one_by_one(IMAGES, QUESTIONS), ours["vcd"]
    )


def test_pai_finds_no_layers_as_it_is(tiny_llava):
    with pytest.raises(RuntimeError, match="needs a language model"):
        theirs(tiny_llava, "pai", "eager", mended=False).one_by_one(IMAGES, QUESTIONS)


def test_pai_reads_prompts_without_causality_under_sdpa(tiny_llava, ours):
    mitigv = theirs(tiny_llava, "pai", "sdpa")
    prompts = [mitigv.templated(question) for question in QUESTIONS]
    assert np.any(mitigv.one_by_one(IMAGES, prompts) != ours["pai"])
