"""What methods leave in programs: nothing where they are absent, and the collectives that they
name. Nothing here runs."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

import vlm_jax
from tests.planning.conftest import CONFIG
from vlm_jax.attention import steering as parts
from vlm_jax.attention.steering import Steering
from vlm_jax.planning import planner

ADHH = {"method": "adhh", "heads": "all"}
GENERATION = {"batch_size": 2, "max_new_tokens": 4}


def lowered(folder, monkeypatch, method=None, acting=None, **generation) -> dict[str, str]:
    """The programs of a treated model, before XLA has them."""
    texts = {}

    def keep(recorder, name, lower, given=()):
        if name in ("prefill", "decode"):
            texts[name] = lower().as_text()

    with monkeypatch.context() as patch:
        patch.setattr(planner._Recorder, "_compile", keep)
        if acting is not None:
            patch.setattr(planner, "acting", lambda *_: acting)
        vlm_jax.plan(
            folder,
            topology="cpu:1",
            programs=("prefill", "decode"),
            method=method,
            generation={**GENERATION, **generation},
        )
    return texts


def test_what_is_absent_leaves_nothing(folder, monkeypatch):
    vanilla = lowered(folder, monkeypatch)
    assert set(vanilla) == {"prefill", "decode"}
    assert lowered(folder, monkeypatch, ["qk"]) == vanilla, "an edit of weights is no part"
    assert lowered(folder, monkeypatch, acting=(Steering(), None)) == vanilla
    absent = dict(num_beams=1, repetition_penalty=1.0, no_repeat_ngram_size=0, min_new_tokens=0)
    assert lowered(folder, monkeypatch, **absent) == vanilla
    steered = lowered(folder, monkeypatch, ADHH)
    assert all(steered[name] != vanilla[name] for name in vanilla)
    other = lowered(folder, monkeypatch, {**ADHH, "threshold": 0.7})
    assert other == steered, "values are no part of it either"


LAYERS, HEADS, WIDTH = 2, 4, CONFIG["text_config"]["hidden_size"]


def part(name: str, **choices):
    """A part at its identity: what it is made of is in the programs whatever its values."""
    by_name = {cls.__name__.lower(): cls for cls in parts.Part.__subclasses__()}
    kind = by_name[name.replace("_", "")]
    last = WIDTH if kind.dims == "LD" else HEADS
    leaves = {
        n: np.full((1, LAYERS, last), value, np.float32) for n, value in kind.identity.items()
    }
    return kind(**leaves, **choices)


def steered(*names: str, **chosen: dict) -> Steering:
    """A steering of some parts, of some by what is chosen."""
    return Steering(**{n: part(n) for n in names}, **{n: part(n, **c) for n, c in chosen.items()})


EVERY = [field.name for field in dataclasses.fields(Steering) if field.name != "others"]
APART = [name for name in EVERY if not part(name).collectives]
ALONE = {
    **{name: steered(name) for name in EVERY},
    "official": steered(energy_rescale={"prefill": "official"}),
    "batch_sum": steered(reallocation={"trigger_reduce": "batch_sum"}),
    "dealt": steered(registers={"dealt": True, "mode": "budget"}),
    "all rows": steered(projection={"prefill": "official"}),
    "norms": steered(vectors={"keep_norm": True, "relative": True}),
}
TOGETHER = {
    "those that name nothing": steered(*APART),
    "those that name something": steered(
        "lens", "energy_rescale", registers={"dealt": True, "mode": "budget"},
        reallocation={"trigger_reduce": "batch_sum"},
    ),
}  # fmt: skip


def collectives(folder, steering) -> dict[str, Counter]:
    """The collectives of a model's programs on two replicas of two devices."""
    before, planner.acting = planner.acting, lambda *_: (steering, None)
    try:
        found = vlm_jax.plan(
            folder,
            topology="cpu:4",
            model=2,
            programs=("prefill", "decode"),
            generation={**GENERATION, "batch_size": 4},
        )
    finally:
        planner.acting = before
    return {name: Counter(program.collectives) for name, program in found.programs.items()}


@pytest.fixture(scope="module")
def vanilla(eight, folder):
    return eight(collectives, folder, None)


@pytest.mark.parametrize(
    "steering",
    [
        *(pytest.param(one, id=name) for name, one in TOGETHER.items()),
        *(pytest.param(one, id=name, marks=pytest.mark.slow) for name, one in ALONE.items()),
    ],
)
def test_a_part_adds_the_collectives_that_it_names(eight, folder, vanilla, steering):
    named = sum((Counter(one.collectives) for one in steering.parts.values()), Counter())
    found = eight(collectives, folder, steering)
    for name, program in found.items():
        more = program - vanilla[name]
        assert more == Counter({kind: LAYERS * count for kind, count in named.items()}), name
