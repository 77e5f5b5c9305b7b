"""Scoring from files: the document, the table, and every way the files can disagree."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from vlm_jax.errors import AnswersError, ConfigError, UserError
from vlm_jax.evals.protocol import parts_of
from vlm_jax.evals.results import (
    Results,
    metric_table,
    protocol_hash,
    read_results,
    write_json,
)
from vlm_jax.evals.score import score
from vlm_jax.evals.statistics import Interval

TABLE = "# categories: dog|cat|cup\n1\t0\n2\t1,2\n3\t\n"
CAPTIONS = [
    {"image_id": 1, "caption": "A dog and a cat."},
    {"image_id": 2, "caption": "A cat and a mug."},
]
QUESTIONS = [
    {"question_id": n, "image": "1.jpg", "text": "Is there a dog?", "label": label}
    for n, label in ((1, "yes"), (2, "no"), (3, "yes"))
]
ANSWERS = [{"question_id": n, "text": text} for n, text in ((3, "Yes"), (1, "No"), (2, "no"))]


@pytest.fixture
def files(write):
    return {
        "table": write("table.tsv", TABLE),
        "captions": write("captions.jsonl", CAPTIONS),
        "questions": write("questions.jsonl", QUESTIONS),
        "answers": write("answers.jsonl", ANSWERS),
    }


def test_chair_document(files, tmp_path):
    results = score(files["captions"], files["table"]).results
    document = json.loads(results.write(tmp_path / "out" / "results.json").read_text())
    assert document["benchmark"] == "chair"
    assert document["counts"] == {
        "captions": 2,
        "hallucinated_captions": 1,
        "object_mentions": 4,
        "hallucinated_mentions": 1,
        "gt_objects": 3,
        "recalled_objects": 3,
        "mentioned_types": 4,
        "words": 12,
        "unparsable": 0,
        "truncated": 0,
    }
    assert document["n"] == 2
    assert document["metrics"]["C_S"]["value"] == 0.5
    assert document["metrics"]["C_I"] == {"value": 0.25, "low": 0.0, "high": 0.5}
    assert document["seeds"] == {"bootstrap": 0}
    assert {"python", "numpy", "vlm_jax"} <= set(document["versions"])
    assert document["config"]["variant"] == "pattern"
    assert document["device"].startswith("none")
    assert document["notes"] == ["1 images of the truth have no caption and were left out"]
    assert read_results(tmp_path / "out" / "results.json") == results


def test_truth_without_instances_says_what_it_cannot_measure(files, write):
    captions = [{"image_id": n, "captions": ["A dog with a mug."]} for n in (1, 2)]
    [note] = score(files["captions"], write("truth.jsonl", captions)).results.notes
    assert "no instances" in note
    whole = [{**row, "instances": [{"category": "dog"}]} for row in captions]
    assert not score(files["captions"], write("whole.jsonl", whole)).results.notes


def test_pope_document(files):
    results = score(files["answers"], files["questions"]).results
    assert results.benchmark == "pope"
    assert results.metrics["accuracy"].value == pytest.approx(2 / 3)
    assert results.counts["true_positives"] == 1
    assert results.config["parser"] == "rucaibox"


def test_questions_on_one_image_are_resampled_together(files):
    """All three questions are on one image: no resample differs from the sample."""
    entry = score(files["answers"], files["questions"]).results.metrics["accuracy"]
    assert entry.low == entry.value == entry.high
    assert score(files["answers"], files["questions"]).results.n == 3


def test_a_baseline_gives_paired_differences(files, write):
    other = write("base.jsonl", [row | {"caption": "A dog and a cup."} for row in CAPTIONS[::-1]])
    results = score(files["captions"], files["table"], baseline=other).results
    difference = results.differences["C_S"]
    assert difference.value == 0.5 - 1.0
    assert difference.low == -1.0
    assert difference.high == 0.0
    assert "vs baseline" in results.table()
    assert results.tests == {"C_S": 1.0}  # one caption of two differs: it says nothing
    assert "C_S: exact McNemar p 1" in results.table()


def test_the_protocol_is_of_the_comparison_not_of_the_answers(files, write):
    first = score(files["answers"], files["questions"]).results.protocol
    other = write("other.jsonl", [row | {"text": "Yes"} for row in ANSWERS])
    assert score(other, files["questions"], draws=10, seed=3).results.protocol == first
    assert (
        score(files["answers"], files["questions"], rules={"parser": "vcd"}).results.protocol
        != first
    )
    assert protocol_hash({"a": 1, "b": 2}) == protocol_hash({"b": 2, "a": 1})


@pytest.mark.parametrize(
    ("answers", "truth", "suite", "message"),
    [
        (
            "captions",
            "table",
            "poope",
            r"config.score.suite: there is no .* 'poope' \(did you mean 'pope'",
        ),
        ("captions", "questions", "chair", "holds yes/no questions; captions need"),
        ("answers", "table", "pope", "holds objects of images; a file of labelled questions"),
        ("answers", "table", "", "needs a field 'image_id' or 'image'"),
        ("captions", "questions", "", "needs a field 'question_id'"),
        ("answers", "captions", "", "does not say which benchmark it is of"),
    ],
)
def test_files_of_the_wrong_kind(files, answers, truth, suite, message):
    with pytest.raises(UserError, match=message):
        score(files[answers], files[truth], suite)


def test_answers_without_truth(files, write):
    rows = [*CAPTIONS, *({"image_id": n, "caption": ""} for n in range(10, 19))]
    path = write("more.jsonl", rows)
    with pytest.raises(AnswersError, match=r"line 3: 9 of 11 answers have no truth: 10, 11"):
        score(path, files["table"])
    path = write("odd.jsonl", [*ANSWERS, {"question_id": 7, "text": "Yes"}])
    with pytest.raises(AnswersError, match=r"line 4: 1 of 4 answers have no truth: 7"):
        score(path, files["questions"])
    results = score(path, files["questions"], allow_extra=True).results
    assert results.n == 3
    assert results.notes == ("1 answers have no truth and were left out",)


def test_questions_without_answers(files, write):
    path = write("few.jsonl", ANSWERS[:1])
    with pytest.raises(AnswersError, match="2 of 3 questions have no answer: 1, 2"):
        score(path, files["questions"])
    results = score(path, files["questions"], allow_missing=True).results
    assert results.n == 1
    assert results.notes == ("2 questions have no answer and were left out",)


def test_a_baseline_over_other_items(files, write):
    other = write("base.jsonl", CAPTIONS[:1])
    with pytest.raises(AnswersError, match="must answer the same items; 1 are in one alone: 2"):
        score(files["captions"], files["table"], baseline=other)


def test_unknown_parser(files):
    with pytest.raises(ConfigError, match=r"config\.score\.parser must be one of .*, not 'gpt'"):
        score(files["answers"], files["questions"], rules={"parser": "gpt"})
    with pytest.raises(ConfigError, match=r"config\.score has no setting 'parser'"):
        score(files["captions"], files["table"], rules={"parser": "vcd"})


def test_real_files(real_data):
    results = score(
        real_data / "chair" / "captions" / "opera" / "llava-1.5_greedy.jsonl",
        real_data / "chair" / "gt_objects_coco2014_pattern.tsv.gz",
        rules={"synonyms": str(real_data / "chair" / "synonyms.txt")},
    ).results
    assert results.counts["hallucinated_captions"] == 225
    assert results.metrics["C_S"].value == 0.45
    assert 0.03 < results.metrics["C_S"].high - 0.45 < 0.06


def test_scoring_never_imports_jax():
    code = (
        "import pkgutil, sys, importlib, vlm_jax.evals as room\n"
        "for module in pkgutil.walk_packages(room.__path__, 'vlm_jax.evals.'):\n"
        "    if not module.name.endswith('.runner'):\n"
        "        importlib.import_module(module.name)\n"
        "room.suites.benchmarks()\n"
        "print([name for name in ('jax', 'flax', 'torch', 'transformers') if name in sys.modules])"
    )
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": root},
    )
    assert done.stdout.strip() == "[]", done.stderr


def example_results(**changes):
    fields = {"metrics": {"C_S": Interval(0.5, 0.4, 0.6)}, "counts": {"captions": 2}, "n": 2}
    return Results("chair", **(fields | changes))


def test_documents_hold_no_nan_and_read_back(tmp_path):
    results = example_results(
        metrics={"C_S": Interval(math.nan)}, config={"a": np.float32(0.5), "p": tmp_path}
    )
    path = results.write(tmp_path / "results.json")
    assert json.loads(path.read_text())["metrics"]["C_S"]["value"] is None
    assert math.isnan(read_results(path).metrics["C_S"].value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "Expected `object`, got `array`"),
        ('{"benchmark": "chair"}', "missing required field `metrics`"),
        (None, "cannot be read"),
    ],
)
def test_bad_results(tmp_path, content, message):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_results(path)


def test_writing_is_whole_or_not_at_all(tmp_path):
    path = write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError, match="does not fit into JSON"):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(UserError, match="cannot write"):
        write_json(path / "below.json", {})


def test_metric_tables_mark_what_excludes_zero():
    edited = example_results(
        differences={"C_S": Interval(-0.1, -0.2, -0.05)},
        metrics={"C_S": Interval(0.4, 0.3, 0.5), "length": Interval(12.0)},
        units={"length": "words"},
    )
    lines = metric_table([("unedited", example_results()), ("edited", edited)]).splitlines()
    assert lines[0].split() == ["C_S", "(%)", "length", "(words)", "n"]
    assert lines[2].split() == ["unedited", "50.0", "[40.0,", "60.0]", "-", "2"]
    assert lines[3].split() == ["edited", "40.0", "[30.0,", "50.0]", "12.0", "2"]
    assert lines[4].split()[:3] == ["vs", "baseline", "-10.0*"]
    with pytest.raises(ValueError, match="at least one arm"):
        metric_table([])


def test_items_that_failed_are_left_out_and_said(files, write):
    broken = {"id": 2, "error": "image 0 is corrupt."}
    answers = write("failed.jsonl", [ANSWERS[0], broken, ANSWERS[1]])
    results = score(answers, files["questions"]).results
    assert results.n == 2
    assert results.notes == ("1 items could not be read and were left out",)
    with pytest.raises(AnswersError, match="1 of 3 questions have no answer: 2"):
        score(write("less.jsonl", ANSWERS[:2]), files["questions"])
    captions = write("captions_failed.jsonl", [CAPTIONS[0], broken])
    assert "1 items could not be read" in score(captions, files["table"]).results.notes[1]


def test_runs_of_other_protocols_are_not_compared(files, tmp_path):
    """Answers of one model at 64 and 512 tokens: one line says what differs."""
    about = {"benchmark": "pope", "parser": "rucaibox", "ids": "3 of abc"}
    paths = {}
    for tokens in (64, 512):
        folder = tmp_path / str(tokens)
        folder.mkdir()
        paths[tokens] = folder / "answers.jsonl"
        paths[tokens].write_text(files["answers"].read_text())
        parts = parts_of({**about, "max_new_tokens": tokens})
        made = Results("pope", {}, {}, 3, protocol=protocol_hash(parts), protocol_parts=parts)
        made.write(folder / "results.json")
    line = "cannot be compared: max_new_tokens is 64 and 512.$"
    with pytest.raises(AnswersError, match=line):
        score(paths[64], files["questions"], baseline=paths[512])
    same = score(paths[64], files["questions"], baseline=paths[64], draws=5).results
    assert same.differences["accuracy"].value == 0
