"""Benchmarks over folders of images: pinned order, answers that read back, an error a gap."""

import json

import pytest

from vlm_jax.errors import AnswersError
from vlm_jax.evals.answers import read_answers
from vlm_jax.evals.base import Example, Suite
from vlm_jax.evals.suites.chair import CAPTION_PROMPT, Chair
from vlm_jax.evals.suites.pope import ONE_WORD, Pope
from vlm_jax.evals.tallies import tabulate
from vlm_jax.evals.truth import ObjectTruth, Question, read_questions

TRUTH = ObjectTruth(
    {1: frozenset({"dog"}), 2: frozenset(), "k": frozenset({"cup"})}, ("dog", "cup")
)
QUESTIONS = (
    Question(1, "COCO_val2014_000000000002.jpg", "Is there a dog in the image?", "no"),
    Question(2, "1.jpg", "Is there a dog in the image?", "yes"),
)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("2.jpg", "000000000001.JPG", "k.png"):
        (folder / name).touch()
    (folder / "notes.txt").touch()
    return folder


def test_chair_examples_are_pinned(images):
    bench = Chair(images, TRUTH)
    assert isinstance(bench, Suite)
    assert list(bench.examples()) == [
        Example(1, (images / "000000000001.JPG",), CAPTION_PROMPT, {"image_id": 1}),
        Example(2, (images / "2.jpg",), CAPTION_PROMPT, {"image_id": 2}),
        Example("k", (images / "k.png",), CAPTION_PROMPT, {"image_id": "k"}),
    ]
    assert [example.id for example in Chair(images, TRUTH, ids=["k", 1]).examples()] == ["k", 1]


def test_chair_takes_images_in_memory_and_a_question_file(write):
    questions = write("q.jsonl", [{"image": "2.jpg", "text": "What is this?"}, {"image_id": 1}])
    bench = Chair({1: "one", 2: "two", 3: "three"}, TRUTH, questions=questions, prompt="Describe.")
    assert [(e.id, e.images, e.prompt) for e in bench.examples()] == [
        (2, ("two",), "What is this?"),
        (1, ("one",), "Describe."),
    ]


def test_chair_scores_and_writes_answers(images, write):
    bench = Chair(images, TRUTH, groups={1: {"cat": "partner"}})
    answers = {1: "a dog and a cat", 2: "", "k": "a mug"}
    table = tabulate((e.id, bench.judge(e, answers[e.id]).counts) for e in bench.examples())
    totals = table.totals()
    assert totals["hallucinated_mentions/partner"] == 1
    assert bench.report(totals)["C_S/partner"] == pytest.approx(1 / 3)
    assert set(bench.report(totals)) == set(bench.metrics(totals))
    path = write("a.jsonl", [bench.answer_row(e, answers[e.id]) for e in bench.examples()])
    assert read_answers(bench, path).texts == answers


def test_pope_examples_and_scores(images, write):
    bench = Pope(images, QUESTIONS)
    assert isinstance(bench, Suite)
    first, second = bench.examples()
    assert first.images == (images / "2.jpg",)
    assert first.prompt == QUESTIONS[0].text + ONE_WORD
    assert second.images == (images / "000000000001.JPG",)
    totals = tabulate(
        [(1, bench.judge(first, "No").counts), (2, bench.judge(second, "No").counts)]
    ).totals()
    assert bench.report(totals)["accuracy"] == 0.5
    assert set(bench.report(totals)) == set(bench.metrics(totals))
    path = write("a.jsonl", [bench.answer_row(first, "No"), bench.answer_row(second, "Yes")])
    assert read_answers(bench, path).texts == {1: "No", 2: "Yes"}
    assert len(list(Pope(images, QUESTIONS, limit=1).examples())) == 1


def test_protocols_tell_runs_apart(images):
    one = Pope(images, QUESTIONS).protocol()
    assert one == Pope(images, QUESTIONS).protocol()
    assert one != Pope(images, QUESTIONS, suffix="").protocol()
    assert one != Pope(images, QUESTIONS, parser="vcd").protocol()
    assert Chair(images, TRUTH).protocol() != Chair(images, TRUTH, prompt="Look.").protocol()


def test_gaps_are_errors(images, tmp_path, write):
    with pytest.raises(AnswersError, match=r"1 of 1 images lack image files .*: 7"):
        Chair(images, TRUTH, ids=[7])
    (images / "9.jpg").touch()
    with pytest.raises(AnswersError, match="1 of 4 images lack ground truth: 9"):
        Chair(images, TRUTH)
    (images / "009.png").touch()
    with pytest.raises(AnswersError, match="are both image 9"):
        Chair(images, TRUTH)
    with pytest.raises(AnswersError, match="does not exist"):
        Chair(tmp_path / "absent", TRUTH)
    (tmp_path / "bare").mkdir()
    with pytest.raises(AnswersError, match="holds no image file"):
        Pope(tmp_path / "bare", QUESTIONS)
    with pytest.raises(AnswersError, match=r"1 of 2 images lack .*: 2"):
        Pope({1: "one"}, QUESTIONS)
    with pytest.raises(ValueError, match="parser 'x' is unknown"):
        Pope({1: "one", 2: "two"}, QUESTIONS, parser="x")
    questions = write("q.jsonl", [{"image": "1.jpg"}])
    with pytest.raises(ValueError, match="not both"):
        Chair({1: "one"}, TRUTH, questions=questions, ids=[1])


def test_rows_of_a_question_file_that_cannot_be_read_are_named(write):
    rows = [
        {"question_id": n, "image": "1.jpg", "text": "A dog?", "label": "yes"} for n in range(3)
    ]
    text = [json.dumps(row) for row in rows]
    text[1:1] = ['{"question_id": 7, "image"', "[1]", json.dumps(rows[0] | {"label": "maybe"})]
    text.append(json.dumps({"question_id": 9, "image": "1.jpg", "text": "A dog?"}))
    path = write("questions.jsonl", "\n".join(text))
    pope = Pope({1: "one.jpg"}, path)
    assert [question.id for question in pope.questions] == [0, 1, 2]
    assert list(pope.malformed) == [f"questions.jsonl line {n}" for n in (2, 3, 4, 7)]
    assert pope.malformed["questions.jsonl line 2"].startswith("not valid JSON")
    assert pope.malformed["questions.jsonl line 4"] == "label must be 'yes' or 'no', found 'maybe'."
    assert pope.malformed["questions.jsonl line 7"].startswith("is not ground truth: expected")
    with pytest.raises(AnswersError, match="line 2: not valid JSON"):
        read_questions(path)


def test_rows_of_captions_to_ask_for_that_cannot_be_read_are_named(write):
    text = ['{"image": 2}', '{"image": 1, "text": 5}', "}", '{"image": 2}', '{"text": "Look."}',
            '{"image": "1.jpg", "text": "What is this?"}']  # fmt: skip
    questions = write("q.jsonl", "\n".join(text))
    chair = Chair({1: "one", 2: "two"}, TRUTH, questions=questions)
    assert [(e.id, e.prompt) for e in chair.examples()] == [
        (2, CAPTION_PROMPT), (1, "What is this?"),
    ]  # fmt: skip
    assert chair.malformed == {
        "q.jsonl line 2": "text must be text, found int 5.",
        "q.jsonl line 3": "not valid JSON (Expecting value).",
        "q.jsonl line 4": "second question about image 2; keep one.",
        "q.jsonl line 5": "needs a field 'image_id' or 'image' or 'image_path' or "
        "'image_source' or 'id', has 'text'.",
    }
    first = Chair({1: "one", 2: "two"}, TRUTH, questions=questions, limit=1)
    assert [e.id for e in first.examples()] == [2]
    assert first.malformed == chair.malformed


@pytest.mark.parametrize("make", [Pope, lambda images, path: Chair(images, TRUTH, questions=path)])
def test_a_question_file_without_one_good_row_is_an_error(write, make):
    path = write("q.jsonl", [{"answer": 1}, {"answer": 2}])
    with pytest.raises(AnswersError, match=r"no row that can be used; q.jsonl line 1: .* 'answer'"):
        make({1: "one"}, path)


def test_rows_of_ground_truth_are_all_needed(write):
    path = write("truth.jsonl", [{"image": 1, "instances": []}, {"image": 2, "instances": 3}])
    with pytest.raises(AnswersError, match="line 2: instances must be a list"):
        Chair({1: "one"}, path)
