"""Whatever a file holds, a benchmark gives a score, or one line that names file and fault."""

import gzip
import io
import itertools
import json
import zipfile

import openpyxl
import pyarrow
import pyarrow.parquet
import pytest

from tests.evals.small import GRADES, SMALL
from vlm_jax.errors import AnswersError, UserError
from vlm_jax.evals import sheets
from vlm_jax.evals.pictures import find_images
from vlm_jax.evals.score import score

NAN = float("nan")
VALUES = (None, True, -1, 0.5, NAN, float("inf"), 10**30, 10**400, "", " ", "\ud800", "x" * 300, [],
          [[[1]]], [None], {}, {"a": [1]}, "1" * 5000)  # fmt: skip
"""What a field may hold where something else is wanted."""


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode("utf-8", "surrogatepass")


def outcome(name, answers, truth, tmp_path):
    """The metrics of two files' contents, or the one line that refuses them."""
    for file, content in (("a.jsonl", answers), ("t.jsonl", truth)):
        (tmp_path / file).write_bytes(content)
    rules = {}
    if name == "mmvet":
        (tmp_path / "g.json").write_text(json.dumps(GRADES))
        rules = {"grades": str(tmp_path / "g.json")}
    try:
        found = score(tmp_path / "a.jsonl", tmp_path / "t.jsonl", name, rules=rules, draws=2,
                      max_unparsable=1.0, allow_missing=True).results  # fmt: skip
    except UserError as error:
        text = str(error)
        assert "\n" not in text, text
        assert any(file in text for file in ("a.jsonl", "t.jsonl", "g.json")), text
        return text
    assert found.n
    return {key: one.value for key, one in found.metrics.items()}


@pytest.mark.parametrize("side", ["answers", "truth"])
@pytest.mark.parametrize("name", SMALL)
def test_any_field_of_any_value(name, side, tmp_path):
    """Each field of the first row in turn: another type, nothing, a number too large, nested."""
    one = SMALL[name]
    rows = getattr(one, side)
    for field, value in itertools.product(rows[0], VALUES):
        changed = [{**rows[0], field: value}, *rows[1:]]
        both = {"answers": one.answers, "truth": one.truth, side: changed}
        outcome(name, lines(both["answers"]), lines(both["truth"]), tmp_path)
    for field in rows[0]:
        less = [{key: own for key, own in rows[0].items() if key != field}, *rows[1:]]
        both = {"answers": one.answers, "truth": one.truth, side: less}
        outcome(name, lines(both["answers"]), lines(both["truth"]), tmp_path)


def bomb():
    """An xlsx whose sheet unpacks to more than is read."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/workbook.xml", "<x/>")
        archive.writestr("xl/worksheets/sheet1.xml", b" " * (2 << 20))
    return out.getvalue()


def sheet(rows, last=0):
    """An xlsx of rows, in which the last row says that it is at another place."""
    book = openpyxl.Workbook()
    book.active.append(list(rows[0]))
    for row in rows:
        book.active.append([str(value) for value in row.values()])
    out = io.BytesIO()
    book.save(out)
    if not last:
        return out.getvalue()
    made = io.BytesIO()
    with zipfile.ZipFile(out) as old, zipfile.ZipFile(made, "w") as new:
        for part in old.namelist():
            content = old.read(part)
            if part.endswith("sheet1.xml"):
                content = content.replace(b'<row r="2"', f'<row r="{last}"'.encode())
            new.writestr(part, content)
    return made.getvalue()


def parquet(table):
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(table), out)
    return out.getvalue()


SAME = {
    "CRLF": lambda text: text.replace(b"\n", b"\r\n"),
    "BOM": lambda text: b"\xef\xbb\xbf" + text,
    "gzip": gzip.compress,
    "blank lines": lambda text: b"\n\n" + text.replace(b"\n", b"\n\n"),
    "an array": lambda text: b"[" + b",".join(text.strip().split(b"\n")) + b"]",
}
REFUSED = {
    "empty": lambda text: b"",
    "blank": lambda text: b" \r\n",
    "cut": lambda text: text[:-9],
    "gzip cut": lambda text: gzip.compress(text)[:-9],
    "gzip garbled": lambda text: gzip.compress(text)[:12] + b"\xff" * 40,
    "empty gzip": lambda text: gzip.compress(b""),
    "UTF-16": lambda text: text.decode().encode("utf-16"),
    "picture": lambda text: b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
    "deep": lambda text: b"[" * 100_000,
    "deep objects": lambda text: b'{"a":' * 100_000,
    "a number": lambda text: b"7",
    "numbers": lambda text: b"[1, 2]",
    "null": lambda text: b"null",
    "empty list": lambda text: b"[]",
    "empty object": lambda text: b"{}",
    "digits": lambda text: b'{"id": ' + b"9" * 5000 + b"}",
    "header alone": lambda text: b"index\tprediction\n",
    "html": lambda text: b"<html><body>404</body></html>",
    "zip": lambda text: b"PK\x03\x04" + text,
    "parquet cut": lambda text: parquet({"index": [1] * 500})[:-99],
    "parquet of many": lambda text: parquet({"index": pyarrow.nulls(20_000_000)}),
    "xlsx cut": lambda text: sheet([{"index": 1}])[:-99],
    "xlsx bomb": lambda text: bomb(),
    "xlsx of far rows": lambda text: sheet([{"index": 1, "prediction": "A"}], 10**12),
}


@pytest.fixture
def small_sheets(monkeypatch):
    monkeypatch.setattr(sheets, "_MAX_SHEET", 1 << 20)
    monkeypatch.setattr(sheets, "_MAX_ROWS", 1 << 12)


@pytest.mark.parametrize("side", ["answers", "truth"])
@pytest.mark.parametrize("name", SMALL)
def test_every_form_of_a_file(name, side, tmp_path, small_sheets):
    one = SMALL[name]
    both = {"answers": lines(one.answers), "truth": lines(one.truth)}
    clean = outcome(name, both["answers"], both["truth"], tmp_path)
    assert isinstance(clean, dict)
    for form, change in (SAME | REFUSED).items():
        changed = both | {side: change(both[side])}
        found = outcome(name, changed["answers"], changed["truth"], tmp_path)
        if form in SAME:
            assert found == clean, form
        else:
            assert isinstance(found, str), (form, found)


@pytest.mark.parametrize("name", SMALL)
def test_answers_to_other_questions_and_second_answers(name, tmp_path):
    one = SMALL[name]
    first = one.answers[0]
    twice = outcome(name, lines([*one.answers, first]), lines(one.truth), tmp_path)
    assert isinstance(twice, str)
    other = {key: f"other {value}" for key, value in first.items()} | {one.key: first[one.key]}
    if name != "mme":  # whose rows of other subsets are left out
        found = outcome(name, lines([*one.answers, other]), lines(one.truth), tmp_path)
        assert isinstance(found, str)
    second = outcome(name, lines(one.answers), lines([*one.truth, one.truth[0]]), tmp_path)
    assert isinstance(second, str) or name == "mme"  # an image may be asked any number of questions


@pytest.mark.parametrize(
    "cell", ["@" * 80, "QUJD" * 30, b"\x00" * 99, {"bytes": b"GIF89a"}, 7, [1]]
)
def test_a_cell_that_is_no_picture_is_one_line(cell, tmp_path):
    from vlm_jax.evals.pictures import embedded
    from vlm_jax.evals.records import Record

    row = Record(tmp_path / "t.parquet", 3, {"image": cell}, "row")
    with pytest.raises(AnswersError, match=r"t\.parquet row 3: image is (no picture|not base64)"):
        embedded(row)


def test_a_file_in_the_place_of_a_folder_of_images_is_called_one(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(AnswersError, match=r"a\.jpg is a file; name the folder"):
        find_images(tmp_path / "a.jpg")
    with pytest.raises(AnswersError, match=r"b\.jpg does not exist"):
        find_images(tmp_path / "b.jpg")
