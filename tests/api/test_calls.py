"""What calls mean: one or many images and prompts, and what is refused."""

import io

import numpy as np
import PIL.Image
import pytest

from tests.reference import picture
from vlm_jax.calls import as_image, read_call
from vlm_jax.errors import PromptError

CAT, DOG = "cat.png", picture(8, 8)

CALLS = {
    "one image, one text": (CAT, "p", [[CAT]], ["p"], True),
    "one text": (None, "p", None, ["p"], True),
    "texts": (None, ["p", "q"], None, ["p", "q"], False),
    "one image, many texts": (CAT, ["p", "q"], [[CAT], [CAT]], ["p", "q"], False),
    "many images, one text": ([CAT, DOG], "p", [[CAT], [DOG]], ["p", "p"], False),
    "a list of one": ([CAT], "p", [[CAT]], ["p"], False),
    "an image a text": ([CAT, DOG], ["p", "q"], [[CAT], [DOG]], ["p", "q"], False),
    "lists": ([[CAT, DOG], []], ["p", "q"], [[CAT, DOG], []], ["p", "q"], False),
    "one sample of two": ([[CAT, DOG]], "p", [[CAT, DOG]], ["p"], False),
    "turns": (CAT, ["p", ["q", "r", "s"]], [[CAT], [CAT]], ["p", ["q", "r", "s"]], False),
    "mixed": (
        (CAT, None, (DOG, CAT)), ["p", "q", "r"],
        [[CAT], [], [DOG, CAT]], ["p", "q", "r"], False,
    ),
    "columns of a table": (
        np.array([CAT, "b"]), np.array(["p", "q"], object), [[CAT], ["b"]], ["p", "q"], False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_call_means(name):
    images, prompts, wanted, texts, single = CALLS[name]
    call = read_call(images, prompts)
    assert (call.images, call.prompts, call.single) == (wanted, texts, single)


REFUSED = {
    "no prompt": (CAT, None, "prompts is missing"),
    "no text": (CAT, 5, "prompts must be a text or a list of texts, not int"),
    "no prompts": (None, [], "at least one"),
    "a prompt that is no text": (None, ["a", 5], r"prompts\[1\] must be a text, not int"),
    "a turn that is no text": (None, ["a", ["b", 5, "c"]], r"prompts\[1\] must be a text, not int"),
    "a set": (None, {"a", "b"}, "not set"),
    "two images, a list of one prompt": ([CAT, DOG], ["p"], r"\[\[first, second\]\]"),
    "a list of one image, two prompts": ([CAT], ["p", "q"], "the image itself and no list"),
    "three for two": ([CAT] * 3, ["p", "q"], "3 entries of images for 2 prompts; give one entry"),
    "no images": ([], "p", "empty list"),
    "a mapping": ({"a": CAT}, "p", "images must be a path, a PIL image or a NumPy array, not dict"),
    "a number among images": ([CAT, 7], "p", r"images\[1\] must be a path"),
    "a nested number": ([[CAT, 7]], "p", r"images\[0\]\[1\] must be a path"),
    "a list too deep": ([[[CAT]]], "p", r"images\[0\]\[0\] must be a path.*not list"),
    "bytes": (b"\x89PNG", "p", r"not bytes; PIL.Image.open\(io.BytesIO"),
    "a file": (io.BytesIO(), "p", r"not BytesIO; PIL.Image.open\("),
    "a generator": (iter([CAT]), "p", r"not list_iterator; list\("),
    "a generator of prompts": (CAT, iter(["p"]), r"not list_iterator; list\("),
    "messages": (CAT, [{"role": "user"}], "not dict; turns are texts"),
    "the wrong way round": ("Describe it.", __file__, "images come before prompts"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_mean_something_else_is_refused(name):
    images, prompts, message = REFUSED[name]
    with pytest.raises(PromptError, match=message) as caught:
        read_call(images, prompts)
    assert "\n" not in str(caught.value)


def test_bytes_of_pixels_are_an_image():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    image = as_image(pixels, "images")
    assert isinstance(image, PIL.Image.Image)
    assert image.size == (4, 2)
    np.testing.assert_array_equal(np.asarray(image), pixels)
    assert read_call(pixels, "p").single
    grey = as_image(pixels[..., 0], "images")
    assert isinstance(grey, PIL.Image.Image)
    assert grey.mode == "L"


ARRAYS = {
    "floats": (np.ones((4, 4, 3), np.float32), r"float32.*np.uint8\(255 \* array\)"),
    "integers": (np.ones((4, 4, 3), np.int64), r"int64.*astype\(np.uint8\)"),
    "a stack": (np.ones((2, 4, 4, 3), np.uint8), r"2x4x4x3.*list\(array\)"),
    "colours first": (np.ones((3, 4, 5), np.uint8), r"3x4x5.*transpose\(1, 2, 0\)"),
    "transparency": (np.ones((4, 4, 4), np.uint8), r"array\[..., :3\]"),
    "one channel": (np.ones((4, 4, 1), np.uint8), r"array\[..., 0\]"),
    "one dim": (np.ones(4, np.uint8), "an array of 4;"),
    "no pixels": (np.ones((0, 4, 3), np.uint8), "no pixels"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_other_arrays_are_refused_with_a_remedy(name):
    array, message = ARRAYS[name]
    with pytest.raises(PromptError, match=message):
        read_call(array, "p")
    with pytest.raises(PromptError, match=message):
        read_call([array], "p")


def test_remedies_work():
    for remedy in (
        np.uint8(255 * np.ones((4, 4, 3), np.float32)),
        np.ones((4, 4, 3), np.int64).astype(np.uint8),
        np.ones((3, 4, 5), np.uint8).transpose(1, 2, 0),
        np.ones((4, 4, 4), np.uint8)[..., :3],
        np.ones((4, 4, 1), np.uint8)[..., 0],
        list(np.ones((2, 4, 4, 3), np.uint8)),
    ):
        assert read_call(remedy, "p").prompts


def test_an_array_of_another_library_is_named():
    jnp = pytest.importorskip("jax.numpy")
    with pytest.raises(PromptError, match=r"np.asarray"):
        read_call([jnp.ones((2, 2, 3), jnp.uint8)], "p")
