"""Methods by name: what they do to a model, how they add up, what they leave in a folder."""

import html
import importlib.metadata
import json

import jax
import ml_collections
import numpy as np
import pytest

import vlm_jax
from configs import edit as edit_config
from vlm_jax import plugins
from vlm_jax.attention.steering import HeadGains, Steering
from vlm_jax.checkpoint import CERTIFICATE, SIDECAR
from vlm_jax.errors import CheckpointError, ConfigError, EditError
from vlm_jax.jobs import edit as edit_job
from vlm_jax.jobs import fold as fold_job
from vlm_jax.steering import building
from vlm_jax.steering.config import read_method
from vlm_jax.steering.methods import METHODS
from vlm_jax.steering.named import identified
from vlm_jax.study.request import Request

PROMPT = "Please describe this image in detail."
AIR = {"heads": "identified", "text_gain": 0.5}


def ask(model, image):
    return model.generate(image, PROMPT, max_new_tokens=16)


def test_methods_are_listed_with_a_line_and_their_settings():
    listed = vlm_jax.methods()
    assert {"qk", *METHODS.names()} <= set(listed)
    assert listed["air"].settings["text_gain"] == 0.1
    assert listed["qk"].settings["strength"] == 0.5
    for name, method in listed.items():
        assert method.summary.endswith("."), name
        assert method.summary in " ".join(str(method).split())
        assert "<td" in listed._repr_html_()
        assert name in repr(listed)


def test_a_method_steers_as_the_job_does(shipped_llava, scenes):
    steered = shipped_llava.apply("air", **AIR)
    heads = {"heads": str(shipped_llava.folder.path / "heads.json")}
    steering = read_method({"method": "air", **AIR, **heads}, shipped_llava.config)
    assert jax.tree.all(jax.tree.map(np.array_equal, steered.steering, steering))
    found = shipped_llava.answer([[scenes[0]]], [PROMPT], max_new_tokens=16, steering=steering)
    expected = next(iter(found)).text
    assert ask(steered, scenes[0]) == expected != ask(shipped_llava, scenes[0])
    assert shipped_llava.steering is None
    logits = steered.logits([[scenes[0]]], [PROMPT])[0]
    assert not np.array_equal(logits, shipped_llava.logits([[scenes[0]]], [PROMPT])[0])


def test_methods_add_up_whatever_their_order(shipped_llava, scenes):
    one = shipped_llava.apply("qk", k=2).apply("air", **AIR)
    other = shipped_llava.apply("air", **AIR).apply("qk", k=2)
    assert ask(one, scenes[0]) == ask(other, scenes[0])
    assert [str(t) for t in one.treatments] == [
        "qk(k=2)", "air(heads='identified', text_gain=0.5)"
    ]  # fmt: skip
    assert "qk(k=2), air(" in repr(one)
    assert json.loads(json.dumps(one.treatments[1].identity()))["method"] == "air"


def test_two_passes_are_those_of_the_evaluation(shipped_llava, scenes):
    twice = shipped_llava.apply(
        "functional_heads", passes=2, perception_from=0.3, perception_gain=2.0
    )
    once = shipped_llava.apply("functional_heads", perception_from=0.3, perception_gain=2.0)
    reply = twice.generate(scenes[0], PROMPT, max_new_tokens=16, return_readings=True)
    assert reply.text in repr(reply)
    assert "array" not in repr(reply)
    assert reply.text
    assert not np.array_equal(
        reply.readings.image_bn,
        once.generate(scenes[0], PROMPT, max_new_tokens=16, return_readings=True).readings.image_bn,
    )


def test_readings_change_nothing(shipped_llava, scenes):
    for model in (shipped_llava, shipped_llava.apply("air", **AIR)):
        texts = model.generate(scenes, PROMPT, max_new_tokens=16)
        read = model.generate(scenes, PROMPT, max_new_tokens=16, return_readings=True)
        assert [answer.text for answer in read] == texts
        for answer in read:
            masses = answer.readings.image_bn + answer.readings.text_bn + answer.readings.system_bn
            np.testing.assert_allclose(masses, 1, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("airr", {}, r"no method 'airr' \(did you mean 'air'\?\); there are energy_rescale"),
        ("air", {"text_gian": 1}, r"method 'air' has no setting 'text_gian' \(did you mean"),
        ("air", {}, "heads says no head"),
        ("air", {"heads": "all", "text_gain": -1}, "text_gain"),
        ("qk", {"strenght": 1}, r"method 'qk' has no setting 'strenght' \(did you mean 'strength'"),
        ("qk", {"strength": 2}, "at most 1"),
        ("qk", {"band": (90, 95)}, "layer 95"),
    ],
)
def test_a_wrong_call_is_one_line(shipped_llava, name, settings, message):
    with pytest.raises((ConfigError, EditError), match=message) as caught:
        shipped_llava.apply(name, **settings)
    assert "\n" not in str(caught.value)


def doubled(config, *, heads=(), gain=2.0):
    """Doubles what heads add."""
    on_ln = building.listed(config, heads, None, "", 0)
    return Steering(head_gains=HeadGains(building.leaf(np.where(on_ln, gain, 1))))


def test_a_function_is_a_method(shipped_llava, scenes):
    mine = shipped_llava.apply(doubled, heads="identified", gain=3.0)
    heads = identified(AIR, shipped_llava.folder.path)["heads"]
    given = doubled(shipped_llava.config, heads=heads, gain=3.0)
    [direct] = shipped_llava.answer([[scenes[0]]], [PROMPT], steering=given, max_new_tokens=8)
    assert mine.generate(scenes[0], PROMPT, max_new_tokens=8) == direct.text
    assert str(mine.treatments[0]).endswith("test_methods.doubled(heads='identified', gain=3.0)")
    few = vlm_jax.benchmark("testbed_chair", set="broken", split="dev", n=2)
    scored = vlm_jax.compare(shipped_llava, {"mine": mine}, few, draws=1)
    assert "mine has no random control" in str(scored.tables[0])
    asked = {"images": scenes[0], "prompts": PROMPT, "max_new_tokens": 8}
    swept = shipped_llava.sweep(doubled, heads="identified", gain=[1.5, 3.0], **asked)
    assert direct.text in str(swept)
    with pytest.raises(ConfigError, match=r"has no setting 'gian'.*did you mean 'gain'"):
        shipped_llava.apply(doubled, gian=1)
    with pytest.raises(ConfigError, match=r"wrong must return a Steering, not list"):
        shipped_llava.apply(wrong)


def wrong(config):
    return [config]


@pytest.mark.parametrize("method", [{"method": "air"}, ["air"], None, Steering()])
def test_what_is_no_name_is_one_line(shipped_llava, method):
    with pytest.raises(ConfigError, match="a method is given by its name, or as a function, not"):
        shipped_llava.apply(method)


def test_methods_that_set_the_same_part_are_named(shipped_llava):
    with pytest.raises(ConfigError, match="'air' and 'adhh' both set reallocation"):
        shipped_llava.apply("air", **AIR).apply("adhh", heads="all")
    with pytest.raises(ConfigError, match=r"'qk' and 'qk' both change decoder/layers/\d/wq_dnh"):
        shipped_llava.apply("qk", k=2).apply("qk", k=2)


def test_identified_heads_are_the_folders(vlm, shipped_llava):
    path = shipped_llava.folder.path / "heads.json"
    assert identified(AIR, shipped_llava.folder.path)["heads"] == str(path)
    with pytest.raises(ConfigError, match=r"heads.json does not exist.*--job=identify"):
        vlm.apply("air", **AIR)


def test_an_edit_is_saved_as_the_job_writes_it(shipped_llava, scenes, tmp_path, monkeypatch):
    config = edit_config.get_config()
    config.edit = ml_collections.ConfigDict({"k": 3, "strength": 0.7})
    edit_job.run(Request(config, source=shipped_llava.folder.path, target=tmp_path / "job"))
    edited = shipped_llava.apply("qk", k=3, strength=0.7)
    monkeypatch.setenv("HOME", str(tmp_path))
    edited.save("~/api")  # as `load` reads it
    files = lambda name: {p.name: p.read_bytes() for p in sorted((tmp_path / name).iterdir())}
    assert files("api") == files("job")
    assert {CERTIFICATE, SIDECAR} <= set(files("api"))
    assert edited.certificate.content == files("job")[CERTIFICATE]
    again = vlm_jax.load(tmp_path / "api")
    assert ask(again, scenes[0]) == ask(edited, scenes[0])
    assert dict(again.certificate) == dict(edited.certificate)
    assert "strength: 0.7" in repr(edited.certificate)
    assert "0.7" in edited.certificate._repr_html_()
    with pytest.raises(CheckpointError, match="exists"):
        edited.save(tmp_path / "api")
    with pytest.raises(EditError, match="edits do not add up"):
        again.apply("qk", k=2)


def test_an_edit_compiles_nothing(shipped_llava, scenes):
    ask(shipped_llava, scenes[0])
    before = shipped_llava.generator.compilations
    ask(shipped_llava.apply("qk", k=2), scenes[0])
    assert shipped_llava.generator.compilations == before


def test_an_unedited_model_is_copied(shipped_llava, tmp_path):
    shipped_llava.save(tmp_path / "copy")
    for path in shipped_llava.folder.path.iterdir():
        if path.name not in ("heads.json", "recipe.json"):
            assert (tmp_path / "copy" / path.name).read_bytes() == path.read_bytes(), path.name


def test_what_no_folder_can_hold_is_not_saved(shipped_llava, tmp_path):
    steered = shipped_llava.apply("qk", k=2).apply("air", **AIR)
    with pytest.raises(ConfigError, match="steering is not weights"):
        steered.save(tmp_path / "steered")
    arrays = shipped_llava.with_params(shipped_llava.params)
    with pytest.raises(ConfigError, match="with_params"):
        arrays.save(tmp_path / "arrays")
    with pytest.raises(ConfigError, match="with_params"):
        arrays.apply("qk")
    assert not list(tmp_path.iterdir())


def louder(config, *, gain: float = 2.0) -> Steering:
    """Makes every head louder.

    Of another package.
    """
    shape = 1, config.decoder.num_layers, config.decoder.num_heads
    return Steering(head_gains=HeadGains(np.full(shape, gain, np.float32)))


def install(monkeypatch, name, value):
    """Makes a method appear as if a package that names it were installed."""
    entry = importlib.metadata.EntryPoint(name, value, "vlm_jax.methods")
    found = plugins.installed
    monkeypatch.setattr(
        plugins, "installed", lambda group: [entry] if group == "vlm_jax.methods" else found(group)
    )


def test_another_package_adds_a_method(shipped_llava, scenes, monkeypatch):
    install(monkeypatch, "louder", f"{__name__}:louder")
    method = vlm_jax.methods()["louder"]
    assert (method.summary, method.settings) == ("Makes every head louder.", {"gain": 2.0})
    assert shipped_llava.apply("louder", gain=3.0).steering.head_gains.gain[0, 0, 0] == 3
    with pytest.raises(ConfigError, match="has no setting 'gian'"):
        shipped_llava.apply("louder", gian=3.0)
    with pytest.raises(ConfigError, match="every head of every layer is left as it is"):
        shipped_llava.apply("louder", gain=1.0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no_such_package:broken", "'broken' of no_such_package.*cannot be imported"),
        (f"{__name__}:no_such_method", "cannot be imported: AttributeError"),
        (f"{__name__}:FOLDS", "'broken' of .* is none: {'head_gains'"),
        ("antigravity_exit:broken", "cannot be imported: SystemExit: 3"),
    ],
)
def test_a_package_that_is_broken_hurts_no_other_method(
    shipped_llava, monkeypatch, caplog, tmp_path, value, message
):
    (tmp_path / "antigravity_exit.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    install(monkeypatch, "broken", value)
    assert shipped_llava.apply("air", heads="all").steering is not None
    assert "air" in vlm_jax.methods()
    assert "broken" not in vlm_jax.methods()
    assert sum("'broken'" in text for text in caplog.messages) == 1
    with pytest.raises(ConfigError, match=message):
        shipped_llava.apply("broken")


def test_what_is_shown_is_escaped(shipped_llava):
    text = "<script>alert(1)</script>"
    treated = shipped_llava.apply("air", heads="all")
    object.__setattr__(treated.treatments[0], "settings", {"heads": text})
    assert text not in treated._repr_html_()
    assert html.escape(text, quote=False) in html.unescape(treated._repr_html_()).replace(
        text, html.escape(text, quote=False)
    )


FOLDS = {
    "head_gains": "head_gains.json",
    "energy_rescale": "energy_rescale.json",
}


@pytest.mark.parametrize("name", FOLDS)
def test_a_fold_is_saved_as_the_job_writes_it(shipped_llava, scenes, tmp_path, name):
    sets = {"shape": [6, 8], "perception": [[0, 1]], "reasoning": [[4, 2]]}
    (tmp_path / "classes.json").write_text(json.dumps({"sets": sets}))
    classes = {"mode": "dataset_static", "heads": str(tmp_path / "classes.json")}
    if name == "head_gains":
        section = {"method": "functional_heads", "reasoning_gain": 0.5, **classes}
        settings = {"gains": section}
    else:
        settings = {"layers": (1, 3), "energy": "symmetrised"}
        section = {"method": name, **settings}
    config = edit_config.get_config()
    config.fold = ml_collections.ConfigDict(section)
    fold_job.run(Request(config, source=shipped_llava.folder.path, target=tmp_path / "job"))
    folded = shipped_llava.apply(name, **settings)
    folded.save(tmp_path / "api")
    for path in (tmp_path / "job").iterdir():
        assert (tmp_path / "api" / path.name).read_bytes() == path.read_bytes(), path.name
    assert folded.certificate.content == (tmp_path / "job" / FOLDS[name]).read_bytes()
    again = vlm_jax.load(tmp_path / "api")
    for path, array in again.params.items():
        np.testing.assert_array_equal(array, folded.params[path], err_msg=path)
    assert ask(again, scenes[0]) == ask(folded, scenes[0])


def test_edits_of_different_tensors_are_saved_together(shipped_llava, tmp_path):
    gains = np.ones((6, 8))
    gains[2, 3] = 0.5
    both = shipped_llava.apply("qk", k=2).apply("head_gains", gains=gains)
    both.save(tmp_path / "both")
    again = vlm_jax.load(tmp_path / "both")
    for path, array in again.params.items():
        np.testing.assert_array_equal(array, both.params[path], err_msg=path)
    assert [p.name for p in tmp_path.iterdir()] == ["both"]
    with pytest.raises(ConfigError, match="'qk' and 'energy_rescale' both change"):
        both.apply("energy_rescale")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs gains: an array"),
        ({"gains": np.ones((2, 2))}, "6 layers of 8 heads"),
        ({"gains": {"method": "air", "heads": "identified"}}, "gains that are fixed"),
    ],
)
def test_gains_that_weights_cannot_hold_are_refused(shipped_llava, settings, message):
    with pytest.raises((ConfigError, EditError), match=message):
        shipped_llava.apply("head_gains", **settings)


def test_numpy_says_as_much_as_python(shipped_llava):
    apply = lambda **settings: shipped_llava.apply("air", **settings)
    plain = apply(heads=[[0, 1], [2, 3]], text_gain=0.5)
    arrays = apply(heads=np.array([[0, 1], [2, 3]]), text_gain=np.float64(0.5))
    assert str(arrays.treatments[0]) == str(plain.treatments[0])
    jax.tree.map(np.testing.assert_array_equal, arrays.steering, plain.steering)
