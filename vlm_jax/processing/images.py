"""Decoding images from paths or PIL objects, with errors that name the sample and the file.

Files are read by a fixed list of decoders: Pillow tries others by content, whatever a file is
called, and one of them (EPS) hands it to a program that runs what it says.

A path is read as transformers' `load_image` reads it: EXIF orientation applied, then converted to
RGB. A PIL image is the caller's own: it goes on as it is, orientation tag and transparency
included, and the folder's image processor makes RGB of it (transparency over white). A warning says
so once of an orientation that is not applied.

Greys of 16 or 32 bits are refused unless they are 0 to 255: what is lighter becomes white, in
transformers too, and of most such pictures nothing else is left.
"""

import contextlib
import functools
import hashlib
import logging
import os
import re
from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np
import PIL.Image
import PIL.ImageOps

from vlm_jax.errors import PromptError
from vlm_jax.foreign import MAX_SCANS, has_many_scans, open_regular
from vlm_jax.settings import whole

ImageSource = PIL.Image.Image | str | os.PathLike

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_log = logging.getLogger(__name__)

_URL = re.compile(r"(https?|ftp|file|s3|gs|hf)://|data:\w+/")
_VIDEO = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".wmv", ".flv", ".mpg", ".mpeg")

# Pillow warns of a decompression bomb from here on, a quarter of a GiB of RGB, and refuses twice
# as much.
MAX_IMAGE_PIXELS = 89_478_485
_PILLOW_LIMIT = 2 * MAX_IMAGE_PIXELS
_MAX_FILE_BYTES = 1 << 30  # some decoders read a file whole

# The EXIF tag, and its values that swap width and height.
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)


def pixel_limit(name: str, value: int) -> int:
    """Returns a limit of pixels of an image, checked; `name` is what errors call the setting."""
    return whole(name, value, low=1, high=_PILLOW_LIMIT)


def describe(source: ImageSource) -> str:
    """Returns the words that an error calls an image by."""
    if isinstance(source, PIL.Image.Image):
        name = getattr(source, "filename", "")
        return str(name) if name else f"a PIL image of {source.width}x{source.height} pixels"
    return os.fspath(source)


def _check_source(image: PIL.Image.Image, name: str) -> None:
    """Refuses an opened image whose decoder runs a program on the file, or hardly ends."""
    if image.format == "EPS":
        raise PromptError(
            f"{name} is an EPS file, which is a program; give one of {', '.join(FORMATS)}."
        )
    if has_many_scans(image):
        raise PromptError(
            f"{name} is a JPEG of more than {MAX_SCANS} scans, which takes for ever; save it anew."
        )


def load_image(source: ImageSource, where: str, max_pixels: int = MAX_IMAGE_PIXELS):
    """Returns a decoded PIL image.

    Args:
        source: a path or a PIL image.
        where: which image of which sample this is, for errors.
        max_pixels: refuse more pixels than this, before they are decoded.

    Raises:
        PromptError: the file is missing or is not a whole image, the image has too many pixels or
            none, its greys are not 0 to 255, or `source` is neither a path nor a PIL image.
    """
    if isinstance(source, PIL.Image.Image):
        _check_source(source, f"{where} ({describe(source)})")
        _check_size(source, f"{where} ({describe(source)})", max_pixels)
        _decode(source.load, source, where)
        _check_greys(source, source, where)
        if _decode(lambda: source.getexif().get(_ORIENTATION, 1), source, where) != 1:
            _warn_of_orientation()
        return source
    with _open(source, where, max_pixels) as image:
        _check_source(image, f"{where} ({describe(source)})")
        turned = _decode(lambda: PIL.ImageOps.exif_transpose(image), source, where)
        _check_greys(turned, source, where)
        return _decode(lambda: turned.convert("RGB"), source, where)


@functools.cache
def _warn_of_orientation() -> None:
    _log.warning(
        "A PIL image lies on its side by its EXIF orientation, which is applied to paths alone; "
        "PIL.ImageOps.exif_transpose(image) turns it."
    )


def upright(image: PIL.Image.Image, where: str) -> PIL.Image.Image:
    """Returns an opened file's image, turned as its EXIF tag says.

    Raises:
        PromptError: it is too large to be looked at, or not whole.
    """
    _check_size(image, where, MAX_IMAGE_PIXELS)  # looking for the tag decodes some formats
    _check_source(image, where)
    if _decode(lambda: image.getexif().get(_ORIENTATION, 1), image, where) == 1:
        return image
    return _decode(lambda: PIL.ImageOps.exif_transpose(image), image, where)


def _check_greys(image: PIL.Image.Image, source: ImageSource, where: str) -> None:
    """Refuses greys of more than 8 bits that are not 0 to 255."""
    if not image.mode.startswith(("I", "F")):
        return
    greys = np.asarray(image)
    low, high = greys.min(), greys.max()
    of_shares = image.mode == "F" and high <= 1  # would be black
    if not (low >= 0 and high <= 255) or of_shares:
        raise PromptError(
            f"{where} ({describe(source)}) has greys of more than 8 bits, from {low:g} to "
            f"{high:g}; save it with 8 bits, from 0 to 255."
        )


def image_size(
    source: ImageSource, where: str, max_pixels: int = MAX_IMAGE_PIXELS
) -> tuple[int, int]:
    """Returns the width and height that `load_image` would give, without decoding a file.

    Raises:
        PromptError: as `load_image`, as far as a file's header tells.
    """
    if isinstance(source, PIL.Image.Image):
        _check_source(source, f"{where} ({describe(source)})")
        _check_size(source, f"{where} ({describe(source)})", max_pixels)
        return source.width, source.height
    with _open(source, where, max_pixels) as image:
        orientation = _decode(lambda: image.getexif().get(_ORIENTATION, 1), source, where)
        turned = orientation in _TURNED
        if turned and image.format == "TIFF":  # which Pillow turns itself, some versions late
            _check_source(image, f"{where} ({describe(source)})")
            _decode(image.load, source, where)
            turned = False
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
    _check_source(source, f"{where} ({describe(source)})")
    _decode(source.load, source, where)
    return source.mode, source.size, hashlib.blake2b(source.tobytes(), digest_size=16).digest()


@contextlib.contextmanager
def _open(source: ImageSource, where: str, max_pixels: int) -> Iterator[PIL.Image.Image]:
    path = _path(source, where)
    with open_regular(path, PromptError) as file:
        size = os.fstat(file.fileno()).st_size
        if size > _MAX_FILE_BYTES:
            raise PromptError(f"{where} ({path}) has {size} bytes; at most {_MAX_FILE_BYTES} read.")
        image = _decode(lambda: PIL.Image.open(file, formats=FORMATS), source, where)
        _check_size(image, f"{where} ({path})", max_pixels)
        yield image


def _path(source: ImageSource, where: str) -> str:
    if not isinstance(source, (str, os.PathLike)):
        raise PromptError(
            f"{where} must be a path or a PIL image, not {type(source).__name__}; images are given "
            "as one list per sample, such as [[first], [second, third]]."
        )
    if not os.path.isfile(source):
        name = describe(source)
        if _URL.match(name):
            raise PromptError(
                f"{where}: {name[:80]} is a URL, and nothing is fetched; save it and give its path."
            )
        if os.path.isdir(source):
            raise PromptError(f"{where}: {name} is a folder; give the images in it.")
        if os.path.exists(source):
            raise PromptError(f"{where}: {name} is not a regular file.")
        raise PromptError(f"{where}: no such file: {name}.")
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
    except PIL.UnidentifiedImageError:
        if describe(source).lower().endswith(_VIDEO):
            raise PromptError(
                f"{where} ({describe(source)}) is a video, which is not supported; give single "
                "frames as images."
            ) from None
        raise PromptError(
            f"{where} ({describe(source)}) is corrupt or not an image of a format that is read "
            f"({', '.join(FORMATS)})."
        ) from None
    except Exception as error:  # decoders of damaged files raise errors of any type
        raise PromptError(
            f"{where} ({describe(source)}) is corrupt or not an image: {error}."
        ) from None


def _check_size(image: PIL.Image.Image, name: str, max_pixels: int) -> None:
    if image.width * image.height == 0:
        raise PromptError(f"{name} has no pixels.")
    check_pixels(name, "has", image.width, image.height, max_pixels)


def check_pixels(name: str, verb: str, width: int, height: int, max_pixels: int) -> None:
    """Refuses an image of more pixels than the limit; `verb` is what it does with that size."""
    pixels = width * height
    if pixels > max_pixels:
        raise PromptError(
            f"{name} {verb} {width}x{height} = {pixels} pixels, more than the budget of "
            f"{max_pixels}; make it smaller or raise max_image_pixels."
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
