"""The samples that a Python call means: one or many images and prompts, paired up.

| images | prompts | samples |
|---|---|---|
| one image | a text | one; its answer comes back as text |
| none | a text | one, without an image |
| one image | a list of texts | one a text, all about the image |
| a list | a text | one an entry of the list: an image, or a list of images that go together |
| a list | a list as long | one an entry, each with its own text |

A text may be several turns instead, a list or a tuple in the list of prompts: the user's, the
assistant's, ..., the user's.

    read_call("a.jpg", "Describe.")               # one sample, one image
    read_call(["a.jpg", "b.jpg"], "Describe.")    # two samples
    read_call([["a.jpg", "b.jpg"]], "Compare.")   # one sample of two images
    read_call("a.jpg", [["What is it?", "A cat.", "Sure?"]])   # one sample of three turns

Nothing else is guessed. An image is a path, a PIL image or a NumPy array: uint8, [height, width, 3]
in RGB or [height, width] in grey.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence, Set
from typing import Any

import numpy as np
import PIL.Image

from vlm_jax.errors import PromptError
from vlm_jax.processing import ImageSource

OneImage = ImageSource | np.ndarray
"""A path, a PIL image, or uint8 pixels."""

ImagesOf = OneImage | Sequence["OneImage | Sequence[OneImage] | None"]
"""One image, or an entry a sample: an image, images that go together, or None."""


@dataclasses.dataclass(frozen=True)
class Call:
    """Samples of one call.

    Attributes:
        images: a list a sample; None where no sample has any.
        prompts: as many texts, or turns.
        single: whether one sample was asked as such, so that one answer is wanted and no list.
    """

    images: list[list[ImageSource]] | None
    prompts: list[Any]
    single: bool = False


def read_call(images: Any, prompts: Any) -> Call:
    """Returns the samples that a call means; the module says which.

    Raises:
        PromptError: it could mean several things, or an image is none.
    """
    texts, one = _texts(prompts)
    if _swapped(images, prompts):
        raise PromptError(f"{prompts} is a file: images come before prompts, (image, prompt).")
    if images is None:
        return Call(None, texts, single=one)
    if _is_image(images):
        image = as_image(images, "images")
        return Call([[image] for _ in texts], texts, single=one)
    entries = _entries(images)
    if one:
        if not entries:
            raise PromptError("images is an empty list; leave it out to ask without an image.")
        texts = texts * len(entries)
    elif len(entries) != len(texts):
        raise PromptError(_mismatch(len(entries), len(texts)))
    return Call([_group(entry, index) for index, entry in enumerate(entries)], texts)


def as_image(image: Any, where: str) -> ImageSource:
    """Returns an image as the processor takes it: arrays become PIL images.

    Args:
        image: a path, a PIL image or an array.
        where: what errors call it.

    Raises:
        PromptError: it is none of these, or an array that is no picture of bytes.
    """
    if isinstance(image, np.ndarray):
        return _from_array(image, where)
    if isinstance(image, PIL.Image.Image | str | os.PathLike):
        return image
    raise PromptError(
        f"{where} must be a path, a PIL image or a NumPy array, not {type(image).__name__}"
        f"{_hint(image)}."
    )


def _hint(value: Any) -> str:
    """What makes of a value what a call takes, for the end of an error."""
    if hasattr(value, "__array__"):
        return "; np.asarray(...) makes an array of it"
    if isinstance(value, bytes | bytearray | memoryview):
        return "; PIL.Image.open(io.BytesIO(...)) opens a file's bytes"
    if hasattr(value, "read"):
        return "; PIL.Image.open(...) makes an image of it"
    if isinstance(value, Iterator | Set):
        return "; list(...) makes a list of it"
    return ""


def _swapped(images: Any, prompts: Any) -> bool:
    """Whether the prompt is where an image goes, and a file is where a prompt goes."""
    both = isinstance(images, str) and isinstance(prompts, str)
    return both and os.path.isfile(prompts) and not os.path.exists(images)


def _texts(prompts: Any) -> tuple[list[Any], bool]:
    """Returns the texts, and whether there was one that was no list."""
    if prompts is None:
        raise PromptError(
            "prompts is missing: give images and prompts, or prompts=... alone to ask without an "
            "image."
        )
    if isinstance(prompts, str):
        return [prompts], True
    texts = _listed(prompts)
    if texts is None:
        raise PromptError(
            f"prompts must be a text or a list of texts, not {type(prompts).__name__}"
            f"{_hint(prompts)}."
        )
    if not texts:
        raise PromptError("prompts must be a list of at least one text; it is empty.")
    for index, text in enumerate(texts):
        turns = text if isinstance(text, list | tuple) else [text]
        wrong = next((one for one in turns if not isinstance(one, str)), None)
        if wrong is not None:
            hint = "; turns are texts: [user, assistant, user]" if isinstance(wrong, dict) else ""
            raise PromptError(f"prompts[{index}] must be a text, not {type(wrong).__name__}{hint}.")
    return texts, False


def _entries(images: Any) -> list[Any]:
    entries = _listed(images)
    if entries is None:
        as_image(images, "images")  # says what images are
    return entries or []


def _listed(values: Any) -> list[Any] | None:
    """The values of a list, a tuple, or what gives one (arrays and columns of tables)."""
    if isinstance(values, list | tuple):
        return list(values)
    if hasattr(values, "tolist") and getattr(values, "ndim", 1) == 1:
        return list(values.tolist())
    return None


def _group(entry: Any, index: int) -> list[ImageSource]:
    if entry is None:
        return []
    if isinstance(entry, list | tuple):
        return [as_image(image, f"images[{index}][{n}]") for n, image in enumerate(entry)]
    return [as_image(entry, f"images[{index}]")]


def _is_image(images: Any) -> bool:
    if isinstance(images, np.ndarray):
        return images.dtype.kind not in "OUS"  # an array of names is a list
    return isinstance(images, PIL.Image.Image | str | os.PathLike)


def _from_array(array: np.ndarray, where: str) -> PIL.Image.Image:
    shape = "x".join(map(str, array.shape)) or "no size"
    if array.dtype != np.uint8:
        remedy = (
            "np.uint8(255 * array) makes bytes of values from 0 to 1"
            if array.dtype.kind == "f"
            else "array.astype(np.uint8) makes bytes of values from 0 to 255"
        )
        raise PromptError(f"{where} is an array of {array.dtype}, not of uint8; {remedy}.")
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3):
        if not array.size:
            raise PromptError(f"{where} is an array of {shape}; it has no pixels.")
        return PIL.Image.fromarray(array)
    remedy = ""
    if array.ndim == 4:
        remedy = "; list(array) makes a list of images of a stack"
    elif array.ndim == 3 and array.shape[0] == 3:
        remedy = "; array.transpose(1, 2, 0) puts colours last"
    elif array.ndim == 3 and array.shape[2] == 4:
        remedy = "; array[..., :3] leaves transparency out"
    elif array.ndim == 3 and array.shape[2] == 1:
        remedy = "; array[..., 0] leaves the last dim out"
    raise PromptError(
        f"{where} is an array of {shape}; an image is [height, width, 3] or [height, width]"
        f"{remedy}."
    )


def _mismatch(images: int, prompts: int) -> str:
    """Says what to write where lists of images and of prompts differ in length."""
    text = f"There are {images} entries of images for {prompts} prompts"
    if prompts == 1:
        return (
            f"{text}: write [[first, second]] for one sample of several images, or the prompt as "
            "a text and no list to ask it about each."
        )
    if images == 1:
        return f"{text}: give the image itself and no list to ask all of them about it."
    return f"{text}; give one entry a prompt (an empty list where it has no image)."
