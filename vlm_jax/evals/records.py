"""Rows of JSON from files: lines, one array, or objects one after another, plain or gzipped.

Every row keeps its line number, so that whoever reads a field can say where a bad one stands.
"""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vlm_jax.errors import AnswersError

ImageId = int | str

_IMAGE_NAME = re.compile(r"(?:COCO_[A-Za-z]+\d{4}_)?(\d+)", re.ASCII)
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
_BLANK = re.compile(r"\s*")
_BETWEEN = re.compile(r"[\s,]*")


class Row(NamedTuple):
    """One JSON object of a file, with where it stands."""

    path: Path
    line: int
    fields: dict[str, Any]

    def error(self, message: str) -> AnswersError:
        """An error about this row, naming file and line."""
        return AnswersError(f"{self.path} line {self.line}: {message}")


def read_text(path: str | Path) -> str:
    """Reads a UTF-8 text file, unpacking gzip by content rather than by name.

    Raises:
        AnswersError: the file is missing, unreadable, a broken gzip or not UTF-8.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        return content.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise AnswersError(f"{path} does not exist") from error
    except UnicodeDecodeError as error:
        raise AnswersError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except (OSError, EOFError, zlib.error) as error:
        raise AnswersError(f"{path} cannot be read: {error}") from error


def parse_rows(
    path: str | Path, text: str, malformed: Callable[[int, str], None] | None = None
) -> Iterator[Row]:
    """Yields the JSON objects of a file's text: JSON lines, an array, or concatenated objects.

    Args:
        path: the file, for errors.
        text: its content.
        malformed: told the line and the fault of a row that is not JSON or not an object, which is
            then passed over together with the rest of its line; an array is one piece, and a fault
            in it an error.

    Raises:
        AnswersError: a row is not JSON or not an object; the text holds no row.
    """
    path = Path(path)
    cursor = _end(_BLANK, text, 0)
    is_array = text[cursor : cursor + 1] == "["
    cursor += is_array
    decoder = json.JSONDecoder()
    line, counted, rows = 1, 0, 0
    while True:
        cursor = _end(_BETWEEN if is_array else _BLANK, text, cursor)
        line += text.count("\n", counted, cursor)
        counted = cursor
        if is_array and text[cursor : cursor + 1] == "]":
            if text[cursor + 1 :].strip():
                raise AnswersError(f"{path} line {line}: text follows the end of the JSON array")
            break
        if cursor >= len(text):
            if is_array:
                raise AnswersError(
                    f"{path} line {line}: the JSON array is not closed; is it cut off?"
                )
            break
        try:
            value, cursor = decoder.raw_decode(text, cursor)
        except (ValueError, RecursionError) as error:
            fault = f"not valid JSON ({getattr(error, 'msg', error)})"
            if malformed is None or is_array:
                raise AnswersError(f"{path} line {line}: {fault}") from error
            malformed(line, fault)
            end = text.find("\n", cursor)
            cursor = len(text) if end < 0 else end
            continue
        if not isinstance(value, dict):
            fault = f"expected a JSON object, found {type(value).__name__} {_shorten(value)}"
            if malformed is None or is_array:
                raise AnswersError(f"{path} line {line}: {fault}")
            malformed(line, fault)
            continue
        rows += 1
        yield Row(path, line, value)
    if not rows:
        raise AnswersError(f"{path} holds no rows; expected one JSON object a line")


def take_rows(
    path: str | Path, text: str, take: Callable[[Row], None], malformed: dict[str, str] | None
) -> None:
    """Gives every row of a file's text to `take`; passes over rows that are malformed.

    Args:
        path: the file, for errors.
        text: its content.
        take: raises an `AnswersError` about a row that it cannot use.
        malformed: takes such rows and those that are not JSON, "<file> line <n>" -> what is wrong;
            None makes each an error.

    Raises:
        AnswersError: a row is malformed and may not be; or none is of use.
    """
    path = Path(path)
    if malformed is None:
        for row in parse_rows(path, text):
            take(row)
        return
    taken = 0

    def note(line: int, fault: str) -> None:
        malformed[f"{path.name} line {line}"] = f"{fault}."

    for row in parse_rows(path, text, note):
        try:
            take(row)
        except AnswersError as error:
            note(row.line, str(error).removeprefix(f"{path} line {row.line}: "))
        else:
            taken += 1
    if not taken:
        place, fault = next(iter(malformed.items()))
        raise AnswersError(f"{path} holds no row that can be used; {place}: {fault}")


def read_rows(path: str | Path) -> Iterator[Row]:
    """Yields the JSON objects of a file; see `parse_rows` for the layouts understood."""
    return parse_rows(path, read_text(path))


def image_id(value: object) -> ImageId:
    """Brings the ways of naming an image together: 9, "000000000009.jpg",
    "COCO_val2014_000000000009.jpg".

    Names that are not a number (with COCO's prefix or without) stay text, less folder and image
    suffix.

    Raises:
        ValueError: the value is neither a whole number nor a non-empty name.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"image id {_shorten(value)} must be a whole number or a file name")
    name = value.strip().replace("\\", "/").rsplit("/", 1)[-1]
    if name.lower().endswith(_IMAGE_SUFFIXES):
        name = name.rsplit(".", 1)[0]
    number = _IMAGE_NAME.fullmatch(name)
    if number:
        return int(number[1])
    if not name:
        raise ValueError(f"image id {_shorten(value)} must be a whole number or a file name")
    return name


def row_image_id(row: Row, keys: tuple[str, ...] = ("image_id", "image")) -> ImageId:
    """The image a row is about, from the first of `keys` it has."""
    key = first_key(row, keys)
    try:
        return image_id(row.fields[key])
    except ValueError as error:
        raise row.error(f"{key}: {error}") from error


def row_text(row: Row, keys: tuple[str, ...]) -> str:
    """A row's text, from the first of `keys` it has."""
    key = first_key(row, keys)
    value = row.fields[key]
    if not isinstance(value, str):
        raise row.error(f"{key} must be text, found {type(value).__name__} {_shorten(value)}")
    return value


def first_key(row: Row, keys: tuple[str, ...]) -> str:
    """The first of `keys` that a row has; an error naming all of them where it has none."""
    for key in keys:
        if key in row.fields:
            return key
    wanted = " or ".join(repr(key) for key in keys)
    have = ", ".join(repr(key) for key in row.fields) or "nothing"
    raise row.error(f"needs a field {wanted}, has {have}")


def some(values: list, limit: int = 5) -> str:
    """The first few of many values, for an error message."""
    text = ", ".join(str(value) for value in values[:limit])
    return text if len(values) <= limit else f"{text}, ... ({len(values)} in all)"


def _end(pattern: re.Pattern[str], text: str, start: int) -> int:
    found = pattern.match(text, start)
    return found.end() if found else start


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
