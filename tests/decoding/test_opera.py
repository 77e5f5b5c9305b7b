"""OPERA against a plain NumPy search with whole passes, retrospection included; its control."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.decoding.opera import Oracle
from tests.reference import IMAGES, PROMPTS, Reference
from vlm_jax.decoding.named import read_named
from vlm_jax.decoding.search import opera
from vlm_jax.decoding.search.opera import mode, over_trust
from vlm_jax.errors import ConfigError

STEPS, EARLY = 14, 3
SETTINGS = {"num_beams": 3, "candidates": 3, "threshold": 1, "penalty": 2.0}
SAMPLES = [0, 1]


@pytest.fixture(scope="module")
def eager(tiny_llava):
    """The torch model that gives its attention."""
    found = Reference.from_folder(tiny_llava)
    return Reference(
        tiny.reference(tiny_llava, "eager"), found.image_processor, found.image_token_id
    )


def oracle(vlm, eager, index: int, method, stops) -> Oracle:
    import torch

    (draft,) = vlm.processor.drafts([IMAGES[index]], [PROMPTS[index]])
    ids = draft.tokens(vlm.config.image_token_id)

    def reads(answers: list[list[int]]):
        inputs = eager.inputs(ids, IMAGES[index] * len(answers))
        inputs["input_ids"] = torch.tensor([[*ids, *answer] for answer in answers])
        del inputs["attention_mask"]
        with torch.no_grad():
            made = eager.model(**inputs, output_attentions=True)
        weights = made.attentions[-1][:, :, -1].max(1).values
        return list(zip(made.logits[:, -1].double().numpy(), weights.double().numpy()))

    image = np.array(ids) == vlm.config.image_token_id
    return Oracle(reads, len(ids), image, method, stops, STEPS, EARLY)


@pytest.mark.parametrize("ends", [False, True])
def test_answers_are_those_of_a_plain_search(llava_vlm, eager, monkeypatch, ends):
    """Of a batch, some of whose samples take tokens back, and some of which end early.

    Retrospection may go back to the third token already, so that short answers show it.
    """
    monkeypatch.setattr(opera, "EARLY", EARLY)
    method = read_named("opera", SETTINGS)
    images, prompts = [IMAGES[i] for i in SAMPLES], [PROMPTS[i] for i in SAMPLES]
    options = {"max_new_tokens": STEPS, "repetition_penalty": 1.0}
    stops = [3]
    if ends:
        free = llava_vlm.ask(images, prompts, options, strategy=method)
        stops = [free[0].tokens[9]]
    monkeypatch.setattr(llava_vlm.processor, "stop_ids", tuple(stops))
    found = llava_vlm.ask(images, prompts, options, strategy=method)
    back = 0
    for made, index in zip(found, SAMPLES):
        plain = oracle(llava_vlm, eager, index, method, stops)
        tokens, score = plain.answer()
        end = next((n for n, token in enumerate(tokens) if token in stops), len(tokens))
        assert list(made.tokens) == tokens[:end]
        assert made.score == pytest.approx(score, abs=1e-4)
        back += len(plain.went_back)
    assert back > 0
    if ends:
        (alone,) = llava_vlm.ask(images[1:2], prompts[1:2], options, strategy=method)
        assert alone.tokens == found[1].tokens
        assert any(made.ended for made in found)


def test_the_control_is_beam_search(llava_vlm):
    control = read_named("opera", {**SETTINGS, "control": "off"})
    options = {"max_new_tokens": 10}
    found = llava_vlm.ask(IMAGES[:2], PROMPTS[:2], options, strategy=control)
    beams = llava_vlm.ask(IMAGES[:2], PROMPTS[:2], {**options, "num_beams": 3})
    assert [one.tokens for one in found] == [one.tokens for one in beams]


def test_one_beam_of_one_candidate_is_greedy(llava_vlm):
    alone = llava_vlm.apply("opera", num_beams=1, candidates=1, threshold=99)
    images, prompts = [one[0] for one in IMAGES[:2]], list(PROMPTS[:2])
    assert alone.generate(images, prompts, max_new_tokens=10) == llava_vlm.generate(
        images, prompts, max_new_tokens=10
    )


def test_a_score_is_a_product_of_a_column_down_from_the_diagonal():
    triangle = np.array([[0.5, 0, 0], [0.4, 0.1, 0], [0.3, 0.02, 0.2]])
    logs = np.where(triangle > 0, np.log(50 * np.where(triangle > 0, triangle, 1)), 0.0)
    score, column = over_trust(jnp.asarray(logs.sum(0)), jnp.int32(3))
    assert (float(score), int(column)) == (pytest.approx(1e-7 * 25 * 20 * 15), 0)
    score, column = over_trust(jnp.array([0.0, 5.0, 9.0]), jnp.int32(2))
    assert int(column) == 1
    assert mode(jnp.array([[3, 1, 3, 2], [4, 1, 4, 1]])).tolist() == [3, 1]


@pytest.mark.slow
def test_it_acts_behind_prefixes_with_penalties_and_beside_steering(llava_vlm):
    small = {"num_beams": 2, "candidates": 2, "threshold": 1}
    treated, images, prompts = llava_vlm.apply("opera", **small), [IMAGES[1]] * 2, ["Why?", "What?"]
    options = {"max_new_tokens": 12, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2}
    shared = treated.ask(images, prompts, options)
    whole = treated.ask(images, prompts, options, share_prefix=False)
    assert [one.tokens for one in shared] == [one.tokens for one in whole]
    for one in shared:
        pairs = list(zip(one.tokens, one.tokens[1:]))
        assert len(pairs) == len(set(pairs))
    steered = llava_vlm.apply("adhh", heads="all", threshold=0.1).apply("opera", **small)
    found = steered.ask(images, prompts, options)
    assert found[0].counts.fired.shape == (12, 3)
    assert np.all(found[0].readings.fired_bn <= 1)
    counting = llava_vlm.apply("air", heads="all", zero_trace="running")
    opera = read_named("opera", small)
    with pytest.raises(ConfigError, match="takes tokens back"):
        list(counting.answer(images, prompts, strategy=opera, **options))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"temperature": 0.5}, "'opera' has beams of its own.*temperature"),
     ({"num_beams": 2}, "'opera' has beams of its own.*num_beams")],
)  # fmt: skip
def test_other_searches_beside_it_are_refused(llava_vlm, settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        llava_vlm.apply("opera").generate(prompts="Hello", **settings)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="threshold must be"):
        llava_vlm.apply("opera", threshold=0)
