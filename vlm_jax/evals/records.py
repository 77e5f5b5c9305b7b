"""Rows of files, plain or gzipped: JSON in every layout, tables of text, xlsx sheets, parquet.

JSON may be lines, one array, objects one after another, an object that wraps a list of rows
("annotations", "results"), or one that maps ids to rows or texts ("imgToEval"). A row of an
lmms-eval sample file is flattened: its document's ids beside its answer as "response".

Every row keeps its place, so that whoever reads a field can say where a bad one stands.
"""

import json
import math
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vlm_jax.errors import AnswersError
from vlm_jax.evals import sheets
from vlm_jax.foreign import read_bytes

ImageId = int | str

_IMAGE_NAME = re.compile(r"(?:COCO_[A-Za-z]+\d{4}_)?(\d+)", re.ASCII)
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
_BLANK = re.compile(r"\s*")
_BETWEEN = re.compile(r"[\s,]*")


MAX_DIGITS = 18
"""Digits of an id that is a number; more are a name."""

MAX_BYTES = 1 << 30
"""What a file may hold, unpacked; COCO's largest annotation file has 0.45 GiB."""

_KINDS = {
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "a parquet file",
    b"\xd0\xcf\x11\xe0": "an old Excel file (save it as .xlsx)",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"%PDF": "a PDF",
    b"\x28\xb5\x2f\xfd": "a zstd archive (unpack it)",
    b"BZh": "a bzip2 archive (unpack it)",
    b"\xfd7zXZ": "an xz archive (unpack it)",
    b"\xff\xfe": "UTF-16 text (save it as UTF-8)",
    b"\xfe\xff": "UTF-16 text (save it as UTF-8)",
    b"\x93NUMPY": "a NumPy array",
    b"SQLite format 3": "an SQLite database",
    b"\x80": "a pickle (its writer can save JSON)",
}
_LISTS = (
    "annotations",
    "sentences",
    "results",
    "logs",
    "answers",
    "predictions",
    "samples",
    "data",
)
_IDENTITY = ("question_id", "image_id", "image", "image_source", "id", "index", "pid", "question",
             "category", "set_id", "figure_id", "visual_input", "subcategory")  # fmt: skip
_ROW_KEYS = {
    *("image_id", "image", "caption", "text", "question_id", "question", "answer", "response"),
    *("output", "prediction", "label", "captions", "instances", "model_prediction", "query"),
    "error",
}


class Record(NamedTuple):
    """One row of a file, with where it stands: in line 3, in row 3, in annotations entry 3."""

    path: Path
    line: int
    fields: dict[str, Any]
    unit: str = "line"

    @property
    def place(self) -> str:
        """The file and the place in it."""
        return f"{self.path} {self.unit} {self.line}"

    def error(self, message: str) -> AnswersError:
        """An error about this row, naming file and place."""
        return AnswersError(f"{self.place}: {message}")


def read_content(path: str | Path) -> bytes:
    """Reads a regular file, unpacking gzip by content rather than by name.

    Raises:
        AnswersError: the file cannot be read, is a broken gzip, or holds more than `MAX_BYTES`.
    """
    content = read_bytes(Path(path), MAX_BYTES, AnswersError)
    if content[:2] != b"\x1f\x8b":
        return content
    parts, size = [], 0
    try:
        while content:  # members of a gzip follow one another
            member = zlib.decompressobj(16 + zlib.MAX_WBITS)
            parts.append(member.decompress(content, MAX_BYTES + 1 - size))
            size += len(parts[-1])
            if size > MAX_BYTES:
                raise AnswersError(
                    f"{path} unpacks to more than {MAX_BYTES >> 20} MiB, the most that is read."
                )
            if not member.eof:
                raise AnswersError(f"{path} cannot be read: the gzip is cut short.")
            content = member.unused_data.lstrip(b"\0")
    except zlib.error as error:
        raise AnswersError(f"{path} cannot be read: {error}") from error
    return b"".join(parts)


def read_text(path: str | Path) -> str:
    """Reads a UTF-8 text file, plain or gzipped, less a byte order mark.

    Raises:
        AnswersError: see `read_content`; or it is no UTF-8 text: says what it seems to be.
    """
    return decode(path, read_content(path))


def decode(path: str | Path, content: bytes) -> str:
    """Returns a file's content as text; see `read_text`.

    Raises:
        AnswersError: it is not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        kind = next((kind for magic, kind in _KINDS.items() if content.startswith(magic)), None)
        found = f"it is {kind}" if kind else f"byte {error.start}"
        raise AnswersError(f"{path} is not UTF-8 text ({found}).") from None


def parse_rows(
    path: str | Path, text: str, malformed: Callable[[int, str], None] | None = None
) -> Iterator[Record]:
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
            fault = f"expected a JSON object, found {type(value).__name__} {shorten(value)}"
            if malformed is None or is_array:
                raise AnswersError(f"{path} line {line}: {fault}")
            malformed(line, fault)
            continue
        rows += 1
        yield Record(path, line, value)
    if not rows:
        raise AnswersError(f"{path} holds no rows; expected one JSON object a line")


def take_rows(
    path: str | Path, text: str, take: Callable[[Record], None], malformed: dict[str, str] | None
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
            note(row.line, str(error).removeprefix(f"{row.place}: "))
        else:
            taken += 1
    if not taken:
        place, fault = next(iter(malformed.items()))
        raise AnswersError(f"{path} holds no row that can be used; {place}: {fault}")


def read_rows(path: str | Path) -> Iterator[Record]:
    """Yields the rows of a file of any kind that this module's docstring names.

    Raises:
        AnswersError: it cannot be read, is of another kind (which is named), or holds no rows.
    """
    path = Path(path)
    content = read_content(path)
    if is_table(content):
        read = sheets.xlsx_rows if content.startswith(b"PK") else sheets.parquet_rows
        found = [Record(path, n, fields, "row") for n, fields in read(path, content)]
        if not found:
            raise AnswersError(f"{path} holds no rows.")
        return iter(map(_flat, found))
    return text_rows(path, decode(path, content))


def is_table(content: bytes) -> bool:
    """Whether a file's content is an xlsx sheet (any zip archive) or parquet."""
    return content.startswith((b"PK\x03\x04", b"PAR1"))


def text_rows(path: str | Path, text: str) -> Iterator[Record]:
    """Yields the rows of JSON text, or of comma- or tab-separated text with a header."""
    path = Path(path)
    start = text.lstrip()[:1]
    if start and start not in "{[":
        separator = sheets.separator(path, text)
        if separator is None:
            return parse_rows(path, text)  # says what is wrong with it
        return (
            _flat(Record(path, line, fields))
            for line, fields in sheets.separated_rows(path, text, separator)
        )
    rows = parse_rows(path, text)
    if start == "[":
        return map(_flat, rows)
    first, second = next(rows, None), next(rows, None)
    if first is not None and second is None:
        return map(_flat, _unwrapped(first))
    return map(_flat, (row for part in ([first, second], rows) for row in part if row))


def _unwrapped(row: Record) -> Sequence[Record]:
    """The rows inside a file's only object; the object itself where it is a row."""
    fields = row.fields
    for name in _LISTS:
        entries = fields.get(name)
        if isinstance(entries, list) and entries and all(isinstance(one, dict) for one in entries):
            return [Record(row.path, n, one, f"{name} entry") for n, one in enumerate(entries, 1)]
    by_id = fields.get("imgToEval", fields)
    if not isinstance(by_id, dict) or not by_id:
        return [row]
    values = list(by_id.values())
    if by_id.keys() & _ROW_KEYS:  # a row, or columns by name
        if all(isinstance(column, dict) for column in values):  # name -> row -> value
            values = [list(column.values()) for column in values]
        if not all(isinstance(column, list) for column in values):
            return [row]
        lengths = {len(column) for column in values}
        if len(lengths) > 1:
            return [row]
        cells = zip(*values)
        return [Record(row.path, n, dict(zip(by_id, one)), "row") for n, one in enumerate(cells, 1)]
    if all(isinstance(value, dict) for value in values):
        found = [{"id": key, **value} for key, value in by_id.items()]
    elif all(isinstance(value, str) for value in values):
        found = [{"id": key, "text": value} for key, value in by_id.items()]
    else:
        return [row]
    return [Record(row.path, n, one, "entry") for n, one in enumerate(found, 1)]


def _flat(row: Record) -> Record:
    """A row of an lmms-eval sample file with its answer as "response"; other rows as they are.

    What it is about stands in "doc", or, as newer versions leave that out, in a metric's entry;
    where neither says, "doc_id" is its place in the data and "input" what was asked.
    """
    fields = row.fields
    answer = fields.get("filtered_resps", fields.get("resps"))
    if answer is None or "doc_id" not in fields:
        return row
    while isinstance(answer, list) and answer:
        answer = answer[0]
    known: dict[str, Any] = {}
    for about in (fields.get("doc"), *fields.values()):
        if isinstance(about, dict) and not known:
            known = {key: about[key] for key in _IDENTITY if about.get(key) is not None}
    kept = {key: fields[key] for key in ("doc_id", "input", "split") if key in fields}
    return row._replace(fields={**kept, **known, "response": answer})


def image_id(value: object) -> ImageId:
    """Brings the ways of naming an image together: 9, "000000000009.jpg",
    "COCO_val2014_000000000009.jpg".

    Names that are not a number (with COCO's prefix or without) stay text, less folder and image
    suffix.

    Raises:
        ValueError: the value is neither a whole number nor a non-empty name.
    """
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)  # spreadsheets know no whole numbers
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"image id {shorten(value)} must be a whole number or a file name")
    name = clean(value).strip().replace("\\", "/").rsplit("/", 1)[-1]
    if name.lower().endswith(_IMAGE_SUFFIXES):
        name = name.rsplit(".", 1)[0]
    number = _IMAGE_NAME.fullmatch(name)
    if number and len(number[1]) <= MAX_DIGITS:
        return int(number[1])
    if not name:
        raise ValueError(f"image id {shorten(value)} must be a whole number or a file name")
    return name


IMAGE_KEYS = ("image_id", "image", "image_path", "image_source", "id")
"""Fields that may say which image a row is about, the surest first."""


def row_image_id(row: Record, keys: Sequence[str] = IMAGE_KEYS) -> ImageId:
    """Returns the image that a row is about, from the first of `keys` it has.

    Raises:
        AnswersError: it has none of them, or no id is there; naming file and row.
    """
    key = first_key(row, keys)
    try:
        return image_id(row.fields[key])
    except ValueError as error:
        raise row.error(f"{key}: {error}") from error


def row_text(row: Record, keys: Sequence[str]) -> str:
    """Returns a row's text, from the first of `keys` it has.

    Raises:
        AnswersError: it has none of them, or no text is there; naming file and row.
    """
    key = first_key(row, keys)
    value = row.fields[key]
    if not isinstance(value, str):
        raise row.error(f"{key} must be text, found {type(value).__name__} {shorten(value)}")
    return clean(value)


def clean(text: str) -> str:
    """A text with U+FFFD for each half of a surrogate pair, which no file could hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return re.sub("[\ud800-\udfff]", "\ufffd", text)
    return text


def first_key(row: Record, keys: Sequence[str]) -> str:
    """Returns the first of `keys` that a row has.

    Raises:
        AnswersError: it has none; names all of them, and what the row has.
    """
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


def shorten(value: object) -> str:
    """A value's spelling, cut after 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
