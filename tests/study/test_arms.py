"""Arms as a config writes them: entries, lists of entries, draws, controls, mistakes."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from ml_collections import ConfigDict

import vlm_jax.testbed
from configs import testbed, testbed_methods
from vlm_jax import checkpoint
from vlm_jax.edits.qk import QKEdit
from vlm_jax.errors import ConfigError
from vlm_jax.steering.heads import HeadSets
from vlm_jax.study.arms import UNEDITED, ArmReader, pair_controls

EDIT = {"method": "plain", "k": 2, "band": (1, 1)}
SHIPPED = pathlib.Path(vlm_jax.testbed.__file__).parent / "models"
AIR = {"method": "air", "heads": ((1, 0), (2, 3))}


@pytest.fixture
def reader(tiny_llava) -> ArmReader:
    return ArmReader(EDIT, checkpoint.open_folder(tiny_llava).config, seed=5, draws=3)


def listed_heads(setting) -> list[tuple[int, int]]:
    return [tuple(map(int, head)) for head in np.argwhere(np.isfinite(threshold(setting)))]


def threshold(setting) -> np.ndarray:
    return np.asarray(setting.steering.reallocation.threshold[0])


def test_an_entry_is_an_edit_or_a_method_and_a_list_is_both(reader):
    edit = reader.arm("x", {"k": 4}, "x")
    assert edit.edits == (QKEdit(k=4, band=(1, 1), seed=5),)
    assert edit.draws[0].steering is None
    method = reader.arm("x", AIR, "x")
    assert method.edits == ()
    assert listed_heads(method.draws[0]) == [(1, 0), (2, 3)]
    both = reader.arm("x", [{}, AIR, {"method": "functional_heads"}], "x").draws[0]
    assert both.edit == QKEdit(k=2, band=(1, 1), seed=5)
    assert both.steering.reallocation is not None
    assert both.steering.visual_gains is not None
    named = reader.arm("x", "functional_heads", "x").draws[0]
    assert named.steering.visual_gains is not None


def test_config_dicts_read_like_dicts(reader):
    arms = ConfigDict({"both": [{}, AIR], "air": AIR, "qk": {}})
    read = {arm.name: arm for arm in reader.arms(arms)}
    assert list(read) == [UNEDITED, "air", "both", "qk"]
    assert read["air"].draws == reader.arm("air", AIR, "x").draws


def test_random_methods_have_draws_that_differ_and_keep_layers(reader):
    arm = reader.arm("x", {**AIR, "control": "random"}, "x")
    assert [draw.seed for draw in arm.draws] == [5, 6, 7]
    assert arm.folders() == ["x/seed_5", "x/seed_6", "x/seed_7"]
    drawn = [listed_heads(draw) for draw in arm.draws]
    assert all([layer for layer, _ in heads] == [1, 2] for heads in drawn)
    assert len({str(heads) for heads in drawn}) > 1
    identities = {json.dumps(draw.identity, default=str) for draw in arm.draws}
    assert len(identities) == 3
    assert len(reader.arm("x", {**AIR, "control": "random", "draws": 19}, "x").draws) == 19
    assert reader.arm("x", {**AIR, "control": "random", "seed": 40}, "x").draws[0].seed == 40


def test_controls_follow_the_arm_they_stand_for(reader):
    arms = reader.arms(
        {
            "a_random": {**AIR, "control": "random"},
            "air": AIR,
            "all": {**AIR, "control": "all"},
            "b_mild": {**AIR, "text_gain": 0.5},
            "both": [{}, AIR],
            "both_R3": [{"control": "R3"}, AIR],
            "other_R3": {"control": "R3", "k": 4},
            "qk": {},
            "qk_R3": {"control": "R3"},
        }
    )
    assert [arm.name for arm in arms] == [
        UNEDITED, "air", "a_random", "all", "b_mild", "both", "both_R3", "qk", "qk_R3", "other_R3",
    ]  # fmt: skip
    assert pair_controls(arms) == [
        ("air", "a_random", True),
        ("air", "all", False),
        ("both", "both_R3", True),
        ("qk", "qk_R3", True),
    ]
    assert len(next(arm for arm in arms if arm.name == "both_R3").draws) == 3


def test_identities_follow_what_a_steering_does(reader):
    one = reader.arm("x", AIR, "x").draws[0].identity
    assert one == reader.arm("y", dict(AIR), "y").draws[0].identity
    assert one != reader.arm("x", {**AIR, "text_gain": 0.2}, "x").draws[0].identity
    assert reader.arm("x", {}, "x").draws[0].identity == {
        "edit": repr(QKEdit(k=2, band=(1, 1), seed=5))
    }


def test_identified_heads_come_from_the_model_folder_or_another_file(reader, tmp_path):
    path = tmp_path / "heads.json"
    sets = HeadSets("", (3, 4), sensitive=((2, 1), (0, 0)), count=1)
    path.write_text(json.dumps({"sets": sets.document()}))
    reader = dataclasses.replace(reader, heads=str(path))
    section = {"method": "adhh", "heads": "identified"}
    setting = reader.arm("x", section, "x").draws[0]
    assert listed_heads(setting) == [(2, 1)]
    assert setting.methods == (section,)  # a moved model folder has the same identity
    path.write_text(json.dumps({"sets": {**sets.document(), "count": 2}}))
    assert setting.identity != reader.arm("x", section, "x").draws[0].identity


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ([], r"^here says nothing to do"),
        ({"method": "airr"}, r"^here.method must be .*plain.* or an attention method \(.*air_star"),
        ([{}, {"k": 1}], r"^here: .*both edits"),
        ([AIR, {"method": "adhh", "heads": ((0, 0),)}], r"^here: .*both set reallocation"),
        ({**AIR, "lambda": 2}, r"^here: method 'air' has no setting 'lambda'"),
        ({**AIR, "heads": ((3, 0),)}, r"^here: .*there is no head \(3, 0\)"),
        ({**AIR, "draws": 3}, r"^here.draws: control '' is not random"),
        ({**AIR, "control": "all", "draws": 3}, r"^here.draws: control 'all' is not random"),
        ({**AIR, "control": "random", "draws": 0}, r"^here.draws must be a whole number"),
        (
            [{"control": "R3", "draws": 2}, {**AIR, "control": "random", "draws": 3}],
            r"^here.draws is both 2 and 3",
        ),
        ({"method": "adhh", "heads": "identified"}, r"^here: heads='identified' needs the file"),
        ([3], r"^here: a method is a mapping"),
    ],
)
def test_a_wrong_arm_is_one_clear_error(reader, section, message):
    with pytest.raises(ConfigError, match=message):
        reader.arm("x", section, "here")


MODELS = sorted(path.parent for path in SHIPPED.glob("*/config.json"))


@pytest.mark.parametrize("folder", MODELS, ids=lambda folder: folder.name)
@pytest.mark.parametrize(
    ("module", "size"),
    [(testbed, "demo"), (testbed_methods, "demo"), (testbed_methods, "papers")],
)
def test_the_testbeds_arms_fit_every_shipped_model(folder, module, size):
    source = checkpoint.open_folder(folder)
    config = module.get_config(size)
    arms = ArmReader.of(config, source).arms(config.arms)
    assert [arm.name for arm in arms][1:]
    assert {len(arm.draws) for arm in arms if arm.is_random} == {3}
    assert all(sum(pair[1] == arm.name for pair in pair_controls(arms)) == 1
               for arm in arms if arm.is_control)  # fmt: skip
