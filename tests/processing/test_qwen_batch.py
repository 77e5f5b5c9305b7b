"""Qwen2.5-VL batches against transformers: ids, pixels, windows and m-rope are equal."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import tiny
from tests.processing.conftest import picture, row
from tests.tiny_tokenizers import TEXT_ONLY_TEMPLATE
from vlm_jax.batch import Kind
from vlm_jax.errors import ConfigError
from vlm_jax.processing import Processor
from vlm_jax.processing.cutters import window_layout

SIZES = [[], [(100, 60)], [(84, 84), (28, 250), (300, 57), (200, 210)]]


@pytest.fixture(scope="module")
def rope_index(qwen):
    torch = pytest.importorskip("torch")
    model = tiny.reference(qwen.folder).model

    def positions(out):
        grid = out.get("image_grid_thw")
        found, delta = model.get_rope_index(
            torch.tensor(out["input_ids"]),
            mm_token_type_ids=torch.tensor(out["mm_token_type_ids"]),
            image_grid_thw=None if grid is None else torch.tensor(grid),
            attention_mask=torch.tensor(out["attention_mask"]),
        )
        return found.permute(1, 2, 0).numpy(), delta.numpy()

    return positions


@pytest.mark.parametrize("sizes", SIZES)
def test_tokens_and_pixels_equal_the_reference(qwen, sizes):
    images = [picture(w, h, seed=i) for i, (w, h) in enumerate(sizes)]
    expected = qwen.reference(images, "Please describe this image in detail.")
    batch = qwen.ours.batch([images], ["Please describe this image in detail."])
    np.testing.assert_array_equal(row(batch, 0)["tokens"], expected["input_ids"][0])
    if not images:
        assert batch.images is None
        return
    # Each image token must point at the unit of 4 patches that the reference would merge into it.
    is_image = batch.tokens_bt[0] == qwen.config.image_token_id
    slots = batch.slots_bt[0, is_image]
    units = batch.images.patches_bgue[0].reshape(-1, 4, 1176)
    np.testing.assert_array_equal(
        units[slots], expected["pixel_values"].astype(np.float32).reshape(-1, 4, 1176)
    )
    owners = batch.images.ids_bgu[0].reshape(-1, 4)[slots]
    sizes = expected["image_grid_thw"].prod(-1) // 4
    np.testing.assert_array_equal(
        owners, np.repeat(np.arange(len(images)), sizes)[:, None].repeat(4, 1)
    )
    assert (batch.images.ids_bgu[0] >= 0).sum() == len(expected["pixel_values"])
    assert not batch.images.patches_bgue[0][batch.images.ids_bgu[0] < 0].any()


def test_bounds_of_pixels_equal_the_reference(qwen):
    """And are part of what makes answers comparable."""
    image, bounds = picture(300, 200), {"min_pixels": 28 * 28 * 6, "max_pixels": 28 * 28 * 9}
    kept = qwen.theirs.image_processor.size
    ours = Processor.from_folder(qwen.folder, **bounds)
    try:
        qwen.theirs.image_processor.size = {
            "shortest_edge": bounds["min_pixels"],
            "longest_edge": bounds["max_pixels"],
        }
        expected = qwen.reference([image], "hi")
    finally:
        qwen.theirs.image_processor.size = kept
    batch = ours.batch([[image]], ["hi"])
    np.testing.assert_array_equal(row(batch, 0)["tokens"], expected["input_ids"][0])
    assert len(row(qwen.ours.batch([[image]], ["hi"]), 0)["tokens"]) > len(expected["input_ids"][0])
    assert (batch.images.ids_bgu[0] >= 0).sum() == len(expected["pixel_values"])
    assert ours.identity != qwen.ours.identity
    assert ours.identity["pixels"]["size"]["longest_edge"] == bounds["max_pixels"]


def test_bounds_of_pixels_that_cannot_be_are_refused(qwen, llava):
    for folder, bounds, message in (
        (qwen.folder, {"min_pixels": 9000, "max_pixels": 8000}, "min_pixels=9000 is more than"),
        (qwen.folder, {"max_pixels": -1}, "max_pixels must be a whole number, at least 0"),
        (llava.folder, {"max_pixels": 9000}, "for models that take images of any shape"),
    ):
        with pytest.raises(ConfigError, match=message):
            Processor.from_folder(folder, **bounds)


@pytest.mark.parametrize("sizes", SIZES[1:])
def test_patch_positions_and_windows_equal_the_reference(qwen, sizes):
    torch = pytest.importorskip("torch")
    from transformers import vision_utils

    images = [picture(w, h) for w, h in sizes]
    grid = torch.tensor(qwen.reference(images, "hi")["image_grid_thw"])
    batch = qwen.ours.batch([images], ["hi"])
    slots = batch.slots_bt[0, batch.tokens_bt[0] == qwen.config.image_token_id]
    places = batch.images.positions_bgu2[0].reshape(-1, 4, 2)[slots].reshape(-1, 2)
    np.testing.assert_array_equal(places, vision_utils.get_vision_position_ids(grid, 2).numpy())

    order, ends = vision_utils.get_vision_window_index(grid, 2, 56, 14)
    theirs = [set(w.tolist()) for w in torch.tensor_split(order, (ends[1:-1] // 4).long())]
    units_per_window = qwen.config.vision.window_units**2
    ours = [set() for _ in theirs]
    for unit, slot in enumerate(slots):
        ours[slot // units_per_window].add(unit)
    assert ours == theirs


@given(st.integers(1, 19), st.integers(1, 19), st.sampled_from([1, 2, 3]), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_windows_equal_the_reference_for_any_grid(high, wide, merge, window):
    torch = pytest.importorskip("torch")
    from transformers import vision_utils

    rows, cols, patch = high * merge, wide * merge, 7
    grid = torch.tensor([[1, rows, cols]])
    layout = window_layout(rows, cols, merge, window)
    order, ends = vision_utils.get_vision_window_index(grid, merge, window * merge * patch, patch)
    sizes = (layout.index_gu >= 0).sum(1)
    np.testing.assert_array_equal(np.cumsum(sizes), ends[1:].numpy())
    units = layout.index_gu.reshape(-1, merge**2)
    units = units[units[:, 0] >= 0]
    np.testing.assert_array_equal(units[:, 0] // merge**2, order.numpy())
    np.testing.assert_array_equal(
        units - units[:, :1], np.tile(np.arange(merge**2), (len(units), 1))
    )
    places = np.empty((rows * cols, 2), np.int32)
    real = layout.index_gu >= 0
    places[layout.index_gu[real]] = layout.positions_gu2[real]
    np.testing.assert_array_equal(places, vision_utils.get_vision_position_ids(grid, merge).numpy())
    flat = layout.index_gu.reshape(-1, merge**2)[layout.slots_m]
    np.testing.assert_array_equal(flat.ravel(), np.arange(rows * cols))


@pytest.mark.parametrize("sizes", SIZES)
def test_rotary_positions_equal_the_reference(qwen, rope_index, sizes):
    images = [picture(w, h) for w, h in sizes]
    expected, delta = rope_index(qwen.reference(images, "what is it?"))
    sample = row(qwen.ours.batch([images], ["what is it?"]), 0)
    np.testing.assert_array_equal(sample["positions"], expected[0])
    assert sample["next"] == len(sample["tokens"]) + delta[0, 0]


def test_text_between_images_and_a_ragged_batch(qwen, rope_index):
    one = "<|vision_start|><|image_pad|><|vision_end|>"
    prompts = [f"first {one} and then {one}?", "no image at all", f"{one}{one} both"]
    images = [
        [picture(100, 60), picture(30, 200)],
        [],
        [picture(57, 57), picture(190, 85)],
    ]
    texts = [
        qwen.theirs.apply_chat_template(
            [{"role": "user", "content": [{"type": "text", "text": prompt}]}],
            add_generation_prompt=True,
        )
        for prompt in prompts
    ]
    out = qwen.theirs(
        images=[*images[0], *images[2]], text=texts, padding=True, return_tensors="np"
    )
    positions, deltas = rope_index(out)
    batch = qwen.ours.batch(images, prompts)
    np.testing.assert_array_equal(batch.lengths_b, out["attention_mask"].sum(1))
    for index in range(3):
        sample, real = row(batch, index), out["attention_mask"][index].astype(bool)
        np.testing.assert_array_equal(sample["tokens"], out["input_ids"][index][real])
        np.testing.assert_array_equal(sample["positions"], positions[index][real])
        assert sample["next"] == batch.lengths_b[index] + deltas[index, 0]


def test_a_sample_alone_is_itself_in_a_batch_and_under_other_padding(qwen):
    images = [[picture(100, 60), picture(90, 200)], [], [picture(70, 70)]]
    prompts = ["hi", "a question that is longer than the other two together", "there"]
    together = qwen.ours.batch(images, prompts, length=192, groups=40)
    assert together.tokens_bt.shape == (3, 192)
    assert together.images.ids_bgu.shape == (3, 40, 16)
    for index in range(3):
        alone = row(qwen.ours.batch([images[index]], [prompts[index]]), 0)
        for name, value in alone.items():
            np.testing.assert_array_equal(row(together, index)[name], value, err_msg=name)


def test_everything_before_the_first_image_token_is_system(qwen):
    batch = qwen.ours.batch([[picture(60, 60)]], ["hi"])
    tokens, kinds = batch.tokens_bt[0], batch.kinds_bt[0]
    start = int(np.flatnonzero(tokens == qwen.config.vision_start_id)[0])
    end = int(np.flatnonzero(tokens == qwen.config.vision_end_id)[0])
    assert (kinds[: start + 1] == Kind.SYSTEM).all()
    assert (kinds[start + 1 : end] == Kind.IMAGE).all()
    assert (kinds[end : batch.lengths_b[0]] == Kind.TEXT).all()


def test_string_templates_get_the_vision_tokens(qwen):
    ours = Processor(
        qwen.config,
        qwen.ours.tokenizer,
        qwen.theirs.image_processor,
        template=TEXT_ONLY_TEMPLATE,
    )
    one = "<|vision_start|><|image_pad|><|vision_end|>"
    assert ours.template("hi", 2) == f"user: {one}{one}hi\nassistant:"


def test_stop_ids_are_those_of_the_generation_config_and_the_tokenizer(qwen, llava):
    names = ("<|im_end|>", "<|endoftext|>")
    ids = {qwen.ours.tokenizer.convert_tokens_to_ids(name) for name in names}
    assert set(qwen.ours.stop_ids) == ids
    assert llava.ours.stop_ids == (2,)
