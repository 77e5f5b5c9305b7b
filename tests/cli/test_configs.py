"""Configs are found by name, and changed by words."""

import dataclasses

import pytest

from vlm_jax.cli import configs
from vlm_jax.errors import ConfigError
from vlm_jax.evals.judge import JudgeSettings
from vlm_jax.jobs.serve import ServeSettings
from vlm_jax.planning.planner import PlanSettings
from vlm_jax.report.written import ReportSettings
from vlm_jax.study.runtime import MeshSettings

SECTIONS = {
    "judge": JudgeSettings,
    "mesh": MeshSettings,
    "plan": PlanSettings,
    "report": ReportSettings,
    "serve": ServeSettings,
}
"""Sections of configs/base.py that have all settings of what reads them; importing most of that
takes JAX, so base.py writes the defaults down."""


@pytest.mark.parametrize("named", ["edit", "edit.py", "configs/edit.py", "configs/edit"])
def test_a_shipped_config_is_found_by_name_from_any_folder(named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "restrength" in configs.read(named)


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_of_base_has_the_defaults_of_what_reads_it(name):
    defaults = {field.name: field.default for field in dataclasses.fields(SECTIONS[name])}
    assert configs.read("base")[name].to_dict() == defaults


def test_a_file_of_ones_own_starts_from_shipped_ones(tmp_path):
    own = tmp_path / "own.py"
    own.write_text(
        "from configs import base\n"
        "def get_config(k='1'):\n"
        "    config = base.get_config()\n"
        "    config.edit.k = int(k)\n"
        "    return config\n"
    )
    assert configs.read(str(own)).edit.k == 1
    assert configs.read(f"{own}:3").edit.k == 3


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("edit.k", "2", 2),
        ("edit.strength", "1", 1.0),
        ("edit.strength", "-0.5", -0.5),
        ("edit.band", "(10, 17)", (10, 17)),
        ("edit.band", "10,17", (10, 17)),
        ("edit.band", "0.2, 0.5", (0.2, 0.5)),
        ("images", "a.jpg", ("a.jpg",)),
        ("images", "a.jpg,b 1.jpg", ("a.jpg", "b 1.jpg")),
        ("images", "('a,b.jpg',)", ("a,b.jpg",)),
        ("images", "()", ()),
        ("images", "", ()),
        ("prompt", "12", "12"),
        ("prompt", "Is it (red)?", "Is it (red)?"),
        ("revert", "true", True),
        ("revert", "False", False),
        ("restrength", "0.25", 0.25),
        ("arms", "{'edited': {}}", {"edited": {}}),
        ("choose.controls", "R1", ("R1",)),
    ],
)
def test_a_value_is_read_as_its_default_is(name, value, read):
    config = configs.read("edit", [(name, value)])
    for part in name.split("."):
        config = config[part]
    made = config.to_dict() if hasattr(config, "to_dict") else config
    assert made == read
    assert type(made) is type(read)


def test_named_entries_are_added_where_names_are_free():
    changes = [("arms.edited", "{}"), ("arms.mild.method", "air"), ("arms.mild.text_gain", "0.5")]
    arms = configs.read("base", changes).arms.to_dict()
    assert arms == {"edited": {}, "mild": {"method": "air", "text_gain": 0.5}}
    swept = configs.read("base", [("sweep.strength", "(0.5, 1.0)")]).sweep
    assert swept.to_dict() == {"strength": (0.5, 1.0)}


@pytest.mark.parametrize(
    ("named", "changes", "message"),
    [
        ("edti", [], "There is no config 'edti' (did you mean 'edit'?): it is a file, or one of "),
        ("configs/none.py", [], "There is no config 'configs/none.py'"),
        ("edit:fast", [], "--config=edit:fast: edit.py takes no argument, not 'fast'."),
        ("fold:gain", [], "--config=fold:gain: configs/fold.py knows gains, energy, not 'gain'."),
        ("edit", [("sed", "1")], "has no setting 'sed' (did you mean 'seed'?); `--helpfull`"),
        ("generate", [("steering", "air")], "no setting 'steering' (did you mean 'method'?)"),
        ("edit", [("strength", "1")], "no setting 'strength' (did you mean 'edit.strength'?)"),
        ("edit", [("edit.strenght", "1")], "config.edit has no setting 'strenght' (did you mean"),
        ("edit", [("edit.k.two", "1")], "config.edit.k is one value"),
        ("edit", [("edit.k", "two")], "config.edit.k must be a whole number, not 'two'."),
        ("edit", [("edit.k", "1.5")], "config.edit.k must be a whole number, not '1.5'."),
        ("edit", [("edit.strength", "")], "config.edit.strength must be a number, not ''."),
        ("edit", [("revert", "maybe")], "config.revert must be true or false, not 'maybe'."),
        ("edit", [("edit", "2")], "config.edit is a section: give config.edit.band=<value>"),
        ("edit", [("restrength", "much")], "config.restrength must be"),
    ],
)
def test_what_cannot_be_is_one_line_with_the_nearest(named, changes, message):
    with pytest.raises(ConfigError) as error:
        configs.read(named, changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(:\n", "own.py: SyntaxError: "),
        ("import nothing_of_that_name\n", "own.py: ModuleNotFoundError: No module named"),
        ("def get_config():\n    return 3\n", "own.py: get_config() must return a ConfigDict."),
        ("x = 1\n", "own.py: AttributeError: "),
        ("def get_config():\n    raise ValueError('a\\nb')\n", "own.py: a b"),
    ],
)
def test_a_broken_file_is_one_line(text, message, tmp_path):
    own = tmp_path / "own.py"
    own.write_text(text)
    with pytest.raises(ConfigError) as error:
        configs.read(str(own))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_are_listed_with_their_sections():
    listed = dict(configs.settings(configs.read("edit")))
    assert listed["config.edit.k"] == 4
    assert listed["config.images"] == ()
    assert len(listed["config.arms"]) == 0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("score.max_unparsable", "nan", "config.score.max_unparsable must be a finite number"),
        ("restrength", "1e400", "config.restrength must be a finite number, not inf"),
        ("frontier.biases", "(1, 1e999)", "config.frontier.biases must be a finite number"),
        ("method", "{'method': 'air', 'gain': 1e999}", "config.method.gain must be a finite"),
        ("method", "b'air'", "config.method must be text, a number"),
        ("edit.band", "(..., 1j)", "config.edit.band must be text, a number"),
        ("arms", "{1: {}}", "config.arms has an entry 1; a name is text"),
        ("benchmarks", "{'../x': {}}", "a name in .* has a dot in it"),
    ],
)
def test_what_results_cannot_record_is_refused_before_any_job(name, value, message):
    with pytest.raises(ConfigError, match=message):
        configs.read("edit", [(name, value)])
