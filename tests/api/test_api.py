"""The Python front door: load, generate, logits, and what it refuses."""

import jax
import numpy as np
import pytest

import vlm_jax
from tests.compiles import counted
from tests.reference import IMAGES, PROMPTS, picture
from vlm_jax.decoding import DecodeSettings
from vlm_jax.errors import CheckpointError, ConfigError, PromptError, UserError
from vlm_jax.loading import read_dtype


@pytest.fixture(scope="module")
def answers(vlm):
    """All samples' answers in one batch."""
    return vlm.generate(IMAGES, PROMPTS, max_new_tokens=6)


@pytest.mark.parametrize("batch_size", [2])
def test_answers_come_in_order_for_any_batch_size(vlm, answers, batch_size):
    found = vlm.generate(IMAGES, PROMPTS, max_new_tokens=6, batch_size=batch_size)
    assert found == answers
    assert all(isinstance(text, str) for text in found)
    assert len(set(found)) > 2


def test_no_images_can_be_said_in_two_ways(vlm):
    texts = ["Hello", "What is it?"]
    expected = vlm.generate([[], []], texts, max_new_tokens=4)
    assert vlm.generate(None, texts, max_new_tokens=4) == expected


def test_a_path_is_as_good_as_an_image(vlm, answers, tmp_path):
    paths = []
    for index, image in enumerate(IMAGES[0]):
        image.save(tmp_path / f"{index}.png")
        paths.append(tmp_path / f"{index}.png")
    assert vlm.generate([paths], PROMPTS[:1], max_new_tokens=6) == answers[:1]
    names = [[str(path) for path in paths]]
    assert vlm.generate(names, PROMPTS[:1], max_new_tokens=6) == answers[:1]


def test_logits_and_lengths(vlm):
    logits, lengths = vlm.logits(IMAGES[:3], PROMPTS[:3])
    assert logits.dtype == np.float32
    assert logits.shape == (3, lengths.max(), vlm.config.decoder.vocab_size)
    alone, length = vlm.logits(IMAGES[1:2], PROMPTS[1:2])
    assert length[0] == lengths[1] == alone.shape[1]
    np.testing.assert_allclose(alone[0], logits[1, : length[0]], atol=1.5e-5)


def test_answers_carry_tokens_and_whether_they_ended(vlm, answers):
    found = list(vlm.answer(IMAGES, PROMPTS, max_new_tokens=6, batch_size=2))
    assert sorted(answer.index for answer in found) == [0, 1, 2, 3]
    for answer in found:
        assert answer.text == answers[answer.index]
        assert len(answer.tokens) == 6 or answer.ended
        assert not set(answer.tokens) & set(vlm.processor.stop_ids)


def test_sampling_does_not_depend_on_the_batch(vlm):
    draw = lambda seed, size: vlm.generate(
        IMAGES, PROMPTS, max_new_tokens=6, temperature=1.2, top_p=0.9, seed=seed, batch_size=size
    )
    assert draw(1, 4) == draw(1, 2)
    assert draw(1, 4) != draw(2, 4)


def test_other_weights_compile_nothing(vlm):
    ask = lambda model: model.generate(IMAGES[:1], PROMPTS[:1], max_new_tokens=6)
    before, programs = ask(vlm), vlm.generator.compilations
    name = "decoder/layers/0/wq_dnh"
    other = vlm.with_params(vlm.params | {name: jax.numpy.flip(vlm.params[name], axis=0)})
    assert ask(other) != before
    assert vlm.generator.compilations == programs
    assert ask(vlm) == before


def test_models_of_one_architecture_share_what_they_compile(vlm):
    ask = lambda model: model.generate(IMAGES[:1], PROMPTS[:1], max_new_tokens=6)
    before, again = ask(vlm), vlm_jax.load(vlm.folder)
    with counted() as compiled:
        assert ask(again) == before
    assert not compiled


def test_a_limit_past_the_slots_of_a_bucket_is_kept(vlm):
    found = next(vlm.answer(IMAGES[:1], PROMPTS[:1], max_new_tokens=17))
    assert len(found.tokens) == 17 or found.ended


BAD_CALLS = {
    "empty batch": (None, [], {}, "at least one"),
    "fewer lists than prompts": ([[]], ["a", "b"], {}, "1 entries of images for 2 prompts"),
    "more lists than prompts": ([[], []], ["a"], {}, "2 entries of images for 1 prompts"),
    "no tokens": (None, ["a"], dict(max_new_tokens=0), "max_new_tokens"),
    "no rows": (None, ["a"], dict(batch_size=-1), "batch_size"),
    "negative temperature": (None, ["a"], dict(temperature=-1.0), "temperature"),
    "top_p of zero": (None, ["a"], dict(top_p=0.0), "top_p"),
    "sampling by name": (None, ["a"], dict(do_sample=True), "a temperature above 0 samples"),
    "a dict of settings": (None, ["a"], dict(settings={}), "not dict; single settings are"),
    "prompt too long": (None, ["word " * 3000], {}, "Sample 0.*tokens long"),
    "missing image": ([["/nowhere/cat.png"]], ["a"], {}, "cat.png"),
    "image of one pixel row": ([[picture(4000, 1)]], ["a"], {}, "Sample 0, image 0"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_a_bad_call_is_one_clear_error(qwen_vlm, name):
    images, prompts, options, message = BAD_CALLS[name]
    with pytest.raises((PromptError, ConfigError), match=message) as caught:
        qwen_vlm.generate(images, prompts, **options)
    assert "\n" not in str(caught.value)


def test_a_corrupt_image_is_named(vlm, tmp_path):
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    with pytest.raises(PromptError, match=r"Sample 1, image 0.*torn\.png"):
        vlm.generate([[], [tmp_path / "torn.png"]], ["a", "b"], max_new_tokens=2)


def test_a_prompt_whose_placeholder_has_no_image_is_refused(vlm):
    with pytest.raises(PromptError, match="Sample 0"):
        vlm.logits(None, [f"{vlm.processor.image_token} what is it?"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda vlm: vlm_jax.load(None), "not by None"),
        (lambda vlm: vlm_jax.load(""), "a model is named by"),
        (lambda vlm: vlm_jax.load("llava-0", mesh=3), "make_mesh"),
        (lambda vlm: vlm.save(None), "the path of a new folder, not None"),
        (lambda vlm: vlm.save(""), "the path of a new folder, not ''"),
        (lambda vlm: vlm.attention(None, "a", max_new_tokens="3"), "max_new_tokens must be"),
        (lambda vlm: vlm_jax.explain(None, "spectra"), "a model of vlm_jax.load, not NoneType"),
        (lambda vlm: vlm_jax.chair(["a cat"], [["cat"]]), "truth must be a mapping"),
        (lambda vlm: vlm_jax.chair(None, None), "truth must be a mapping"),
    ],
)
def test_a_wrong_type_at_the_door_is_one_clear_error(qwen_vlm, call, message):
    with pytest.raises(UserError, match=message) as caught:
        call(qwen_vlm)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises((CheckpointError, ConfigError), match=str(tmp_path)):
        vlm_jax.load(tmp_path)
    with pytest.raises((CheckpointError, ConfigError), match="nowhere"):
        vlm_jax.load(tmp_path / "nowhere")


def test_greedy_is_the_default(vlm, answers):
    found = vlm.answer(IMAGES[:1], PROMPTS[:1], max_new_tokens=6, settings=DecodeSettings())
    assert [answer.text for answer in found] == answers[:1]


def test_a_limit_beyond_the_positions_is_cut_and_said(qwen_vlm, caplog):
    prompts = ["Hello", "Hello there"]
    assert qwen_vlm.room(None, prompts, 2048) == 2048
    room = qwen_vlm.room(None, prompts, 100_000)
    longest = max(draft.length for draft in qwen_vlm.processor.drafts(None, prompts))
    assert room == 4096 - longest
    assert f"cut to {room}" in caplog.text
    assert len(caplog.records) == 1
    with pytest.raises(PromptError, match="tokens"):
        list(qwen_vlm.answer(None, ["Hello"], max_new_tokens=100_000))


@pytest.mark.parametrize(
    ("given", "name"),
    [("fp16", "float16"), ("half", "float16"), ("BF16", "bfloat16"), (np.float32, "float32"),
     (jax.numpy.bfloat16, "bfloat16"), (np.dtype("float16"), "float16")],
)  # fmt: skip
def test_dtypes_may_be_spelt_as_usual(given, name):
    assert read_dtype(given) == name


@pytest.mark.parametrize("given", ["fp15", "int8", np.int32, 16, "float64"])
def test_other_dtypes_are_refused(given):
    with pytest.raises(ConfigError, match="must be 'float32', 'bfloat16' or 'float16'"):
        read_dtype(given)


def test_a_shipped_model_is_loaded_by_name(shipped_llava):
    assert shipped_llava.name == "llava-0"
    assert "llava-0: llava, 6 layers of 8 heads, float32" in repr(shipped_llava)


def test_an_unknown_name_says_which_there_are():
    with pytest.raises(CheckpointError, match=r"did you mean 'llava-\d'.*qwen2_5_vl-2") as caught:
        vlm_jax.load("lava-0")
    assert "\n" not in str(caught.value)


def test_the_package_lists_what_it_offers():
    names = dir(vlm_jax)
    assert {"VLM", "load", "methods", "compare", "chair", "families"} <= set(names)
    assert "importlib" not in names
    assert all(getattr(vlm_jax, name) is not None for name in vlm_jax.__all__)


def test_families_are_listed_with_a_line():
    listed = vlm_jax.families()
    assert {"llava", "qwen2_5_vl"} <= set(listed)
    assert all(line and "\n" not in line for line in listed.values())
    assert "llava" in repr(listed)
    assert vlm_jax.families.find("llava").name == "llava"  # the room of the same name
