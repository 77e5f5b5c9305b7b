"""The comparison of arms: what it writes, what it shares, what it refuses."""

import json
import re

import pytest

from tests.jobs.conftest import IMAGES
from vlm_jax.errors import AnswersError, ConfigError
from vlm_jax.jobs import evaluate
from vlm_jax.report.run import report_of
from vlm_jax.report.stored import read_run


def read(path):
    return json.loads(path.read_text())


@pytest.fixture
def top(job):
    return read(job(evaluate.run) / "results.json")


def test_the_top_of_the_results_is_the_unedited_model_on_the_first_benchmark(top):
    assert top["arm"] == "unedited"
    assert top["n"] == IMAGES
    assert top["metrics"]["C_S"]["value"] == pytest.approx(0.6)
    assert top["metrics"]["C_S/partner"]["value"] == pytest.approx(0.6)
    assert top["counts"]["captions"] == IMAGES
    for field in ("config", "versions", "seeds", "device", "protocol"):
        assert top[field]


def test_every_arm_of_every_benchmark_has_its_metrics_and_differences(top):
    assert list(top["all"]) == ["broken", "normal", "pope"]
    for entries in top["all"].values():
        assert list(entries) == ["unedited", "edited", "C5", "R3"]
        assert not entries["unedited"]["differences"]
    edited = top["all"]["broken"]["edited"]["differences"]["C_S"]
    assert edited["value"] == pytest.approx(-0.1)
    assert edited["low"] < -0.1 < edited["high"] <= 0
    assert top["all"]["broken"]["C5"]["differences"]["C_S"] == {"value": 0, "low": 0, "high": 0}
    assert top["all"]["pope"]["edited"]["metrics"]["accuracy"]["value"] == 1


def test_every_arm_has_its_answers_in_the_layout_asked_for(job, config):
    config.layouts, config.benchmarks = ("lmms_eval",), {"pope": {"kind": "fake_pope"}}
    config.arms, config.frontier.biases = {"edited": {}}, ()
    folder = job(evaluate.run) / "pope"
    for arm in ("unedited", "edited"):
        own = (folder / arm / "answers.jsonl").read_text().splitlines()
        made = (folder / arm / "lmms_eval" / "samples_pope.jsonl").read_text().splitlines()
        assert [json.loads(row)["resps"][0][0] for row in made] == [
            json.loads(row)["text"] for row in own
        ]


def test_the_gap_is_read_off_the_frontier_at_equal_recall(top):
    arms = top["comparison"]["arms"]
    points = [
        (p["bias"], p["recall"], p["metric"]) for p in top["comparison"]["frontier"]["points"]
    ]
    assert points == [(2, 0.8, 0.4), (1, 0.9, 0.5), (0, 1.0, 0.6), (-1, 1.0, 0.7)]
    assert top["comparison"]["frontier"]["benchmarks"] == ["broken", "normal"]
    assert arms["edited"]["frontier_gap"]["value"] == pytest.approx(-0.1)
    assert arms["C5"]["frontier_gap"]["value"] == 0


def test_an_arm_of_a_recall_that_no_bias_has_is_out_of_range(job, config, fake, monkeypatch):
    config.frontier.biases = (1.0,)
    lost = type(fake).answer

    def answer(model, images, prompts, **settings):
        for one in lost(model, images, prompts, **settings):
            yield type(one)(one.index, "nothing.") if model.change() else one

    monkeypatch.setattr(type(fake), "answer", answer)
    workdir = job(evaluate.run)
    arms = read(workdir / "results.json")["comparison"]["arms"]
    assert arms["edited"]["frontier_gap"] == "out of range"
    assert arms["R3"]["frontier_gaps_by_draw"] == ["out of range"] * 3
    assert "out of range (3 of 3)" in (workdir / "report.md").read_text()


def test_what_can_be_found_is_said_before_the_run(job, capsys):
    job(evaluate.run)
    printed = capsys.readouterr().out
    line = "broken: 40 answers; least paired change that is found with 80 % power: none, none, 18.1"
    assert f"{line} points if 5, 10, 20 % of the answers change." in printed
    assert printed.index(line) < printed.index("Change from the unedited model")


def test_random_controls_rank_the_edit_among_their_draws(job, capsys):
    top = read(job(evaluate.run) / "results.json")
    controls = {entry["control"]: entry for entry in top["comparison"]["controls"]}
    assert controls["R3"]["edit"] == "edited"
    # R3 has the edit's ||dW||, so the fake treats both alike: no draw is worse, p is 1.
    assert controls["R3"]["rank_p"] == {"broken": 1.0, "normal": 1.0, "pope": 1.0}
    assert controls["R3"]["smallest_rank_p"] == 0.25
    assert controls["R3"]["frontier_gap_rank_p"] == 1.0
    assert controls["R3"]["differences"]["broken"]["C_S"]["value"] == 0
    assert controls["C5"]["rank_p"] == {}
    assert controls["C5"]["differences"]["broken"]["C_S"]["value"] == pytest.approx(-0.1)
    printed = capsys.readouterr().out
    assert "3 draws: rank p can not be below 0.25" in printed


def test_draws_are_different_edits_with_quantities_matched_to_the_original(top):
    arm = top["comparison"]["arms"]["R3"]
    assert arm["seeds"] == [0, 1, 2]
    quantities = arm["matched_quantities"]
    assert len(quantities) == 3
    original = top["comparison"]["arms"]["edited"]["matched_quantities"][0]["edit"]
    for drawn in quantities:
        assert drawn["matched"]
        assert drawn["reference"] == pytest.approx(original)
        assert drawn["edit"]["dw_norm"] == pytest.approx(original["dw_norm"])
    removed = {round(drawn["edit"]["energy_removed"], 6) for drawn in quantities}
    assert len(removed) == 3


def test_a_control_without_draws_has_the_default_number(job, config):
    config.control_draws = 2
    config.arms = {"edited": {}, "R1": {"control": "R1"}}
    top = read(job(evaluate.run) / "results.json")
    assert top["comparison"]["arms"]["R1"]["draws"] == 2


def test_more_draws_make_only_the_new_answers(job, config, fake):
    job(evaluate.run)
    made = len(fake.calls)
    assert made == 3 * IMAGES * (1 + 1 + 1 + 3) + 2 * IMAGES * 3
    config.arms.R3.draws = 4
    top = read(job(evaluate.run) / "results.json")
    assert len(fake.calls) - made == 3 * IMAGES
    assert top["comparison"]["arms"]["R3"]["draws"] == 4


def test_another_edit_under_the_same_name_is_refused(job, config):
    job(evaluate.run)
    config.edit.strength = 0.7
    with pytest.raises(AnswersError, match="another run: "):
        job(evaluate.run)


def test_reports_are_written_whole_and_alone(job):
    workdir = job(evaluate.run)
    page = (workdir / "report.html").read_text()
    assert page.count('<figure class="chart"') == 7
    assert page.count("<table>") == page.count("</table>") == 9
    assert not re.findall('(?:src|href)="(?!#|data:)', page.split("<script>")[0])
    assert report_of(read_run(workdir)).text == page
    assert "| edited |" in (workdir / "report.md").read_text()


def test_no_arms_is_a_plain_evaluation(job, config):
    config.arms = {}
    config.frontier.biases = ()
    workdir = job(evaluate.run)
    assert read(workdir / "results.json")["comparison"]["frontier"] is None
    assert (workdir / "answers.jsonl").read_text().count("\n") == IMAGES


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        (
            "arms",
            {"x": {"strenght": 1}},
            r"config.arms.x has no setting 'strenght' .*; it knows .*draws",
        ),
        ("arms", {"x": {"strength": 2.0}}, r"config\.arms\.x\.strength must be .* at most 1"),
        ("arms", {"x": {"control": "C2", "draws": 3}}, r"x.draws: control 'C2' is not random"),
        ("arms", {"x": {"draws": 3}}, r"x.draws: control '' is not random"),
        ("arms", {"x": {"control": "R1", "draws": 0}}, r"x.draws must be a whole number"),
        ("arms", {"unedited": {}}, r"config.arms.unedited: this name is taken"),
        ("arms", {"a b": {}, "a_b": {"k": 1}}, r"would share the folder a_b"),
        ("benchmarks", {}, r"config.benchmarks is empty"),
        ("benchmarks", {"x": {"kind": "bleu"}}, r"x.kind: there is no kind of benchmark 'bleu'"),
        ("benchmarks", {"x": {"kind": "chair", "m": 1}}, r"x has no setting 'm'; .*images, limit"),
        ("benchmarks", {"x": {"kind": "chair"}}, r"Set config.benchmarks.x.images: the chair"),
        ("benchmarks", {"x": {"kind": "fake_pope"}}, r"frontier needs a caption benchmark"),
        (
            "benchmarks",
            {"x": {"kind": "testbed_chair", "set": "normal", "split": "val", "n": 2}},
            r"config.benchmarks.x.split must be one of 'dev', 'test', not 'val'",
        ),
        (
            "benchmarks",
            {"x": {"kind": "testbed_chair", "set": "normal", "n": 2}},
            r"Set config.benchmarks.x.split",
        ),
        ("frontier", {"biases": (0.0,)}, r"needs a bias other than 0"),
        ("frontier", {"biases": (float("nan"),)}, r"biases must be a finite"),
        ("frontier", {"biases": (1.0,), "tokens": ()}, r"tokens must list 1 value or more"),
        ("frontier", {"biases": (1.0,), "tokens": ("two",)}, r"'two' is 2 tokens of this model"),
        ("frontier", {"biases": (1.0,), "tokens": ("zz",)}, r"tokenizer does not know 'zz'"),
        ("frontier", {"bias": (1.0,)}, r"config.frontier has no setting 'bias'"),
    ],
)
def test_a_wrong_config_is_one_clear_error_before_any_answer(
    job, config, fake, section, value, message
):
    config[section] = value
    with pytest.raises(ConfigError, match=message):
        job(evaluate.run)
    assert not fake.calls
