"""The sweep: settings, their table, the choice, and the one look at the test split."""

import json
import pathlib
import re

import pytest

from tests.jobs.conftest import IMAGES
from vlm_jax import checkpoint, testbed
from vlm_jax.errors import ConfigError
from vlm_jax.jobs import sweep
from vlm_jax.study.arms import ArmReader
from vlm_jax.study.grids import read_grid


def read(path):
    found = json.loads(path.read_text())
    found.pop("made", None)  # when, and by which command
    return found


@pytest.fixture
def config(config):
    config.arms = {}
    config.control_draws = 2
    config.sweep = {"strength": (0.25, 0.5, 1.0), "control": ("", "R3")}
    config.test = {name: {"offset": 200 + 10 * IMAGES, "n": 50} for name in config.benchmarks}
    return config


def test_doses_their_corrections_and_the_choice(job, capsys):
    workdir = job(sweep.run)
    found = read(workdir / "results.json")
    # ||dW|| is 2.6 at strength .5, and the fake loses a cat in ten images for every 2 of it.
    values = {name: dose["value"] for name, dose in found["settings"].items()}
    assert values["strength=0.25"] == pytest.approx(0.5)
    assert values["strength=0.5"] == pytest.approx(0.5)
    assert values["strength=1.0"] == pytest.approx(0.3)
    assert values["strength=1.0 R3"] == pytest.approx(0.3)
    assert found["chosen"] == "strength=1.0"
    dose = found["settings"]["strength=1.0"]
    assert dose["change"]["low"] < dose["change"]["value"] < dose["change"]["high"] < 0
    assert dose["simultaneous"]["low"] <= dose["change"]["low"] + 0.02
    assert dose["p"] == pytest.approx(2 * 0.5**24)  # 24 of 80 captions changed, all one way
    assert dose["p"] < dose["p_holm"] <= 3 * dose["p"]
    assert dose["p_max_t"] == pytest.approx(1 / 201)
    assert 0 < dose["detectable"] < 0.3
    assert dose["items"] == 19  # (1.96 + 0.84)^2 (0.3 - 0.3^2) / 0.3^2, where all change one way
    assert found["settings"]["strength=1.0 R3"]["items"] is None
    assert found["settings"]["strength=1.0 R3"]["p"] is None
    assert found["settings"]["strength=1.0 R3"]["draws"] == 2
    printed = capsys.readouterr().out
    assert "> strength=1.0" in printed
    assert "Chosen on the development split: strength=1.0" in printed


def test_where_a_model_looked_is_not_read_of_settings(job, config, capsys):
    config.report.attention = 1
    config.test = {}
    job(sweep.run)
    assert "config.test is empty" in capsys.readouterr().out


def test_the_chosen_setting_alone_is_on_the_test_split(job, fake, capsys):
    workdir = job(sweep.run)
    top = read(workdir / "test" / "results.json")
    assert list(top["all"]["broken"]) == ["unedited", "chosen", "R1", "R3", "R4"]
    assert top["n"] == 50
    assert top["comparison"]["arms"]["chosen"]["edit"]["strength"] == 1.0
    assert top["comparison"]["arms"]["R4"]["draws"] == 2
    assert (workdir / "report.html").read_text().count('<figure class="chart"') == 5
    test = read(workdir / "results.json")["test"]
    assert test["value"] == pytest.approx(0.3)  # of 2 x 50 captions
    assert test["change"]["value"] == pytest.approx(-0.3)
    assert test["p"] == test["p_holm"] == pytest.approx(2 * 0.5**30)
    assert test["recall"] == {"value": 0, "low": 0, "high": 0}
    assert test["frontier_gap"] == pytest.approx(-0.3)
    printed = capsys.readouterr().out
    assert "Test split; chosen is strength=1.0" in printed
    report = (workdir / "report.md").read_text()
    for text in (printed, report):
        assert text.index("Chosen: strength=1.0") > 0
        assert "The best of 3 settings looks better on dev than it is" in text
    rows = [line for line in report.splitlines() if line.startswith(("| dev |", "| test |"))]
    assert [row.split(" | ")[1:3] for row in rows] == [["80", "30.0"], ["100", "30.0"]]
    assert "strength=1.0, chosen on dev" in (workdir / "test" / "report.md").read_text()


@pytest.mark.slow
def test_many_lines_are_plotted_apart(job, config):
    config.sweep = {"strength": (0.25, 0.5, 1.0), "k": (1, 2, 3), "heads": ("all", (0,), (1,))}
    config.test = {}
    workdir = job(sweep.run)
    page = (workdir / "report.html").read_text()
    assert re.findall("<h3>Change of C_S against ([^<]*)</h3>", page) == [
        f"{axis}, heads={heads}" for axis in ("k", "strength") for heads in ("all", "0", "1")
    ]


def test_a_second_run_makes_no_answer_and_finds_the_same(job, fake):
    first = read(job(sweep.run) / "results.json")
    made = len(fake.calls)
    second = read(job(sweep.run) / "results.json")
    assert len(fake.calls) == made
    assert second == first


def test_the_test_split_is_not_opened_for_a_second_setting(job, config):
    job(sweep.run)
    config.sweep.strength = (0.25,)
    with pytest.raises(ConfigError, match=r"was used for 'strength=1\.0' already"):
        job(sweep.run)


def test_the_gap_can_choose_and_a_recall_limit_can_leave_nothing(job, config, fake, capsys):
    config.choose.metric = "gap"
    workdir = job(sweep.run)
    assert read(workdir / "results.json")["chosen"] == "strength=1.0"
    config.choose.max_recall_drop = -0.1
    assert read(job(sweep.run, "strict") / "results.json")["chosen"] is None
    assert "No setting keeps recall" in capsys.readouterr().out


def test_impossible_combinations_are_left_out_by_name(job, config):
    config.sweep = {"method": ("plain", "antisymmetric"), "k": (1, 2)}
    found = read(job(sweep.run) / "results.json")
    assert list(found["settings"]) == ["method=plain k=1", "method=plain k=2",
                                       "method=antisymmetric k=2"]  # fmt: skip
    assert "k=1 is odd" in found["left_out"][0]


AIR = {"method": ("air",), "heads": (((1, 0), (2, 3)),)}


def test_strengths_of_an_attention_method(job, config, fake, capsys):
    config.sweep = {**AIR, "text_gain": (0.1, 0.5), "count": (1, 2)}
    config.choose.controls = ("random",)
    workdir = job(sweep.run)
    found = read(workdir / "results.json")
    # The fake loses a cat in ten images for each reallocating head of layer 1, whatever its gain.
    assert {name: dose["value"] for name, dose in found["settings"].items()} == pytest.approx(
        {f"count={count} text_gain={gain}": 0.5 for gain in (0.1, 0.5) for count in (1, 2)}
    )
    assert found["chosen"] == "count=1 text_gain=0.1"
    assert found["settings"]["count=1 text_gain=0.1"]["p_max_t"] == pytest.approx(1 / 201)
    assert "for 1 kind of steering" in capsys.readouterr().out
    top = read(workdir / "test" / "results.json")["comparison"]
    assert list(top["arms"]) == ["unedited", "chosen", "random"]
    assert top["arms"]["chosen"]["methods"][0]["text_gain"] == 0.1
    assert top["arms"]["random"]["draws"] == 2
    assert (top["controls"][0]["edit"], top["controls"][0]["control"]) == ("chosen", "random")
    made = len(fake.calls)
    assert read(job(sweep.run) / "results.json") == found
    assert len(fake.calls) == made
    config.sweep.text_gain = (0.5, 0.7)
    with pytest.raises(ConfigError, match=r"was used for 'count=1 text_gain=0\.1' already"):
        job(sweep.run)


def test_settings_of_a_method_of_decoding(job, config, fake):
    config.sweep = {"method": ("opera",), "threshold": (15, 25)}
    config.choose.controls = ("off",)
    workdir = job(sweep.run)
    found = read(workdir / "results.json")
    assert list(found["settings"]) == ["threshold=15", "threshold=25"]
    assert not found["left_out"]
    top = read(workdir / "test" / "results.json")["comparison"]
    assert list(top["arms"]) == ["unedited", "chosen", "off"]
    assert top["arms"]["off"]["methods"][0]["control"] == "off"
    assert (top["controls"][0]["edit"], top["controls"][0]["control"]) == ("chosen", "off")
    made = len(fake.calls)
    assert read(job(sweep.run) / "results.json") == found
    assert len(fake.calls) == made


def test_a_strength_that_changes_nothing_is_left_out(job, config):
    config.sweep = {"method": ("adhh",), "heads": ("all",), "threshold": (0.4, 2.0)}
    config.choose.controls = ()
    found = read(job(sweep.run) / "results.json")
    assert list(found["settings"]) == ["threshold=0.4"]
    assert "threshold must be a finite number from 0 to 1" in found["left_out"][0]


@pytest.mark.parametrize(
    "name",
    ["text_half", "adhh_t50", "gains_last",
     *(pytest.param(name, marks=pytest.mark.slow) for name in ("air", "air_star"))],
)  # fmt: skip
def test_the_shipped_sweeps_of_methods_can_be(name):
    from configs import sweep_methods

    folder = pathlib.Path(str(testbed.__file__)).parent / "models" / "llava-0"
    config = sweep_methods.get_config(name)
    reader = ArmReader.of(config, checkpoint.open_folder(folder))
    grid = read_grid(config.sweep, reader)
    least = 1 if name in ("gains_last", "air") else 0  # all strengths at identity
    assert len(grid.left_out) <= least
    for arm in grid.tested:
        grid.controls(arm.name, config.choose.controls, reader)


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("sweep", {}, "config.sweep lists no value"),
        ("sweep", {"strength": ()}, "config.sweep lists no value"),
        ("sweep", {"strength": 0.5}, "config.sweep.strength must list values, not 0.5"),
        ("sweep", {"strenght": (0.5,)}, "config.sweep has no setting 'strenght'"),
        ("sweep", {"band": (0.3, 0.6)}, r"config.sweep.band must list \(first, last\) pairs"),
        (
            "sweep",
            {"strength": (2.0,)},
            r"no possible setting: .*strength must be .* at most 1, not 2\.0",
        ),
        ("sweep", {"control": ("R1",)}, "holds controls alone; its control must list ''"),
        ("sweep", {"method": ("plain", "air")}, "lists 'air' and 'plain': one sweep is of edits"),
        ("sweep", {"method": ("air",), "k": (1,)}, "config.sweep has no setting 'k'.*text_gain"),
        ("sweep", {"method": ("air",), "heads": ("all",)}, "controls holds 'R1'.*swept are rand"),
        ("sweep", {"method": ("opera",), "k": (1,)}, "config.sweep has no setting 'k'.*candidates"),
        ("sweep", {"method": ("plain", "vcd")}, "lists 'vcd' and 'plain': one sweep is of edits"),
        ("sweep", {"soft": (0.1,)}, "controls, R1 of edit: control=R1 replaces the modes"),
        ("test", {"nosuch": {}}, "config.test has no setting 'nosuch'; it knows broken"),
        ("test", {"broken": {}}, "config.test.broken is the development split itself"),
        ("test", {"broken": {"offset": 9}}, "config.test lacks 'normal'"),
        ("frontier", {"biases": ()}, "config.choose.metric='gap' needs config.frontier.biases"),
        ("choose", {"metric": "gap", "rule": 1}, "config.choose has no setting 'rule'"),
    ],
)
def test_a_wrong_config_is_one_clear_error_before_any_answer(
    job, config, fake, section, value, message
):
    config.choose.metric = "gap"
    config[section] = value
    with pytest.raises(ConfigError, match=message):
        job(sweep.run)
    assert not fake.calls
