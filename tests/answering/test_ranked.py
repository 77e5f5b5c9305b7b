"""Reranked answers: the continuations that score best, their log probabilities, bad scorers."""

import jax
import numpy as np
import pytest

from tests.reference import picture
from vlm_jax.decoding.named import read_named
from vlm_jax.decoding.rerankers import Continuation
from vlm_jax.errors import ConfigError, PromptError

IMAGES = [[picture(56, 70, 1)], [picture(84, 56, 2)]]
PROMPTS = ["Describe it.", "What is this?"]
SMALL = {"samples": 2, "candidates": 2, "temperature": 3.0, "top_k": 0, "segment_tokens": 4}


def lengths(texts, image):
    """Longer sentences are better."""
    return [float(len(text)) for text in texts]


def ask(vlm, scorer, images=IMAGES, prompts=PROMPTS, streams=None, **settings):
    model = vlm.apply("cgd", scorer=scorer, **SMALL | settings)
    return model.ask(images, prompts, {"max_new_tokens": 8, "seed": 1}, streams=streams)


def test_the_best_scored_sentences_are_kept(llava_vlm):
    """And each question is answered alike alone and beside others."""
    seen = []

    def noting(texts, image):
        seen.append(texts)
        return lengths(texts, image)

    best = ask(llava_vlm, noting, alpha=0)
    worst = ask(llava_vlm, lambda texts, image: [-one for one in lengths(texts, image)], alpha=0)
    assert all(1 <= len(texts) <= 4 for texts in seen)
    assert [len(one.tokens) <= 8 for one in best] == [True, True]
    assert sum(len(one.text) for one in best) > sum(len(one.text) for one in worst)
    alone = ask(llava_vlm, lengths, IMAGES[1:], PROMPTS[1:], streams=[1], alpha=0)
    assert alone[0].tokens == best[1].tokens
    ask(llava_vlm, lengths, control="shuffled")


def test_log_probabilities_are_those_of_a_whole_pass(llava_vlm, monkeypatch):
    vlm, told = llava_vlm, []
    base = type(read_named("cgd", {"scorer": lengths}))
    rank = base.rank
    monkeypatch.setattr(base, "rank", lambda self, one: told.append(one) or rank(self, one))
    ask(vlm, lengths, IMAGES[:1], PROMPTS[:1])
    longest = max(told, key=lambda one: len(one.tokens))
    batch, (start,) = vlm.processor.batch_answers(IMAGES[:1], PROMPTS[:1], [longest.tokens])
    logits = np.asarray(jax.device_get(vlm.generator.logits(vlm.params, batch)), np.float64)[0]
    total = 0.0
    for place, token in enumerate(longest.tokens, start):
        row = logits[place - 1]
        total += row[token] - row.max() - np.log(np.exp(row - row.max()).sum())
    np.testing.assert_allclose(longest.log_probability, total, rtol=1e-4)


def test_candidates_are_ranked_by_both_means():
    one = Continuation(tokens=(1, 2), log_probability=-3.0, scores=(0.5, 0.1))
    cgd = read_named("cgd", {"scorer": lengths})
    np.testing.assert_allclose(cgd.rank(one), 0.3 + 0.01 * -1.5)
    assert cgd.ends(["a", "e.g", "?!", ""]).tolist() == [False, True, True, False]


@pytest.mark.parametrize(
    "scorer", [lambda texts, image: [np.nan] * len(texts), lambda texts, image: [1.0] * 7]
)
def test_scores_that_cannot_be_are_one_clear_error(llava_vlm, scorer):
    with pytest.raises(ConfigError, match="scorer must return a finite number for each of"):
        ask(llava_vlm, scorer)


def test_what_cannot_be_ranked_is_refused(llava_vlm):
    with pytest.raises(ConfigError, match="'cgd' needs a scorer"):
        llava_vlm.apply("cgd")
    with pytest.raises(ConfigError, match="samples"):
        llava_vlm.apply("cgd", scorer=lengths, samples=0)
    with pytest.raises(ConfigError, match="'vcd' and 'cgd' both say how answers come about"):
        llava_vlm.apply("vcd").apply("cgd", scorer=lengths)
    with pytest.raises(ConfigError, match="'cgd' and 'vcd' both choose tokens"):
        llava_vlm.apply("cgd", scorer=lengths).apply("vcd")
    with pytest.raises(PromptError, match="Sample 1: candidates are ranked by one image"):
        ask(llava_vlm, lengths, [IMAGES[0], []])
