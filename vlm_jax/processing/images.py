"""Decoding images from paths or PIL objects, with errors that name the sample and the file.

A path is read as transformers' `load_image` reads it: EXIF orientation applied, then converted to
RGB. A PIL image is the caller's own: it goes on as it is, orientation tag and transparency
included, and the folder's image processor makes RGB of it (transparency over white).
"""

import hashlib
import os
from collections.abc import Callable, Hashable, Sequence

import PIL.Image
import PIL.ImageOps

from vlm_jax.errors import PromptError

ImageSource = PIL.Image.Image | str | os.PathLike

# Pillow warns of a decompression bomb from here on: a quarter of a GiB of RGB.
MAX_IMAGE_PIXELS = 89_478_485

# The EXIF tag, and its values that swap width and height.
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)


def describe(source: ImageSource) -> str:
    """Returns the words that an error calls an image by."""
    if isinstance(source, PIL.Image.Image):
        name = getattr(source, "filename", "")
        return str(name) if name else f"a PIL image of {source.width}x{source.height} pixels"
    return os.fspath(source)


def load_image(source: ImageSource, where: str, max_pixels: int = MAX_IMAGE_PIXELS):
    """Returns a decoded PIL image.

    Args:
        source: a path or a PIL image.
        where: which image of which sample this is, for errors.
        max_pixels: refuse more pixels than this, before they are decoded.

    Raises:
        PromptError: the file is missing or is not a whole image, the image has too many pixels or
            none, or `source` is neither a path nor a PIL image.
    """
    if isinstance(source, PIL.Image.Image):
        _check_size(source, where, max_pixels)
        _decode(source.load, source, where)
        return source
    with _open(source, where, max_pixels) as image:
        return _decode(lambda: PIL.ImageOps.exif_transpose(image).convert("RGB"), source, where)


def image_size(
    source: ImageSource, where: str, max_pixels: int = MAX_IMAGE_PIXELS
) -> tuple[int, int]:
    """Returns the width and height that `load_image` would give, without decoding a file.

    Raises:
        PromptError: as `load_image`, as far as a file's header tells.
    """
    if isinstance(source, PIL.Image.Image):
        _check_size(source, where, max_pixels)
        return source.width, source.height
    with _open(source, where, max_pixels) as image:
        orientation = _decode(lambda: image.getexif().get(_ORIENTATION, 1), source, where)
        turned = orientation in _TURNED
        return (image.height, image.width) if turned else (image.width, image.height)


def image_key(source: ImageSource, where: str) -> Hashable:
    """Returns what equal images share: a file's path, time and size, a PIL image's pixels.

    Raises:
        PromptError: there is no such file, the PIL image cannot be decoded, or `source` is neither.
    """
    if not isinstance(source, PIL.Image.Image):
        path = _path(source, where)
        status = os.stat(path)
        return path, status.st_mtime_ns, status.st_size
    _decode(source.load, source, where)
    return source.mode, source.size, hashlib.blake2b(source.tobytes(), digest_size=16).digest()


def _open(source: ImageSource, where: str, max_pixels: int) -> PIL.Image.Image:
    path = _path(source, where)
    image = _decode(lambda: PIL.Image.open(path), source, where)
    _check_size(image, where, max_pixels)
    return image


def _path(source: ImageSource, where: str) -> str:
    if not isinstance(source, (str, os.PathLike)):
        raise PromptError(
            f"{where} must be a path or a PIL image, not {type(source).__name__}; images are given "
            "as one list per sample, such as [[first], [second, third]]."
        )
    if not os.path.isfile(source):
        raise PromptError(f"{where}: no such file: {describe(source)}.")
    return os.fspath(source)


def _decode(step: Callable, source: ImageSource, where: str):
    try:
        return step()
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise PromptError(
            f"{where} ({describe(source)}) is over Pillow's pixel limit: {error}"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # decoders of damaged files raise errors of any type
        raise PromptError(
            f"{where} ({describe(source)}) is corrupt or not an image: {error}."
        ) from None


def _check_size(image: PIL.Image.Image, where: str, max_pixels: int) -> None:
    pixels = image.width * image.height
    if pixels == 0:
        raise PromptError(f"{where} ({describe(image)}) has no pixels.")
    if pixels > max_pixels:
        raise PromptError(
            f"{where} ({describe(image)}) has {image.width}x{image.height} = {pixels} pixels, more "
            f"than the budget of {max_pixels}; make it smaller or raise max_image_pixels."
        )


def check_nesting(
    images: Sequence[Sequence[ImageSource]] | None, size: int, first: int = 0
) -> list[list[ImageSource]]:
    """Returns one list of images per sample, or raises `PromptError` if it is not that."""
    if images is None:
        return [[] for _ in range(size)]
    if isinstance(images, (str, os.PathLike, PIL.Image.Image)):
        raise PromptError("images must be a list, per sample, of lists of images, not one image.")
    if len(images) != size:
        raise PromptError(
            f"There are image lists for {len(images)} samples but {size} prompts; give one list of "
            "images per prompt (an empty list for none)."
        )
    for index, group in enumerate(images, first):
        if isinstance(group, (str, os.PathLike, PIL.Image.Image)) or not isinstance(
            group, Sequence
        ):
            raise PromptError(
                f"Sample {index}: its images must be a list of paths or PIL images, not "
                f"{type(group).__name__}; put a single image in a list of its own."
            )
    return [list(group) for group in images]
