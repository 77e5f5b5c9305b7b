"""Answers in the layouts of other harnesses: read back, they have the same score."""

import json

import openpyxl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evals.small import GRADES, SMALL
from vlm_jax.errors import ConfigError
from vlm_jax.evals.exports import LAYOUTS, export, layouts
from vlm_jax.evals.score import score


def scored_by(answers, truth, name, write):
    rules = {"grades": str(write("g.json", json.dumps(GRADES)))} if name == "mmvet" else {}
    return score(answers, truth, name, rules=rules, draws=5, max_unparsable=1.0)


def files_of(name, write):
    one = SMALL[name]
    return write("answers.jsonl", one.answers), write("truth.jsonl", one.truth)


def test_every_benchmark_has_a_small_form():
    from vlm_jax.evals.suites import benchmarks

    assert set(SMALL) == {name for name in benchmarks() if not name.startswith("testbed")}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", SMALL)
def test_an_export_has_the_score_of_what_was_exported(write, tmp_path, name, layout):
    answers, truth = files_of(name, write)
    scored = scored_by(answers, truth, name, write)
    values = {key: one.value for key, one in scored.results.metrics.items()}
    path, *_ = export(tmp_path, scored.suite, scored.texts, values, [layout])
    again = scored_by(path, truth, name, write)
    assert again.texts == scored.texts
    assert {key: one.value for key, one in again.results.metrics.items()} == values
    assert again.results.counts == scored.results.counts


def test_lmms_eval_s_names_stand_for_what_they_mean(write, tmp_path):
    answers, truth = files_of("pope", write)
    for parser, name in (("lmms", "pope_f1_score,none"), ("rucaibox", "F1,none")):
        scored = score(answers, truth, rules={"parser": parser}, draws=5)
        values = {key: one.value for key, one in scored.results.metrics.items()}
        samples, results = export(tmp_path, scored.suite, scored.texts, values, ["lmms_eval"])
        document = json.loads(results.read_text())
        assert document["results"]["pope"][name] == values["F1"]
        assert document["configs"]["pope"]["rules"] == {"parser": parser}
    first = json.loads(samples.read_text().splitlines()[0])
    assert first["doc"] == {"question_id": 0, "question": "Is there a a?", "answer": "yes",
                            "image_source": "0.jpg"}  # fmt: skip
    assert (first["target"], first["filtered_resps"]) == ("yes", ["Yes"])


def test_vlmevalkit_s_columns(write, tmp_path):
    answers, truth = files_of("hallusionbench", write)
    scored = score(answers, truth, draws=5)
    (path,) = export(tmp_path, scored.suite, scored.texts, {}, ["vlmevalkit"], "air")
    assert path.name == "air_HallusionBench.xlsx"
    sheet = openpyxl.load_workbook(path).worksheets[0]
    header, first, *_ = sheet.iter_rows(values_only=True)
    row = dict(zip(header, first))
    assert row["index"] == "VD_chart_1_0_1_0"
    assert (row["l2-category"], row["answer"], row["prediction"]) == ("VD_chart", "No", "No")


@given(st.lists(st.text() | st.sampled_from(["=1+1", "a\rb", "_x0041_", "\x07", "5", "TRUE"]),
                min_size=4, max_size=4))  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_no_answer_is_changed_by_a_sheet(tmp_path_factory, said):
    said = [text.replace("\r", "").replace("\n", " ") if "\r" in text else text for text in said]
    folder = tmp_path_factory.mktemp("sheet")
    (folder / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SMALL["pope"].truth))
    rows = [{"question_id": n, "text": text} for n, text in enumerate(said)]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scored = score(folder / "a.jsonl", folder / "q.jsonl", draws=2, max_unparsable=1.0)
    for layout in LAYOUTS:
        path, *_ = export(folder, scored.suite, scored.texts, {}, [layout])
        again = score(path, folder / "q.jsonl", draws=2, max_unparsable=1.0)
        strip = lambda texts: {key: text.strip() for key, text in texts.items()}
        assert strip(again.texts) == strip(scored.texts)


def test_an_answer_longer_than_a_cell_makes_a_tsv(write, tmp_path):
    one = SMALL["pope"]
    rows = [row | {"text": "yes " * 10_000} for row in one.answers]
    truth = write("truth.jsonl", one.truth)
    scored = score(write("a.jsonl", rows), truth, draws=5)
    (path,) = export(tmp_path, scored.suite, scored.texts, {}, ["vlmevalkit"])
    assert path.suffix == ".tsv"
    assert score(path, truth, draws=5).texts == scored.texts


def test_an_unknown_layout_names_those_there_are():
    assert layouts("config.layouts", "vlmevalkit") == ("vlmevalkit",)
    with pytest.raises(ConfigError, match=r"config\.layouts must be one of 'lmms_eval', 'vlmevalk"):
        layouts("config.layouts", ["lmms"])
