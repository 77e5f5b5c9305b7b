"""Finds the pictures of examples: files of a folder by image id, or bytes inside a table's cell."""

import base64
import binascii
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vlm_jax.errors import AnswersError
from vlm_jax.evals.records import ImageId, Record, image_id, some
from vlm_jax.foreign import MAX_SCANS, has_many_scans

ImageSource = str | Path | Mapping[ImageId, Any]
"""A folder of image files, or image id -> path or PIL image."""

EMBEDDED = "embedded"
"""The `images` of a benchmark whose truth file holds its pictures."""

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS = 1 << 28
_ORIENTATION = 0x0112  # the EXIF tag


def find_images(source: ImageSource, by_path: bool = False) -> dict[ImageId, Any]:
    """Image id -> path (of a folder's image files) or whatever a mapping holds.

    Args:
        source: a folder or a mapping.
        by_path: whether ids are paths below the folder ("VD/chart/0_1.png") instead of names.

    Raises:
        AnswersError: no such folder, a file, no image in it, or two files of one image id.
    """
    if isinstance(source, Mapping):
        return dict(source) if by_path else {image_id(key): one for key, one in source.items()}
    folder = Path(source)
    if not folder.is_dir():
        what = (
            "is a file; name the folder that it lies in" if folder.is_file() else "does not exist"
        )
        raise AnswersError(f"image folder {folder} {what}")
    found: dict[ImageId, Path] = {}
    for path in sorted(folder.rglob("*") if by_path else folder.iterdir()):
        if path.suffix.lower() not in _SUFFIXES:
            continue
        key = path.relative_to(folder).as_posix() if by_path else image_id(path.name)
        if key in found:
            raise AnswersError(f"{found[key]} and {path} are both image {key}; keep one")
        found[key] = path
    if not found:
        raise AnswersError(f"image folder {folder} holds no image file (.jpg, .png, .webp, ...)")
    return found


def need_all(wanted: Iterable[ImageId], have: Mapping[ImageId, Any], what: str) -> None:
    """Refuses images that are not there.

    Raises:
        AnswersError: naming the first few.
    """
    wanted = list(dict.fromkeys(wanted))
    missing = [key for key in wanted if key not in have]
    if missing:
        raise AnswersError(f"{len(missing)} of {len(wanted)} images lack {what}: {some(missing)}")


def embedded(row: Record, key: str = "image") -> Any:
    """The picture in a row: base64 text, bytes or parquet's {"bytes": ...}; None if it has none.

    It is opened here, so that a cell that is no picture is an error of its row, and decoded later.

    Raises:
        AnswersError: the cell holds something else.
    """
    cell = row.fields.get(key)
    if isinstance(cell, dict):
        cell = cell.get("bytes")
    if cell is None:
        return None
    if isinstance(cell, str):
        if len(cell) < 64:  # a name, or a pointer to another row
            return None
        try:
            cell = base64.b64decode(cell.partition("base64,")[2] or cell, validate=True)
        except (binascii.Error, ValueError):
            raise row.error(f"{key} is not base64 text of a picture") from None
    import PIL.Image
    import PIL.ImageOps

    try:
        picture = PIL.Image.open(io.BytesIO(cell), formats=FORMATS)
    except Exception as error:  # PIL's readers raise whatever they meet
        raise row.error(f"{key} is no picture: {error}") from None
    if picture.width * picture.height > MAX_PIXELS:
        raise row.error(f"{key} has {picture.width} x {picture.height} pixels, more than are read")
    if has_many_scans(picture):
        raise row.error(f"{key} is a JPEG of more than {MAX_SCANS} scans, which takes for ever")
    try:
        turned = picture.getexif().get(_ORIENTATION, 1) != 1
        return PIL.ImageOps.exif_transpose(picture) if turned else picture
    except Exception as error:
        raise row.error(f"{key} is no whole picture: {error}") from None
