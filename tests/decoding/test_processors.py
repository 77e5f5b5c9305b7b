"""Penalties and bans against transformers: step by step, whole answers, and a released default."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vlm_jax
from tests.reference import IMAGES, PROMPTS, Reference
from vlm_jax import testbed
from vlm_jax.decoding import DecodeSettings
from vlm_jax.decoding.processors import History, process
from vlm_jax.decoding.settings import unfollowed
from vlm_jax.errors import ConfigError
from vlm_jax.testbed.suites.testbed_chair import TestbedChair

VOCABULARY, PLACES, SLOTS = 7, 6, 8
ASKED = {
    "penalty": dict(repetition_penalty=1.3),
    "reward": dict(repetition_penalty=0.8),
    "no token twice": dict(no_repeat_ngram_size=1),
    "no pair twice": dict(no_repeat_ngram_size=2),
    "no triple twice": dict(no_repeat_ngram_size=3),
    "least length": dict(min_new_tokens=3),
    "all": dict(repetition_penalty=1.7, no_repeat_ngram_size=2, min_new_tokens=5),
}


def theirs(settings: dict, prompt: list[int], made: list[int], logits: np.ndarray) -> np.ndarray:
    """What the processors of transformers make of the logits of one row."""
    import torch
    import transformers.generation.logits_process as theirs

    given, chain = torch.tensor([prompt + made]), []
    if "repetition_penalty" in settings:
        chain.append(theirs.RepetitionPenaltyLogitsProcessor(settings["repetition_penalty"]))
    if "no_repeat_ngram_size" in settings:
        chain.append(theirs.NoRepeatNGramLogitsProcessor(settings["no_repeat_ngram_size"]))
    if "min_new_tokens" in settings:
        least = settings["min_new_tokens"]
        chain.append(
            theirs.MinNewTokensLengthLogitsProcessor(len(prompt), least, [1, 2], device="cpu")
        )
    scores = torch.tensor(logits[None])
    for processor in chain:
        scores = processor(given, scores)
    return scores[0].numpy()


@pytest.mark.parametrize("name", ASKED)
def test_steps_are_those_of_transformers(name):
    random = np.random.default_rng(0)
    prompts = [random.integers(0, VOCABULARY, size).tolist() for size in (6, 3, 1)]
    prompt_bp = np.full((3, PLACES), -1, np.int32)
    for row, prompt in zip(prompt_bp, prompts):
        row[PLACES - len(prompt) :] = prompt
    settings = jax.tree.map(jnp.asarray, DecodeSettings(**ASKED[name]).traced())
    history = History.start(settings, jnp.asarray(prompt_bp), SLOTS, VOCABULARY)
    stops, made = jnp.array([1, 2]), [[], [], []]
    step = jax.jit(lambda logits, history, n: process(logits, history, settings, stops, n))
    for count in range(SLOTS):
        logits = random.normal(size=(3, VOCABULARY)).astype(np.float32)
        found = np.asarray(step(logits, history, jnp.int32(count)))
        for row in range(3):
            expected = theirs(ASKED[name], prompts[row], made[row], logits[row])
            np.testing.assert_allclose(found[row], expected, rtol=1e-6)
            made[row].append(int(random.integers(0, VOCABULARY)))
        tokens = jnp.array([row[-1] for row in made], jnp.int32)
        history = history.add(tokens)


@pytest.mark.parametrize("share", [False, True], ids=["whole", "behind a prefix"])
def test_answers_are_those_of_transformers(vlm, reference, share):
    """All at once, of prompts of unequal lengths, on our own plan of batches."""
    asked = dict(repetition_penalty=1.5, no_repeat_ngram_size=2, min_new_tokens=6)
    images, prompts = [*IMAGES, IMAGES[1]], [*PROMPTS, "And this?"]
    found = vlm.answer(images, prompts, max_new_tokens=12, share_prefix=share, **asked)
    plain = {made.index: made.tokens for made in vlm.answer(images, prompts, max_new_tokens=12)}
    changed = 0
    for made in found:
        (draft,) = vlm.processor.drafts([images[made.index]], [prompts[made.index]])
        ids = draft.tokens(vlm.config.image_token_id)
        stops = vlm.processor.stop_ids
        expected = reference.greedy(ids, images[made.index], 12, stops, **asked)
        assert [*made.tokens] == [token for token in expected if token not in stops]
        changed += made.tokens != plain[made.index]
    assert changed >= 3


def test_a_released_penalty_gives_the_answers_of_transformers(tmp_path):
    """Qwen2.5-VL's generation_config.json asks for 1.05, which transformers obeys unasked."""
    source = pathlib.Path(testbed.__file__).parent / "models" / "qwen2_5_vl-0"
    folder = tmp_path / "model"
    shutil.copytree(source, folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"repetition_penalty": 1.05}))
    vlm, reference = vlm_jax.load(folder), Reference.from_folder(folder)
    examples = list(TestbedChair(count=30, family="qwen2_5_vl").examples())
    images = [list(example.images) for example in examples]
    prompts = [example.prompt for example in examples]
    assert len(examples) == 30
    equal = differs = 0
    plain = vlm.generate(images, prompts, max_new_tokens=32, repetition_penalty=1.0)
    for made in vlm.ask(images, prompts, {"max_new_tokens": 32}):
        (draft,) = vlm.processor.drafts([images[made.index]], [prompts[made.index]])
        ids, stops = draft.tokens(vlm.config.image_token_id), vlm.processor.stop_ids
        expected = reference.greedy(ids, images[made.index], 32, stops)
        equal += [*made.tokens] == [token for token in expected if token not in stops]
        differs += made.text != plain[made.index]
    assert equal == 30
    assert differs > 0


def test_a_stop_string_ends_an_answer_before_it(vlm):
    images, prompts = [IMAGES[1]], [PROMPTS[1]]
    (free,) = vlm.answer(images, prompts, max_new_tokens=16)
    middle = len(free.text) // 2
    stop = free.text[middle : middle + 2]
    (made,) = vlm.answer(images, prompts, max_new_tokens=16, stop=(stop, "\x00never"))
    assert made.text == free.text[: free.text.index(stop)]
    assert made.ended
    assert made.tokens == free.tokens[: len(made.tokens)]
    assert stop in vlm.processor.decode([made.tokens], [len(made.tokens)])[0]
    assert stop not in vlm.processor.decode([made.tokens], [len(made.tokens) - 1])[0]


def test_a_penalty_of_one_is_no_program_of_its_own():
    assert not DecodeSettings(repetition_penalty=1.0, min_new_tokens=0).traced()


def test_settings_left_open_follow_the_folder():
    folder = {"repetition_penalty": 1.05, "min_new_tokens": None, "top_k": 5}
    assert DecodeSettings().following(folder).repetition_penalty == 1.05
    assert DecodeSettings(repetition_penalty=1.2).following(folder).repetition_penalty == 1.2
    assert DecodeSettings().following({}).identity["repetition_penalty"] == 1.0
    with pytest.raises(ConfigError, match=r"generation_config\.json\.repetition_penalty"):
        DecodeSettings().following({"repetition_penalty": "much"})


def test_fields_that_are_not_obeyed_are_named_in_one_line():
    assert unfollowed({"eos_token_id": 2, "do_sample": False, "repetition_penalty": 1.05}) is None
    line = unfollowed({"do_sample": True, "top_k": 1, "presence_penalty": 1.5, "num_beams": None})
    assert line is not None
    assert "do_sample=True, top_k=1, presence_penalty=1.5," in line
    assert "num_beams" not in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("field", "value"),
    [("repetition_penalty", 0), ("repetition_penalty", -1.0), ("no_repeat_ngram_size", -1),
     ("min_new_tokens", 1.5), ("stop", 3), ("stop", ("",)), ("system", 3)],
)  # fmt: skip
def test_values_out_of_range_are_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        DecodeSettings(**{field: value})


def test_one_stop_string_needs_no_list():
    assert DecodeSettings(stop="text").stop == ("text",)
