"""Supports by source against head gates, differences, and a model that cannot see its image."""

import jax
import numpy as np
import pytest

from tests.reference import IMAGES, PROMPTS
from vlm_jax.analysis.ablation import HeadAblation, Places
from vlm_jax.analysis.contribution import contributions
from vlm_jax.analysis.sources import SOURCES, SourceSupport, sources_of
from vlm_jax.attention.steering import Reallocation, Steering
from vlm_jax.batch import Kind

ANSWERS = [[5, 6, 7, 8, 9], [9, 8, 7], [6, 5]]


@pytest.fixture(scope="module")
def asked(llava_vlm):
    """A batch with answers, and the first token of one and later tokens of others."""
    batch, starts_b = llava_vlm.processor.batch_answers(IMAGES[:3], PROMPTS[:3], ANSWERS)
    sample_m, index_m = np.array([0, 1, 1, 2], np.int32), np.array([3, 0, 2, 1])
    target_m = np.array([ANSWERS[s][i] for s, i in zip(sample_m, index_m)], np.int32)
    return batch, starts_b, Places(sample_m, starts_b[sample_m] + index_m - 1, target_m)


@pytest.fixture(scope="module")
def found(llava_vlm, asked):
    support = SourceSupport(llava_vlm.config, rows=4)
    return {scope: support(llava_vlm.params, *asked, scope) for scope in ("row", "all")}


@pytest.mark.parametrize("scope", ["row", "all"])
def test_sources_add_up_to_the_heads_gates(llava_vlm, asked, found, scope):
    batch, _, places = asked
    heads = HeadAblation(llava_vlm.config, rows=4)
    whole = contributions(heads, llava_vlm.params, batch, places, scope)
    np.testing.assert_allclose(found[scope].sum(-1), -whole.signed_mln, atol=2e-5, rtol=0)
    assert np.abs(found[scope]).max() > 1e-3


def test_what_is_not_there_supports_nothing(asked, found):
    """The first token of an answer has no answer to read; a prompt without an image no image."""
    batch, *_ = asked
    for scope in ("row", "all"):
        by_source = np.abs(found[scope]).max((1, 2))
        assert by_source[1, SOURCES.index("answer")] == 0
        assert (by_source[[0, 2, 3], SOURCES.index("answer")] > 0).all()
        shown = [bool((np.asarray(batch.kinds_bt[s]) == Kind.IMAGE).any()) for s in (0, 1, 1, 2)]
        assert (by_source[:, SOURCES.index("image")] > 0).tolist() == shown
        assert not all(shown)


def test_every_key_has_a_source(asked):
    batch, starts_b, _ = asked
    of_key_bs = sources_of(batch, starts_b)
    kinds = np.asarray(batch.kinds_bt)
    assert ((of_key_bs == -1) == (kinds == Kind.PAD)).all()
    assert ((of_key_bs == 1) == (kinds == Kind.IMAGE)).all()
    assert [(of_key_bs[b] == 3).sum() for b in range(3)] == [len(answer) for answer in ANSWERS]
    assert (of_key_bs == 2).any(1).all()


def test_supports_are_slopes_of_reallocation(llava_vlm, asked, found):
    """Factors on the masses of the last prompt row, as AIR has them, are gates on its readings."""
    vlm = llava_vlm
    place, target = 1, ANSWERS[1][0]
    prompt = vlm.processor.batch(IMAGES[1:2], PROMPTS[1:2])
    last = int(prompt.lengths_b[0]) - 1
    shape = (1, vlm.config.decoder.num_layers, vlm.config.decoder.num_heads)
    zero = np.zeros(shape, np.float32)
    assert found["row"][place, :, :, SOURCES.index("answer")].max() == 0

    def log_p(**factors):
        leaves = {"image": np.ones(shape, np.float32), "text": np.ones(shape, np.float32)}
        part = Reallocation(**{**leaves, **factors}, threshold=zero)
        logits = vlm.generator.logits(vlm.params, prompt, Steering(reallocation=part))
        return float(jax.nn.log_softmax(np.asarray(logits)[0, last])[target])

    for name, source in (("image", "image"), ("text", "question")):
        support_ln = found["row"][place, :, :, SOURCES.index(source)]
        for chosen in (np.ones(shape, bool), np.arange(shape[1])[:, None] == (1,)):
            step = 0.02 * np.broadcast_to(chosen, shape).astype(np.float32)
            slope = (log_p(**{name: 1 + step}) - log_p(**{name: 1 - step})) / 0.04
            expected = float(support_ln[np.broadcast_to(chosen, shape)[0]].sum())
            assert abs(expected) > 1e-3
            assert slope == pytest.approx(expected, abs=2e-4, rel=2e-3)
