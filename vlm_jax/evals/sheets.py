"""Rows of tables: comma- and tab-separated text, xlsx sheets, parquet.

Empty cells are absent, but where a column is of answers: what a model said is then nothing, and no
other column is to be taken for it.
"""

import csv
import io
import itertools
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlm_jax.errors import AnswersError

_MAX_CELL = 1 << 28  # a picture in base64
_MAX_SHEET = 1 << 30  # bytes of an unpacked xlsx or parquet file
_MAX_ROWS = 1 << 20  # as many as Excel has

MME_NAMES = ("image", "question", "answer", "prediction")
ANSWERS = ("prediction", "model_prediction", "response", "output")
"""Columns that can only hold what a model said."""

_PICTURES = (".jpg", ".jpeg", ".png", ".webp")

Rows = Iterator[tuple[int, dict[str, Any]]]
"""The line or row of a file (the header is the first) and its cells by column name."""


def separator(path: Path, text: str) -> str | None:
    """The separator of a text with a header line; None for a text that is no table."""
    header = text.lstrip("\n\r").split("\n", 1)[0]
    if "\t" in header:
        return "\t"
    if path.name.lower().removesuffix(".gz").endswith(".csv") or _is_header(header):
        return ","
    return None


def _is_header(line: str) -> bool:
    names = [name.strip().strip('"') for name in line.split(",")]
    return len(names) > 1 and all(name.replace("-", "_").isidentifier() for name in names)


def _without_header(cells: list[str]) -> bool:
    """Whether a first line is a row in the form of MME's files: image, question, label, answer."""
    return (
        2 < len(cells) <= len(MME_NAMES)
        and cells[0].lower().endswith(_PICTURES)
        and cells[2].strip().lower() in ("yes", "no")
    )


def separated_rows(path: Path, text: str, separator: str) -> Rows:
    """Yields the rows of separated text; quoted cells may hold line ends.

    A file without a header is read where it is one of MME's; its name is then the category.

    Raises:
        AnswersError: a row has more cells than the header, names repeat, nothing follows, or a
            quote is not closed.
    """
    csv.field_size_limit(_MAX_CELL)
    _check_quotes(path, text, separator)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    count, names, more = 0, None, {}
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if names is None and _without_header(cells):
                names, more = list(MME_NAMES), {"category": path.name.split(".")[0]}
            elif names is None:
                names = _names(path, cells)
                continue
            if len(cells) > len(names):
                raise AnswersError(
                    f"{path} line {reader.line_num}: {len(cells)} cells under {len(names)} names; "
                    "is a cell with the separator in it quoted?"
                )
            count += 1
            yield reader.line_num, _filled(names, cells) | more
    except csv.Error as error:
        raise AnswersError(f"{path} line {reader.line_num}: {error}") from None
    if not count:
        raise AnswersError(f"{path} holds no rows under its header.")


def _check_quotes(path: Path, text: str, separator: str) -> None:
    """Refuses a quote that opens a cell and is not closed: all rows behind it would be its cell."""
    reader, begun = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True), 1
    try:
        for _ in reader:
            begun = reader.line_num + 1
    except csv.Error as error:
        if "unexpected end" in str(error):  # others are cells with quotes in them, which are read
            raise AnswersError(
                f"{path} line {begun}: a quote that opens a cell is not closed."
            ) from None


def _names(path: Path, cells: Any) -> list[str]:
    names = ["" if cell is None else str(cell).strip() for cell in cells]
    named = [name for name in names if name]
    if len(set(named)) < len(named) or not named:
        raise AnswersError(f"{path} line 1: names of columns must be distinct; found {names}.")
    return names


def _filled(names: Sequence[str], cells: Sequence[Any]) -> dict[str, Any]:
    """The cells of a row by name, less empty ones; an empty answer is "".

    (["index", "hint", "prediction"], [1, None, None]) -> {"index": 1, "prediction": ""}
    """
    found = {}
    for name, cell in itertools.zip_longest(names, cells):
        if not name:
            continue
        if cell is not None and not (isinstance(cell, str) and not cell.strip()):
            found[name] = cell
        elif name in ANSWERS:
            found[name] = ""
    return found


def xlsx_rows(path: Path, content: bytes) -> Rows:
    """Yields the rows of an Excel file's first sheet.

    Raises:
        AnswersError: it is none, is damaged, or openpyxl is not installed.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = sum(one.file_size for one in archive.infolist())
            if "xl/workbook.xml" not in archive.namelist():
                raise AnswersError(f"{path} is a zip archive and no xlsx file; unpack it.")
    except zipfile.BadZipFile:
        raise AnswersError(
            f"{path} is a zip archive (perhaps an xlsx) that is cut short."
        ) from None
    if size > _MAX_SHEET:
        raise AnswersError(f"{path} unpacks to {size} bytes; at most {_MAX_SHEET} are read.")
    try:
        import openpyxl
    except ImportError:
        raise AnswersError(f"{path} is an xlsx file: {_needs('openpyxl')}") from None
    names: list[str] | None = None
    try:
        book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True)
        sheet = book.worksheets[0]
        sheet.reset_dimensions()  # what it says of its size need not be so
        for number, cells in enumerate(sheet.iter_rows(values_only=True), 1):
            if number > _MAX_ROWS:
                raise AnswersError(f"{path} says that it has more than {_MAX_ROWS} rows.")
            if all(cell is None for cell in cells):
                continue
            if names is None:
                names = _names(path, cells)
            else:
                yield number, _filled(names, cells)
    except AnswersError:
        raise
    except Exception as error:  # whatever its XML reader makes of damaged parts
        raise AnswersError(f"{path} is an xlsx file that cannot be read: {error}.") from None


def parquet_rows(path: Path, content: bytes) -> Rows:
    """Yields the rows of a parquet file.

    Raises:
        AnswersError: it is damaged, or pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise AnswersError(f"{path} is a parquet file: {_needs('pyarrow')}") from None
    number = 0
    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content))
        about = file.metadata
        groups = (about.row_group(place) for place in range(about.num_row_groups))
        size = sum(group.total_byte_size for group in groups)
        if about.num_rows > _MAX_ROWS or size > _MAX_SHEET:
            raise AnswersError(
                f"{path} unpacks to {about.num_rows} rows of {size} bytes; at most {_MAX_ROWS} and "
                f"{_MAX_SHEET} are read."
            )
        for batch in file.iter_batches(batch_size=256):
            for fields in batch.to_pylist():
                number += 1
                yield number, _filled(list(fields), list(fields.values()))
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        text = " ".join(str(error).split())
        raise AnswersError(f"{path} is a parquet file that cannot be read: {text}.") from None


def _needs(package: str) -> str:
    return f"install {package} to read it (pip install 'vlm_jax[data]')."
