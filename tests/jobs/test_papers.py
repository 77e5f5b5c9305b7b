"""Papers as configs: each is read in every form, its arms exist, and one is run."""

import dataclasses
import json
from typing import Any

import pytest

from vlm_jax import checkpoint, hub
from vlm_jax.cli import configs
from vlm_jax.errors import ConfigError
from vlm_jax.evals.suites import read_benchmarks
from vlm_jax.jobs import evaluate
from vlm_jax.study.arms import ArmReader
from vlm_jax.study.request import Request

FORMS = {
    "air": ("", ":64", ":256,minigpt-4", ":256,llava-next-34b", ":testbed"),
    "functional_heads": ("", ":kimi-vl", ":r1-onevision", ":testbed"),
    "qk_steering": ("", ":testbed"),
    "pope": ("", ":vcd", ":rucaibox", ":testbed"),
}


NAMES = [f"papers/{paper}{form}" for paper, forms in FORMS.items() for form in forms]


@pytest.mark.parametrize("name", NAMES)
def test_every_form_is_read(name):
    config: Any = configs.read(name)
    assert config.benchmarks
    named = set(config.arms) | {"unedited"}
    for benchmark, by_arm in config.published.get("values", {}).items():
        assert benchmark in config.benchmarks or name.endswith("testbed")
        assert "unedited" in by_arm
        assert named & set(by_arm)


@pytest.mark.parametrize("paper", FORMS)
def test_the_small_form_has_arms_that_the_shipped_model_takes(paper):
    config: Any = configs.read(f"papers/{paper}:testbed")
    source = checkpoint.open_folder(hub.resolve("llava-0"))
    read_benchmarks(config.benchmarks, source.config.family)
    arms = ArmReader.of(config, source).arms(config.arms)
    assert {arm.name for arm in arms[1:]} == set(config.arms)


def test_published_figures_are_the_papers():
    air: Any = configs.read("papers/air:64,shikra")
    values = air.published["values"].chair
    assert air.max_new_tokens == 64
    assert values.unedited.to_dict() == {"C_S": 22.3, "C_I": 8.2}
    assert values.air_star.to_dict() == {"C_S": 10.5, "C_I": 5.6}
    assert "air" not in values  # not published at 64 tokens
    heads: Any = configs.read("papers/functional_heads:r1-onevision")
    assert heads.arms.gains.perception_from == 0.30
    assert heads.published["values"].mmstar.gains.weighted_F1 == 58.02
    pope: Any = configs.read("papers/pope:vcd")
    assert (pope.temperature, pope.benchmarks.pope.parser) == (1.0, "vcd")


def test_an_unknown_form_names_those_there_are():
    with pytest.raises(ConfigError, match="papers/pope takes llava, vcd, rucaibox or testbed"):
        configs.read("papers/pope:opera")


def test_a_small_form_runs_with_published_figures_beside_ours(job, fake, config):
    """The job of a paper on the fake: the table has what is published, and what was not run."""
    config.arms = {}
    config.benchmarks = {"chair": {"kind": "fake_chair"}}
    config.published = configs.read("papers/air:testbed").published
    workdir = job(evaluate.run)
    text = (workdir / "report.md").read_text()
    assert "| chair, unedited: C_S | 51.8 | 60.0 [" in text
    assert "] | +8.2 |" in text
    assert "| chair, OPERA: C_S | 44.1 | - | - |" in text
    assert "cannot be held against it" in text


PUBLISHED = {
    "air": ("chair, unedited: C_S | 51.8", "chair, air: C_I | 8.6", "chair, OPERA: C_S | 44.1 | -"),
    "functional_heads": ("mathvista, unedited: accuracy | 54.58",),
    "qk_steering": (),
    "pope": ("pope, unedited: F1 | 85.9",),
}
"""What a paper says, as the table has it beside ours."""


@pytest.mark.slow
@pytest.mark.parametrize("paper", FORMS)
def test_a_small_form_runs_on_the_shipped_model(paper, tmp_path):
    config: Any = configs.read(f"papers/{paper}:testbed")
    for section in config.benchmarks.values():
        section.n = 6
    request = Request(config=config, source=hub.resolve("llava-0"), workdir=tmp_path / "out")
    evaluate.run(dataclasses.replace(request))
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    assert document["n"] == 6
    arms = document["comparison"]["arms"]
    assert set(arms) >= {"unedited", *config.arms}
    for entries in document["all"].values():
        for found in entries.values():
            assert {"unparsable_rate", "truncated_rate"} <= found["metrics"].keys()
            assert all(
                one["low"] <= one["value"] <= one["high"] for one in found["metrics"].values()
            )
    text = (tmp_path / "out" / "report.md").read_text()
    for line in PUBLISHED[paper]:
        assert f"| {line} |" in text
        ours = text.partition(f"| {line} |")[2].partition("\n")[0]
        assert ("[" in ours) == ("OPERA" not in line)
