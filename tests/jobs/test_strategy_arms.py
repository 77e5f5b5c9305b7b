"""Decoding strategies as arms: read, paired with their controls, told apart, refused."""

import json

import pytest

from vlm_jax import checkpoint
from vlm_jax.errors import ConfigError
from vlm_jax.jobs import evaluate
from vlm_jax.study.arms import ArmReader, pair_controls
from vlm_jax.study.grids import read_grid


@pytest.fixture
def config(config):
    config.arms = {"vcd": {"method": "vcd"}, "vcd_clean": {"method": "vcd", "control": "clean"}}
    return config


@pytest.fixture(scope="module")
def reader(tiny_llava):
    config = checkpoint.open_folder(tiny_llava).config
    return ArmReader({"method": "plain", "k": 4, "strength": 0.5}, config)


def test_an_arm_is_a_strategy_alone_or_beside_others(reader):
    (alone,) = reader.arm("vcd", {"method": "vcd", "alpha": 0.5}, "config.arms.vcd").draws
    assert alone.strategy.alpha == 0.5
    assert alone.steering is None
    assert alone.edit is None
    (named,) = reader.arm("vcd", "vcd", "config.arms.vcd").draws
    assert named.strategy.alpha == 1.0
    both = reader.arm("both", [{"strength": 1.0}, "icd"], "config.arms.both").draws[0]
    assert both.edit.strength == 1.0
    assert both.strategy.name == "icd"
    assert len({repr(one.identity) for one in (alone, named, both)}) == 3


def test_a_control_stands_beside_its_strategy(reader):
    arms = reader.arms(
        {"vcd": {"method": "vcd"}, "again": {"method": "vcd", "control": "clean"}, "icd": "icd"}
    )
    assert [arm.name for arm in arms] == ["unedited", "vcd", "again", "icd"]
    assert pair_controls(arms) == [("vcd", "again", False)]


def test_a_reranker_is_an_arm_whose_scorer_is_named(reader):
    """By what to import, or by a folder; its control is drawn anew by seeds."""
    scorer = "tests.answering.test_ranked:lengths"
    (alone,) = reader.arm("cgd", {"method": "cgd", "scorer": scorer}, "config.arms.cgd").draws
    assert alone.treatments[0].reranker.scorer(["ab"], None) == [2.0]
    assert alone.reranked
    control = {"method": "cgd", "scorer": scorer, "control": "shuffled", "draws": 2}
    drawn = reader.arm("shuffled", control, "config.arms.shuffled")
    assert [one.treatments[0].reranker.seed for one in drawn.draws] == [0, 1]
    sweep = {"method": ["cgd"], "scorer": [scorer], "alpha": [0, 0.01], "control": ["", "shuffled"]}
    grid = read_grid(sweep, reader)
    assert len(grid.tested) == 2
    assert grid.control_words == ("shuffled",)


@pytest.mark.parametrize(
    ("section", "message"),
    [(["vcd", "icd"], "both choose tokens"), ({"method": "vcd", "alpha": -1}, "alpha must be"),
     ({"method": "vcd", "bta": 1}, "did you mean 'beta'"),
     ({"method": "icd", "draws": 3}, "not random"), ("cgd", "'cgd' needs a scorer"),
     ({"method": "cgd", "scorer": "no.such:thing"}, "'no.such:thing' cannot be imported"),
     ({"method": "cgd", "scorer": "math:pi"}, "'math:pi' is no function, but float"),
     ({"method": "agla", "mask": 5}, "must be a function of an image and a prompt")],
)  # fmt: skip
def test_bad_arms_are_one_clear_error(reader, section, message):
    with pytest.raises(ConfigError, match=f"config.arms.x.*{message}") as caught:
        reader.arm("x", section, "config.arms.x")
    assert "\n" not in str(caught.value)


def test_a_strategy_is_measured_beside_its_control(job):
    top = json.loads((job(evaluate.run) / "results.json").read_text())
    arms = top["comparison"]["arms"]
    assert list(arms) == ["unedited", "vcd", "vcd_clean"]
    assert arms["vcd"]["methods"] == [{"method": "vcd"}]
    assert arms["vcd"]["acted"] == []
    (contrast,) = top["comparison"]["controls"]
    assert (contrast["edit"], contrast["control"]) == ("vcd", "vcd_clean")
