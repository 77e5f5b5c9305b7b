"""Jobs on a fake model over a real tiny folder: edits are real, answers follow a rule."""

import pathlib
import types

import pytest

from tests.jobs.fakes import FakeVLM
from vlm_jax import checkpoint
from vlm_jax.evals import suites
from vlm_jax.evals.suites.chair import Chair
from vlm_jax.evals.suites.pope import Pope
from vlm_jax.evals.truth import ObjectTruth, Question
from vlm_jax.study import session
from vlm_jax.study.request import Request

IMAGES = 40


def fake_chair(offset: int = 0, n: int = IMAGES) -> Chair:
    truth = {number: frozenset({"dog", "car"}) for number in range(offset, offset + n)}
    groups = {number: {"cat": "partner"} for number in truth}
    objects = ObjectTruth(truth, ("dog", "car", "cat"))
    return Chair({number: number for number in truth}, objects, groups=groups)


def fake_pope(offset: int = 0, n: int = IMAGES) -> Pope:
    numbers = range(offset, offset + n)
    questions = [
        Question(1 + number, number, "Is there a dog?", "yes" if number % 2 else "no")
        for number in numbers
    ]
    return Pope({number: number for number in numbers}, questions, suffix="")


@pytest.fixture
def fake(tiny_llava, monkeypatch) -> FakeVLM:
    """The fake model, which every job loads from now on."""
    params = checkpoint.open_folder(tiny_llava).load()
    model = FakeVLM(params)
    monkeypatch.setattr(session, "load_model", lambda *_: model)
    stand_in(monkeypatch, fake_chair=fake_chair, fake_pope=fake_pope)
    return model


def stand_in(monkeypatch, **made) -> None:
    """Kinds of benchmarks that are functions of a section's settings."""
    original = suites.SUITES.find

    def find(kind, where="kind"):
        if kind not in made:
            return original(kind, where)
        read = lambda section, where, family: made[kind](**section)
        return types.SimpleNamespace(read=read)

    monkeypatch.setattr(suites, "SUITES", types.SimpleNamespace(find=find))


@pytest.fixture
def config():
    """A config of two caption sets, questions, an edit with two controls and a frontier."""
    from configs import base

    config = base.get_config()
    config.bootstrap_draws = 200
    config.edit.band = (1, 1)
    config.edit.k = 2
    config.benchmarks = {
        "broken": {"kind": "fake_chair"},
        "normal": {"kind": "fake_chair", "offset": 100},
        "pope": {"kind": "fake_pope"},
    }
    config.arms = {
        "edited": {},
        "R3": {"control": "R3", "draws": 3},
        "C5": {"control": "C5"},
    }
    config.frontier.biases = (-1.0, 1.0, 2.0)
    return config


@pytest.fixture
def job(tiny_llava, tmp_path, fake, config, monkeypatch):
    """Runs a job's function on the fake; returns the folder it wrote. It opens its source once."""
    opened, real = [], checkpoint.open_folder
    monkeypatch.setattr(checkpoint, "open_folder", lambda path: opened.append(path) or real(path))

    def run(function, name: str = "work", **changes) -> pathlib.Path:
        workdir = tmp_path / name
        opened.clear()
        function(Request(config=config, source=tiny_llava, workdir=workdir, **changes))
        assert opened == [tiny_llava]
        return workdir

    return run
