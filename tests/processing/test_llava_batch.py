"""LLaVA batches equal transformers' LlavaProcessor bit for bit."""

import copy
import dataclasses

import numpy as np
import pytest

from tests import tiny
from tests.processing.conftest import picture, row
from tests.tiny_tokenizers import TEXT_ONLY_TEMPLATE
from vlm_jax.batch import Kind
from vlm_jax.families import read_config
from vlm_jax.processing import Processor


def unpatch(patches_ue: np.ndarray, channels: int, patch: int) -> np.ndarray:
    """[P, C * p * p] back to [C, H, W]."""
    side = int(len(patches_ue) ** 0.5)
    cells = patches_ue.reshape(side, side, channels, patch, patch)
    return cells.transpose(2, 0, 3, 1, 4).reshape(channels, side * patch, side * patch)


@pytest.mark.parametrize("sizes", [[], [(100, 60)], [(56, 56), (31, 200), (300, 40)]])
def test_tokens_and_pixels_equal_the_reference(llava, sizes):
    images = [picture(w, h, seed=i) for i, (w, h) in enumerate(sizes)]
    prompt = "Please describe this image in detail.\nThe end"
    expected = llava.reference(images, prompt)
    batch = llava.ours.batch([images], [prompt])
    sample = row(batch, 0)
    np.testing.assert_array_equal(sample["tokens"], expected["input_ids"][0])
    if not images:
        assert batch.images is None
        return
    for index, pixels in enumerate(expected["pixel_values"]):
        np.testing.assert_array_equal(unpatch(sample["patches"][index], 3, 14), pixels)
        assert (sample["ids"][index] == index).all()
        np.testing.assert_array_equal(
            sample["places"][index], np.argwhere(np.ones((4, 4), bool)).astype(np.int32)
        )


def test_slots_count_through_the_images_and_positions_through_the_tokens(llava):
    batch = llava.ours.batch([[picture(60, 60), picture(40, 90)], []], ["hi", "a longer question"])
    first, second = row(batch, 0), row(batch, 1)
    is_image = first["tokens"] == llava.config.image_token_id
    np.testing.assert_array_equal(first["slots"][is_image], np.arange(32))
    assert not first["slots"][~is_image].any()
    for sample in (first, second):
        expected = np.repeat(np.arange(len(sample["tokens"]))[:, None], 3, 1)
        np.testing.assert_array_equal(sample["positions"], expected)
        assert sample["next"] == len(sample["tokens"])
    assert (batch.images.ids_bgu[1] == -1).all()
    assert not batch.images.patches_bgue[1].any()


def test_kinds_are_system_image_text_and_pad(llava):
    batch = llava.ours.batch([[picture(60, 60)] * 2, []], ["hi", "words alone"])
    kinds = batch.kinds_bt[0, : batch.lengths_b[0]]
    places = np.flatnonzero(batch.tokens_bt[0] == llava.config.image_token_id)
    assert (kinds[: places[0]] == Kind.SYSTEM).all()
    assert (kinds[places] == Kind.IMAGE).all()
    rest = np.setdiff1d(np.arange(places[0], len(kinds)), places)
    assert len(rest) > 2
    assert (kinds[rest] == Kind.TEXT).all()
    assert (batch.kinds_bt[1, : batch.lengths_b[1]] == Kind.TEXT).all()
    for index, length in enumerate(batch.lengths_b):
        assert (batch.kinds_bt[index, length:] == Kind.PAD).all()
        assert (batch.tokens_bt[index, length:] == llava.ours.pad_id).all()


def test_a_sample_alone_is_itself_in_a_batch_and_under_other_padding(llava):
    images = [[picture(60, 80), picture(90, 20)], [], [picture(70, 70)]]
    prompts = ["hi", "a question that is longer than the other two together", "there"]
    together = llava.ours.batch(images, prompts, length=160, groups=5)
    assert together.tokens_bt.shape == (3, 160)
    assert together.images.patches_bgue.shape == (3, 5, 16, 588)
    for index in range(3):
        alone = row(llava.ours.batch([images[index]], [prompts[index]]), 0)
        for name, value in alone.items():
            np.testing.assert_array_equal(row(together, index)[name], value, err_msg=name)


def test_the_class_token_adds_a_token_and_a_slot(llava):
    vision = dataclasses.replace(llava.config.vision, keep_class_token=True)
    config = dataclasses.replace(llava.config, vision=vision)
    ours = Processor.from_folder(llava.folder, config)
    sample = row(ours.batch([[picture(60, 60)] * 2], ["hi"]), 0)
    is_image = sample["tokens"] == config.image_token_id
    np.testing.assert_array_equal(sample["slots"][is_image], np.arange(2 * 17))
    assert sample["patches"].shape[:2] == (2, 16)


def test_images_go_where_the_prompt_holds_placeholders(llava):
    images = [picture(60, 60), picture(40, 90, seed=1)]
    prompt = "before <image> between <image> after"
    text = llava.theirs.apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": prompt}]}],
        add_generation_prompt=True,
    )
    expected = llava.theirs(images=images, text=text, return_tensors="np")["input_ids"][0]
    batch = llava.ours.batch([images], [prompt])
    np.testing.assert_array_equal(batch.tokens_bt[0, : batch.lengths_b[0]], expected)


def test_a_template_of_strings_gets_the_images_before_the_text(llava, tmp_path):
    folder = tiny.llava(tmp_path / "strings", template=TEXT_ONLY_TEMPLATE)
    ours = Processor.from_folder(folder, read_config(folder))
    images = [picture(60, 60), picture(40, 90, seed=1)]
    assert ours.template("hi", 2) == "user: <image>\n<image>\nhi\nassistant:"
    expected = llava.theirs(images=images, text=ours.template("hi", 2), return_tensors="np")
    batch = ours.batch([images], ["hi"])
    np.testing.assert_array_equal(
        batch.tokens_bt[0, : batch.lengths_b[0]], expected["input_ids"][0]
    )


def test_the_beginning_of_sequence_comes_once(llava):
    template = "{{ bos_token }}" + tiny.LLAVA_TEMPLATE
    pair = copy.copy(llava)
    pair.theirs = copy.copy(llava.theirs)
    pair.theirs.chat_template = template
    ours = Processor(
        llava.config, llava.ours.tokenizer, llava.theirs.image_processor, template=template
    )
    expected = pair.reference([picture(60, 60)], "hi")["input_ids"][0]
    batch = ours.batch([[picture(60, 60)]], ["hi"])
    got = batch.tokens_bt[0, : batch.lengths_b[0]]
    np.testing.assert_array_equal(got, expected)
    assert (got == llava.ours.tokenizer.bos_token_id).sum() == 1
