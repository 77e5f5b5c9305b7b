"""Answers and truth in every layout, and one clear error for every bad row."""

import gzip
import json
import math

import pytest

from vlm_jax.errors import AnswersError
from vlm_jax.evals.answers import Keys, read_answers
from vlm_jax.evals.records import image_id, read_rows
from vlm_jax.evals.suites.chair import Chair
from vlm_jax.evals.suites.pope import Pope
from vlm_jax.evals.truth import (
    ObjectTruth,
    Question,
    read_object_truth,
    read_questions,
    read_truth,
)
from vlm_jax.evals.vocabulary import read_synonyms


def read_captions(path, **keys):
    return read_answers(Chair(None, ObjectTruth({}, ())), path, Keys(**keys))


def read_question_answers(path, **keys):
    return read_answers(
        Pope(None, [Question(1, "a.jpg", "Is there a dog?", "yes")]), path, Keys(**keys)
    )


ROWS = [{"image_id": 1, "caption": "a dog"}, {"image_id": 2, "caption": "a\ncat"}]


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (9, 9),
        ("9", 9),
        ("000000000009.jpg", 9),
        ("COCO_val2014_000000000009.jpg", 9),
        ("COCO_train2014_000000000009", 9),
        ("val2014/COCO_val2014_000000000009.jpg", 9),
        ("2405722.jpg", 2405722),
        ("broken-0007.png", "broken-0007"),
        ("kitchen", "kitchen"),
    ],
)
def test_image_ids(value, key):
    assert image_id(value) == key


@pytest.mark.parametrize("value", [None, True, 1.5, "", "  ", ["1"], "folder/"])
def test_bad_image_ids(value):
    with pytest.raises(ValueError, match="must be a whole number or a file name"):
        image_id(value)


@pytest.mark.parametrize(
    "layout",
    [
        "\n".join(json.dumps(row) for row in ROWS),
        "\ufeff" + "\r\n\r\n".join(json.dumps(row) for row in ROWS) + "\r\n",
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        "\n".join(json.dumps(row, indent=4) for row in ROWS),
        "".join(json.dumps(row) for row in ROWS),
    ],
)
def test_layouts_of_rows(write, layout):
    assert [row.fields for row in read_rows(write("rows", layout))] == ROWS


def test_gzip_is_known_by_content(tmp_path):
    path = tmp_path / "answers.json"
    path.write_bytes(gzip.compress(json.dumps(ROWS).encode()))
    assert read_captions(path).texts == {1: "a dog", 2: "a\ncat"}


def test_captions_by_either_name(write):
    rows = [
        {"image_id": "000000000007.jpg", "text": "one"},
        {"image": "COCO_val2014_000000000008.jpg", "caption": "two", "question_id": 0},
    ]
    answers = read_captions(write("captions.jsonl", rows))
    assert answers.texts == {7: "one", 8: "two"}
    assert [row.line for row in answers.rows.values()] == [1, 2]


def test_answers_by_either_name(write):
    rows = [{"question_id": 1, "text": "Yes"}, {"question_id": "2", "answer": "No"}]
    assert read_question_answers(write("answers.jsonl", rows)).texts == {1: "Yes", 2: "No"}


GOOD = '{"image_id": 1, "caption": "a"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no rows"),
        ("\n\n", "holds no rows"),
        ("[]", "holds no rows"),
        (GOOD + '{"image_id": 2, "caption"', "line 2: not valid JSON"),
        (GOOD + "a dog", "line 2: not valid JSON"),
        (GOOD + "\n\n[1]", "line 4: expected a JSON object, found list"),
        (GOOD + "7", "line 2: expected a JSON object, found int 7"),
        ("[" + GOOD, "the JSON array is not closed"),
        ("[" + GOOD + "] x", "text follows the end"),
        (
            GOOD + '{"caption": "b"}',
            "line 2: needs a field 'image_id' .*, has 'caption'",
        ),
        (GOOD + "{}", "line 2: needs a field 'image_id' or 'image' or .*, has nothing"),
        (GOOD + '{"image_id": 2}', "line 2: needs a field 'caption' or .* or 'text', has"),
        (GOOD + '{"image_id": 2, "caption": 3}', "line 2: caption must be text, found int 3"),
        (GOOD + '{"image_id": 2, "caption": null}', "line 2: caption must be text"),
        (GOOD + '{"image_id": null, "caption": "b"}', "line 2: image_id: image id None"),
        (GOOD + '{"image_id": 1.5, "caption": "b"}', "line 2: image_id: image id 1.5"),
        (GOOD + GOOD, r"line 2: second answer to 1 \(the first is on line 1\)"),
        (GOOD + '{"image_id": "01.jpg", "caption": "b"}', "line 2: second answer to 1"),
        (GOOD + "[" * 100_000, "line 2: not valid JSON"),
    ],
)
def test_bad_captions(write, content, message):
    path = write("captions.jsonl", content)
    with pytest.raises(AnswersError, match=message) as error:
        read_captions(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "Yes"}, "needs a field 'question_id'"),
        ({"question_id": None, "text": "Yes"}, "needs a field 'question_id' with a number"),
        ({"question_id": True, "text": "Yes"}, "needs a field 'question_id' with a number"),
        ({"question_id": math.nan, "text": "Yes"}, "needs a field 'question_id' with a number"),
        (
            {"question_id": 2, "said": "Yes"},
            "needs a field .*, has 'question_id', 'said'",
        ),
        ({"question_id": 1, "text": "Yes"}, "second answer to 1"),
    ],
)
def test_bad_answers(write, row, message):
    path = write("answers.jsonl", [{"question_id": 1, "text": "No"}, row])
    with pytest.raises(AnswersError, match=f"line 2: {message}"):
        read_question_answers(path)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(AnswersError, match=r"absent\.jsonl cannot be read: no such file"):
        read_captions(tmp_path / "absent.jsonl")
    with pytest.raises(AnswersError, match="is not a regular file"):
        read_captions(tmp_path)
    (tmp_path / "latin.jsonl").write_bytes(b'{"image_id": 1, "caption": "caf\xe9"}')
    with pytest.raises(AnswersError, match="is not UTF-8 text"):
        read_captions(tmp_path / "latin.jsonl")
    whole = gzip.compress(GOOD.encode() * 100)
    (tmp_path / "cut.gz").write_bytes(whole[:-12])
    with pytest.raises(AnswersError, match="cannot be read"):
        read_captions(tmp_path / "cut.gz")


TABLE = "# categories: dog|cat|cup\n1\t0,2\nscene-2.png\t\n3\t1\n"


def test_object_table(write):
    truth = read_object_truth(write("table.tsv", TABLE))
    assert truth.categories == ("dog", "cat", "cup")
    assert truth.objects == {1: {"dog", "cup"}, "scene-2": frozenset(), 3: {"cat"}}


def test_real_object_table(coco_truth):
    assert len(coco_truth.objects) == 123_287
    assert len(coco_truth.categories) == 80


INSTANCES = {
    "info": {},
    "images": [{"id": 1}, {"id": 2}],
    "categories": [{"id": 44, "name": "bottle"}, {"id": 18, "name": "dog"}],
    "annotations": [{"image_id": 1, "category_id": 44}, {"image_id": 1, "category_id": 44}],
}
CAPTIONS = {
    "images": [{"id": 1}, {"id": 3}],
    "annotations": [{"image_id": 1, "id": 7, "caption": "Two puppies and a mug."}],
}


def test_coco_files_are_merged(write):
    paths = [
        write("instances.json", json.dumps(INSTANCES)),
        write("captions.json", json.dumps(CAPTIONS)),
    ]
    truth = read_object_truth(paths)
    assert truth.objects == {1: {"bottle", "dog", "cup"}, 2: frozenset(), 3: frozenset()}
    assert read_object_truth(paths[::-1]).objects == truth.objects


def test_rows_of_objects_are_truth(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(
        '{"image": "1.jpg", "objects": ["mug", "man"]}\n{"image": "b", "objects": []}\n'
    )
    read = read_object_truth(path)
    assert read.objects == {1: {"cup", "person"}, "b": frozenset()}
    assert read.sources == {"instances"}


def test_described_images_match_the_published_truth(real_data, official, coco_truth):
    path = real_data / "chair" / "caps_boxes_coco2014_val_80.jsonl"
    truth = read_object_truth(path, official)
    assert len(truth.objects) == 80
    for image, objects in truth.objects.items():
        assert objects == coco_truth.objects[image], image


QUESTION = {"question_id": 1, "image": "a.jpg", "text": "Is there a dog?", "label": "yes"}


@pytest.mark.parametrize("dump", [lambda rows: json.dumps(rows), None])
def test_question_files(write, dump):
    rows = [QUESTION, QUESTION | {"question_id": 2, "label": "No"}]
    questions = read_questions(write("pope.json", dump(rows) if dump else rows))
    assert questions == (
        Question(1, "a.jpg", "Is there a dog?", "yes"),
        Question(2, "a.jpg", "Is there a dog?", "no"),
    )


def test_real_question_files(real_data):
    sizes = {
        path.name: len(read_questions(path))
        for path in sorted((real_data / "pope").glob("*/*_pope_*.json"))
    }
    assert sizes.pop("coco_pope_random_2910.json") == 2910
    assert len(sizes) == 9
    assert set(sizes.values()) == {3000}


def coco(**changes):
    return json.dumps(INSTANCES | changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("image,things\n1,dog", "line 2: is not ground truth"),
        ("a picture of a dog", "neither JSON nor an object table"),
        ("# categories: dog|cat", "names categories but no image"),
        ("# categories: dog||cat\n1\t0", "line 1: category names must be distinct"),
        ("# categories: dog|dog\n1\t0", "line 1: category names must be distinct"),
        ("# categories: dog|cat\n1\t2", "line 2: category index '2' is not a number from 0 to 1"),
        ("# categories: dog|cat\n1\t0\n2\t-1", "line 3: category index '-1'"),
        ("# categories: dog|cat\n1\t0,dog", "line 2: category index 'dog'"),
        ("# categories: dog|cat\n1\t0,", "line 2: category index ''"),
        ("# categories: dog|cat\n1\t0\n01\t1", "line 3: second row of image 1"),
        ("# categories: dog|cat\n\t1", "line 2: image id ''"),
        ('{"image_id": 1}', "line 1: is not ground truth"),
        ('{"id": 1, "captions": "a dog"}', "line 1: captions must be a list"),
        ('{"id": 1, "instances": [{"box": 1}]}', "line 1: instances must be a list"),
        ('{"id": 1, "objects": [{"category": "cup"}]}', "line 1: objects must be a list of names"),
        ('{"captions": []}', "line 1: needs a field 'image_id' or 'id' or 'image'"),
        ('{"id": 1, "captions": []}\n' * 2, "line 2: second row of image 1"),
        (coco(annotations=[{"category_id": 44}]), "missing required field `image_id`"),
        (coco(annotations=[7]), r"Expected `object`, got `int` - at `\$.annotations"),
        (coco(annotations=[{"image_id": 1, "category_id": 9}]), "has category_id 9"),
        (coco(annotations=[{"image_id": 1}]), "has category_id None"),
        (coco(annotations=[{"image_id": 1, "category_id": [1]}]), "got `array` - at .*category_id"),
        (coco(annotations=[{"image_id": 1.5}]), r"annotations\[0\]: image id 1.5"),
        (coco(categories=[{"id": 1}]), "missing required field `name`"),
        (coco(images=[{}]), "missing required field `id`"),
        (coco()[:-9], "not valid JSON"),
        (json.dumps(QUESTION | {"label": "maybe"}), "label must be 'yes' or 'no', found 'maybe'"),
        (json.dumps(QUESTION | {"label": True}), "label must be 'yes' or 'no'"),
        (json.dumps(QUESTION | {"text": 1}), "text must be text"),
        (json.dumps([QUESTION, QUESTION]), "second question 1; its first is in the same file"),
    ],
)
def test_bad_truth(write, content, message):
    path = write("truth", content)
    with pytest.raises(AnswersError, match=message) as error:
        read_truth(path)
    assert str(path) in str(error.value)


def test_truth_of_the_wrong_kind(write):
    table, questions = write("table.tsv", TABLE), write("pope.json", [QUESTION])
    with pytest.raises(AnswersError, match="holds yes/no questions"):
        read_object_truth(questions)
    with pytest.raises(AnswersError, match="holds objects of images"):
        read_questions(table)
    with pytest.raises(AnswersError, match="mix questions and objects"):
        read_truth([table, questions])
    with pytest.raises(AnswersError, match="no truth file given"):
        read_truth([])


def test_categories_outside_the_vocabulary_stand_for_themselves(write):
    vocabulary = read_synonyms(write("synonyms.txt", "dog, puppy\n"))
    truth = read_object_truth(write("table.tsv", "# categories: puppy|sofa\n1\t0,1\n"), vocabulary)
    assert truth.objects == {1: {"dog", "sofa"}}
