"""The score job: CHAIR's words and POPE's parser as a config says."""

import dataclasses
import json

import pytest

from configs import base
from vlm_jax.errors import ConfigError
from vlm_jax.evals.score import score as score_files
from vlm_jax.jobs import score
from vlm_jax.study.request import Request


@pytest.fixture
def asked(tmp_path):
    """Captions that name a puppy and a hot dog, and images that hold dogs alone."""
    answers = tmp_path / "answers.jsonl"
    captions = ["a puppy", "a hot dog"]
    rows = [{"image_id": n, "caption": text} for n, text in enumerate(captions)]
    answers.write_text("\n".join(map(json.dumps, rows)))
    truth = tmp_path / "truth.jsonl"
    seen = [
        {"image_id": n, "captions": ["a dog"], "instances": [{"category": "dog"}]} for n in (0, 1)
    ]
    truth.write_text("\n".join(map(json.dumps, seen)))
    (tmp_path / "synonyms.txt").write_text("dog, puppy\nhot dog\n")
    (tmp_path / "none.json").write_text("{}")
    return Request(config=base.get_config(), answers=answers, truth=(truth,), workdir=tmp_path)


def found(request):
    score.run(request)
    return json.loads((request.workdir / "results.json").read_text())


def test_the_words_are_those_of_the_file(asked, capsys):
    own = found(asked)
    asked.config.score.synonyms = str(asked.workdir / "synonyms.txt")
    published = found(asked)
    assert published["metrics"]["C_S"]["value"] == own["metrics"]["C_S"]["value"] == 0.5
    assert published["protocol"] != own["protocol"]
    asked.config.score.double_words = str(asked.workdir / "none.json")
    assert found(asked)["metrics"]["C_S"]["value"] == 0  # a hot dog is a dog without the rule
    assert "C_S" in capsys.readouterr().out


def test_files_are_there_if_nobody_reads_what_is_printed(asked, monkeypatch):
    def closed(*_):
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", closed)
    with pytest.raises(BrokenPipeError):
        score.run(asked)
    written = {path.name for path in asked.workdir.iterdir()}
    assert {"results.json", "items.jsonl", "report.html", "report.md"} <= written


def test_the_report_has_the_format_that_is_asked_for(asked, capsys):
    asked.config.report.format = "tex"
    found(asked)
    first = asked.workdir / "tables" / "01_chair__score.tex"
    assert r"\begin{tabular}" in first.read_text()
    assert not (asked.workdir / "report.html").exists()
    assert str(first) in capsys.readouterr().out.splitlines()[-1]


def test_answers_come_in_the_layouts_of_other_harnesses_too(asked):
    asked.config.layouts = ("lmms_eval", "vlmevalkit")
    own = found(asked)
    again = dataclasses.replace(asked, workdir=None)
    for name in ("lmms_eval/samples_coco_cap_chair.jsonl", "vlmevalkit/answers_COCO_VAL.xlsx"):
        read = score_files(asked.workdir / name, list(again.truth)).results
        assert read.metrics["C_S"].value == own["metrics"]["C_S"]["value"]
    asked.config.layouts = ("lmms",)
    with pytest.raises(ConfigError, match=r"config\.layouts must be one of 'lmms_eval', 'vlmeval"):
        found(asked)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"synonyms": "absent.txt"}, ".*absent.txt"),
        ({"double_words": "rules.json"}, "set synonyms too"),
        ({"parser": "hearsay"}, "config.score has no setting 'parser'"),
        ({"allow_missing": 1}, "config.score.allow_missing must be True or False"),
        ({"words": "x"}, "config.score has no setting 'words'"),
    ],
)
def test_a_wrong_section_is_one_clear_error(asked, section, message):
    asked.config.score = section
    with pytest.raises(ConfigError, match=message):
        score.run(asked)
