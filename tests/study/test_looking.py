"""Where a model looked when it chose its object words, as a report keeps it."""

import base64

import numpy as np
import pytest
from PIL import Image

from tests.reference import IMAGES, PROMPTS
from vlm_jax.batch import Kind
from vlm_jax.evals.base import Example, Suite
from vlm_jax.processing.cutters.base import grid_regions
from vlm_jax.study.looking import _box, _grid, _onto_grid, _steps, look

HEADS = [(1, 0), (2, 3)]


class One(Suite):
    """One picture that a model is asked to describe."""

    def __init__(self):
        self._examples = (Example("a", (IMAGES[0][0],), PROMPTS[0]),)

    def judge(self, example, answer):
        raise NotImplementedError


@pytest.fixture(scope="module")
def looked(qwen_vlm):
    text = qwen_vlm.processor.decode([[40, 41, 42, 43]], [4])[0]
    word = {"start": 1, "end": len(text), "object": "x"}
    row = {"id": "a", "answer": text, "hallucinated": [word], "grounded": []}
    models = {
        "unedited": qwen_vlm,
        "never": qwen_vlm.apply("adhh", heads="all", threshold=1.0),
        "always": qwen_vlm.apply("adhh", heads="all", threshold=0.0),
    }
    return look(models, One(), {name: {"a": row} for name in models}, ["a", "gone"], 4, 2, HEADS)


def test_maps_lie_on_the_grid_and_add_up_to_the_mass(looked, qwen_vlm):
    batch = qwen_vlm.processor.batch([[IMAGES[0][0]]], [PROMPTS[0]])
    rows, cols = looked["images"]["a"]["grid"]
    assert rows * cols == int(np.sum(np.asarray(batch.kinds_bt) == Kind.IMAGE))
    assert looked["maps"] == [
        "layer 0, mean of its heads", "layer 1, mean of its heads", "layer 1, head 0",
        "layer 2, head 3",
    ]  # fmt: skip
    (word,) = looked["arms"]["unedited"]["a"]
    cells = np.frombuffer(base64.b64decode(word["maps"]), np.uint8).reshape(4, rows * cols)
    assert list(cells.max(1)) == [255] * 4
    image = (cells / 255 * np.array(word["peak"])[:, None]).sum(1)
    mass = np.array(word["mass"])
    np.testing.assert_allclose(mass.sum(1), 1, atol=3e-3)
    np.testing.assert_allclose(image, mass[:, 0], atol=0.02)


def test_steered_arms_are_read_through_their_own_steps(looked):
    """Steering that never acts looks where the model does; one that acts looks elsewhere."""
    plain, never, always = (
        np.concatenate([word["peak"], np.ravel(word["mass"])])
        for word in (looked["arms"][name]["a"][0] for name in ("unedited", "never", "always"))
    )
    np.testing.assert_allclose(never, plain, atol=2e-3)
    assert np.abs(always - plain).max() > 5e-3


def test_without_an_object_word_there_is_nothing_to_see(qwen_vlm):
    row = {"id": "a", "answer": "a b", "hallucinated": [], "grounded": []}
    assert look({"unedited": qwen_vlm}, One(), {"unedited": {"a": row}}, ["a"], 4, 2, []) is None


def test_words_begin_at_their_first_token():
    assert list(_steps([(2, 5), (9, 12)], [(0, 1), (1, 4), (4, 6)])) == [(2, 5, 1)]


def test_the_grid_of_image_tokens():
    places = lambda rows, cols: np.array([(7, r, c) for r in range(rows) for c in range(cols)])
    assert _grid(places(2, 3)) == (2, 3)
    line = np.repeat(np.arange(9)[:, None], 3, 1)
    assert _grid(line) == (3, 3)  # without m-rope, a square
    assert _grid(line[:8]) is None
    assert _grid(line[:0]) is None


@pytest.mark.parametrize(
    ("settings", "box"),
    [
        ({"do_center_crop": True}, [0.25, 0, 0.75, 1]),
        ({"do_pad": True}, [0, -0.5, 1, 1.5]),
        ({}, [0, 0, 1, 1]),
    ],
)
def test_what_a_square_covers_of_a_wide_picture(settings, box):
    processor = type("P", (), {"identity": {"pixels": settings}})()
    assert _box(Image.new("RGB", (200, 100)).size, (3, 3), processor) == box
    assert _box((200, 100), (2, 4), processor) == [0, 0, 1, 1]


def test_tokens_of_several_views_share_one_grid():
    left, right, all_of_it = [0, 0, 0.5, 1], [0.5, 0, 1, 1], [0, 0, 1, 1]
    grid, onto_mg = _onto_grid(np.array([left, right, all_of_it, [np.nan] * 4]))
    assert grid == (1, 2)
    np.testing.assert_allclose(onto_mg, [[1, 0], [0, 1], [0.5, 0.5], [0, 0]])
    (rows, cols), onto_mg = _onto_grid(grid_regions(2, 2, (0, -0.5, 1, 1.5)))  # half is padding
    np.testing.assert_allclose(onto_mg.sum(), 2)
    assert (rows, cols) == (1, 2)
