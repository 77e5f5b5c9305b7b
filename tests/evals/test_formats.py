"""Files of others: every layout in which answers come, and one line for what cannot be read."""

import contextlib
import gzip
import io
import json
import zlib

import openpyxl
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_jax.errors import AnswersError
from vlm_jax.evals import records
from vlm_jax.evals.answers import Keys, read_answers
from vlm_jax.evals.records import read_rows, text_rows
from vlm_jax.evals.score import score
from vlm_jax.evals.suites.chair import Chair
from vlm_jax.evals.suites.pope import Pope
from vlm_jax.evals.truth import ObjectTruth, Question

CAPTIONS = {1: "a dog", 2: 'a "cat", big\nand old'}
ASKED = [
    Question(1, "1.jpg", "Is there a dog in the image?", "yes"),
    Question(2, "1.jpg", "Is there a cat in the image?", "no"),
]
ANSWERS = {1: "Yes", 2: "No"}


def captions_of(path, **keys):
    return read_answers(Chair(None, ObjectTruth({}, ())), path, Keys(**keys)).texts


def answers_of(path, **keys):
    return read_answers(Pope(None, ASKED), path, Keys(**keys)).texts


def rows(**names):
    return [{names["key"]: key, names["text"]: text} for key, text in CAPTIONS.items()]


@pytest.mark.parametrize(
    "document",
    [
        {"annotations": rows(key="image_id", text="caption"), "info": {}},
        {"sentences": rows(key="image_id", text="caption"), "overall_metrics": {"CHAIRs": 0.5}},
        {"imgToEval": {str(key): {"caption": text} for key, text in CAPTIONS.items()}},
        {"imgToEval": {f"{k:012}.jpg": {"image_id": k, "caption": t} for k, t in CAPTIONS.items()}},
        {str(key): text for key, text in CAPTIONS.items()},
        {f"COCO_val2014_{key:012}.jpg": text for key, text in CAPTIONS.items()},
        {"image_id": list(CAPTIONS), "caption": list(CAPTIONS.values())},
        {"image": {"0": "1.jpg", "1": "2.jpg"}, "prediction": dict(enumerate(CAPTIONS.values()))},
        rows(key="image", text="response"),
        rows(key="image_id", text="output"),
        rows(key="id", text="response"),
        [{"image_id": k, "text": "Describe.", "answer": t} for k, t in CAPTIONS.items()],
    ],
)
def test_layouts_of_captions(write, document):
    assert captions_of(write("captions.json", json.dumps(document))) == CAPTIONS


def lmms_row(key, answer):
    """A line of an lmms-eval sample file; `doc` holds the truth as "answer"."""
    document = {"question_id": str(key), "question": ASKED[key - 1].text, "answer": "no"}
    return {
        **{"doc_id": key - 1, "doc": document, "target": "no", "resps": [[answer]]},
        **{"filtered_resps": [answer], "pope_accuracy": {"question_id": key, "score": 1.0}},
    }


@pytest.mark.parametrize(
    "listed",
    [
        [{"question_id": k, "text": q.text, "answer": ANSWERS[k]} for k, q in enumerate(ASKED, 1)],
        [{"question": q.text, "answer": ANSWERS[k]} for k, q in enumerate(ASKED, 1)],
        [lmms_row(key, text) for key, text in ANSWERS.items()],
        [{"index": k, "answer": "No", "prediction": text} for k, text in ANSWERS.items()],
        [{"question_id": k, "model_prediction": text} for k, text in ANSWERS.items()],
    ],
)
def test_layouts_of_answers_to_questions(write, listed):
    """The truth that stands beside an answer, and the question, are never taken for it."""
    assert answers_of(write("answers.json", json.dumps(listed))) == ANSWERS


@pytest.mark.parametrize("separator", [",", "\t"])
def test_separated_text(write, separator):
    lines = [f"image_id{separator}caption", f"1{separator}a dog"]
    lines.append(f'2{separator}"a ""cat"", big\nand old"')
    for end in ("\n", "\r\n"):
        text = "\ufeff" + end.join(lines) + end
        path = write(f"captions.{'csv' if separator == ',' else 'tsv'}", text)
        found = {key: text.replace("\r\n", "\n") for key, text in captions_of(path).items()}
        assert found == CAPTIONS


def sheet(path, header, cells):
    book = openpyxl.Workbook()
    book.active.append(header)
    for row in cells:
        book.active.append(row)
    book.save(path)
    return path


def test_sheets(tmp_path):
    path = sheet(tmp_path / "m_POPE.xlsx", ["index", "question", "answer", "prediction"],
                 [[1, "a dog?", "No", "Yes"], [2, "a cat?", "No", None]])  # fmt: skip
    assert answers_of(path) == {1: "Yes", 2: ""}  # an empty cell is an empty answer, not the truth
    numbers = sheet(tmp_path / "n.xlsx", ["question_id", "text"], [[1.0, 5], [2.0, "No"]])
    assert answers_of(numbers) == {1: "5", 2: "No"}


def test_parquet(tmp_path):
    table = pyarrow.table({"image_id": list(CAPTIONS), "caption": list(CAPTIONS.values())})
    pyarrow.parquet.write_table(table, tmp_path / "captions.parquet")
    assert captions_of(tmp_path / "captions.parquet") == CAPTIONS


def test_keys_with_names_of_their_own(write):
    listed = [{"pic": k, "says": text, "text": "x"} for k, text in CAPTIONS.items()]
    path = write("a.jsonl", listed)
    assert captions_of(path, image="pic", text="says") == CAPTIONS
    with pytest.raises(AnswersError, match=r"config\.score\.image_key's field 'picture', has"):
        captions_of(path, image="picture")
    with pytest.raises(AnswersError, match="needs a field 'said', has 'pic'"):
        captions_of(path, image="pic", text="said")


def test_rows_without_ids_are_matched_by_order_and_question(write):
    listed = [{"question": q.text, "answer": ANSWERS[k]} for k, q in enumerate(ASKED, 1)]
    with pytest.raises(AnswersError, match=r"line 1: question .* is not the truth's"):
        answers_of(write("a.jsonl", listed[::-1]))
    with pytest.raises(AnswersError, match="has 1 answers without ids, the truth 2 questions"):
        answers_of(write("a.jsonl", listed[:1]))
    with pytest.raises(AnswersError, match="line 1: names no image or question"):
        answers_of(write("a.jsonl", [{"answer": "Yes"}] * 2))


def test_the_question_is_never_the_answer(write):
    path = write("a.jsonl", [{"question_id": q.id, "text": q.text} for q in ASKED])
    with pytest.raises(AnswersError, match="line 1: the answer is the question itself"):
        answers_of(path)


def test_next_to_no_verdict_is_an_error(write):
    truth = write("q.jsonl", [{"question_id": one.id, **vars(one)} for one in ASKED])
    answers = write("a.jsonl", [{"question_id": q.id, "text": "I see it."} for q in ASKED])
    with pytest.raises(AnswersError, match=r"2 of 2 answers give no verdict, such as 'I see it\.'"):
        score(answers, truth)
    found = score(answers, truth, max_unparsable=1.0).results
    assert found.metrics["unparsable_rate"].value == 1
    assert "unparsable_rate (%)" in found.table()


def test_captions_that_name_no_object_are_no_perfect_score(write):
    truth = write("t.jsonl", [{"image": f"{n}.jpg", "objects": ["cup"]} for n in range(3)])
    captions = ["", "  ", "A photo."]
    answers = write(
        "a.jsonl", [{"image": f"{n}.jpg", "caption": c} for n, c in enumerate(captions)]
    )
    with pytest.raises(AnswersError, match="3 of 3 answers say nothing that is scored, such as ''"):
        score(answers, truth)
    found = score(answers, truth, max_unparsable=1.0).results
    assert found.metrics["unparsable_rate"].value == 1
    captions[2] = "A cup."
    answers = write(
        "a.jsonl", [{"image": f"{n}.jpg", "caption": c} for n, c in enumerate(captions)]
    )
    assert score(answers, truth).results.counts["unparsable"] == 2


def test_objects_of_a_truth_that_no_caption_names_are_told(write):
    truth = [{"image": "0.jpg", "objects": ["cup", "flurb", "Dog"]}]
    answers = write("a.jsonl", [{"image": "0.jpg", "caption": "A flurb and a cup."}])
    [note] = score(answers, write("t.jsonl", truth)).results.notes
    assert note.endswith("so that no caption names them: flurb")
    truth[0]["objects"].remove("flurb")
    assert not score(answers, write("t.jsonl", truth)).results.notes


def test_a_gzip_that_unpacks_to_gigabytes_stops_early(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MAX_BYTES", 1 << 20)
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(packer.compress(b"\0" * (1 << 20)) for _ in range(64)) + packer.flush()
    (tmp_path / "bomb.gz").write_bytes(bomb)
    with pytest.raises(AnswersError, match="unpacks to more than 1 MiB"):
        captions_of(tmp_path / "bomb.gz")


def test_members_of_a_gzip_follow_one_another(tmp_path):
    parts = [
        gzip.compress((json.dumps(row) + "\n").encode()) for row in rows(key="id", text="text")
    ]
    (tmp_path / "a.gz").write_bytes(b"".join(parts))
    assert captions_of(tmp_path / "a.gz") == CAPTIONS


def packed(name):
    """A file of a kind, cut short."""
    stream = io.BytesIO()
    if name == "xlsx":
        book = openpyxl.Workbook()
        book.active.append(["image_id", "caption"])
        book.save(stream)
    else:
        pyarrow.parquet.write_table(pyarrow.table({"image_id": [1] * 500}), stream)
    return stream.getvalue()[:-200]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n\x1a\n\xff", "is not UTF-8 text (it is a PNG picture)"),
        (b"\xff\xfe{\x00", "it is UTF-16 text (save it as UTF-8)"),
        (b"\xd0\xcf\x11\xe0\xa1", "it is an old Excel file (save it as .xlsx)"),
        (b"\x80\x04\x95\xff", "it is a pickle"),
        (packed("xlsx"), "is a zip archive (perhaps an xlsx) that is cut short"),
        (packed("parquet"), "is a parquet file that cannot be read"),
        (b"image_id,caption\n", "holds no rows under its header"),
        (b"image_id,image_id\n1,2\n", "line 1: names of columns must be distinct"),
        (b"image_id,caption\n1,a dog, a cat\n", "line 2: 3 cells under 2 names"),
        (b"<!doctype html>", "line 1: not valid JSON"),
        (b'{"image_id": NaN, "caption": "a"}', "image_id: image id nan"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line_that_names_its_kind(tmp_path, content, message):
    path = tmp_path / "answers"
    path.write_bytes(content)
    with pytest.raises(AnswersError) as error:
        captions_of(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_odd_characters_are_characters(write):
    text = '{"image_id": 1, "caption": "a\u2028dog \\ud83d cat"}\r\n'
    assert captions_of(write("a.jsonl", "\ufeff" + text)) == {1: "a\u2028dog \ufffd cat"}


@given(st.recursive(st.none() | st.integers() | st.floats() | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(st.sampled_from(["id", "image_id", "caption", "text", "x"]),
                                      inner, max_size=3)))  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_any_json_gives_captions_or_one_error(tmp_path_factory, document):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(document))
    try:
        found = captions_of(path)
    except AnswersError:
        return
    assert all(isinstance(text, str) for text in found.values())


@given(st.text(max_size=60))
@settings(max_examples=150, deadline=None)
def test_any_text_gives_rows_or_one_error(text):
    with contextlib.suppress(AnswersError):
        list(text_rows("a.txt", text))


def test_rows_of_a_sheet_name_their_row(tmp_path):
    path = sheet(tmp_path / "a.xlsx", ["image_id", "caption"], [[1, "a dog"], [1, "a cat"]])
    with pytest.raises(AnswersError, match=r"row 3: second answer to 1 \(the first is on row 2\)"):
        captions_of(path)
    assert [row.line for row in read_rows(path)] == [2, 3]


def test_a_quote_that_is_not_closed_is_refused_and_others_are_text(tmp_path):
    path = tmp_path / "answers.csv"
    path.write_text('id,answer\n1,"a cup"\n2,"a cup and\n3,a dog\n')
    with pytest.raises(AnswersError, match="line 3: a quote that opens a cell is not closed"):
        list(read_rows(path))
    path.write_text('id,answer\n1,say "cup"\n2,"a" cup\n')
    assert [row.fields["answer"] for row in read_rows(path)] == ['say "cup"', "a cup"]
