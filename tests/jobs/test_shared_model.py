"""On a real model: arms compile nothing, and hold what an edited folder would."""

import html
import json

import numpy as np
import PIL.Image
import pytest

from tests.jobs.conftest import stand_in
from vlm_jax import checkpoint
from vlm_jax.decoding import Generator
from vlm_jax.edits.qk import QKEdit
from vlm_jax.edits.qk.folder import edit_folder
from vlm_jax.errors import EditError
from vlm_jax.evals.suites.chair import Chair
from vlm_jax.evals.truth import ObjectTruth
from vlm_jax.jobs import evaluate
from vlm_jax.loading import load
from vlm_jax.study.arms import plan_edits
from vlm_jax.study.request import Request


@pytest.fixture(autouse=True)
def nothing_compiled(monkeypatch):
    """Models find nothing that another test has compiled for their architecture."""
    monkeypatch.setattr("vlm_jax.loading.generator_of", Generator)


def picture_chair(offset: int = 0) -> Chair:
    rng = np.random.default_rng(offset)
    images = {
        number: PIL.Image.fromarray(rng.integers(0, 255, (56, 56, 3), np.uint8))
        for number in range(3)
    }
    return Chair(images, ObjectTruth(dict.fromkeys(images, frozenset({"cup"})), ("cup",)))


def test_a_comparison_compiles_nothing_for_its_arms(tiny_llava, tmp_path, monkeypatch, config):
    stand_in(monkeypatch, picture_chair=picture_chair)
    config.max_new_tokens = 4
    config.bootstrap_draws = 10
    config.batch_size = 2
    config.benchmarks = {
        "a": {"kind": "picture_chair"},
        "b": {"kind": "picture_chair", "offset": 1},
    }
    config.frontier.biases = (5.0,)
    request = Request(config=config, source=tiny_llava, workdir=tmp_path / "work")
    found = evaluate.evaluate_model(request)
    compiled = found.measured.compiled
    assert compiled.unedited > 0
    assert compiled.edited == 0
    asked = load(tiny_llava).processor.template(next(iter(picture_chair().examples())).prompt, 1)
    assert "<image>" in asked
    top = json.loads((tmp_path / "work" / "results.json").read_text())
    assert top["prompt"] == top["all"]["b"]["R3"]["prompt"] == asked
    assert html.escape(asked) in (tmp_path / "work" / "report.html").read_text()
    assert len(list((tmp_path / "work").rglob("answers.jsonl"))) == 1 + 2 * (1 + 1 + 1 + 3 + 1)


def test_steering_compiles_once_a_kind(tiny_llava, tmp_path, monkeypatch, config):
    stand_in(monkeypatch, picture_chair=picture_chair)
    config.max_new_tokens = 4
    config.bootstrap_draws = 10
    config.batch_size = 2
    config.benchmarks = {"a": {"kind": "picture_chair"}}
    config.frontier.biases = ()
    adhh = {"method": "adhh", "heads": ((1, 0), (2, 3)), "threshold": 0.0}
    config.arms = {
        "adhh": adhh,
        "adhh_random": {**adhh, "control": "random", "draws": 3},
        "never": {**adhh, "threshold": 1.0},
        "both": [{}, adhh],
        "qk": {},
    }
    request = Request(config=config, source=tiny_llava, workdir=tmp_path / "work")
    compiled = evaluate.evaluate_model(request).measured.compiled
    found = json.loads((tmp_path / "work" / "results.json").read_text())["comparison"]
    assert compiled.edited == 0
    assert compiled.kinds == 1
    # The two programs that read images and prefixes serve both: AD-HH leaves those rows alone.
    assert compiled.steered == compiled.unedited - 2 > 0
    rates = {name: arm["acted"][0]["trigger_rate"] for name, arm in found["arms"].items()
             if "acted" in arm}  # fmt: skip
    assert rates == {"adhh": 1.0, "adhh_random": 1.0, "never": 0.0, "both": 1.0}
    answers = {
        name: (tmp_path / "work" / "a" / name / "answers.jsonl").read_text()
        for name in ("unedited", "never", "adhh")
    }
    captions = {k: [json.loads(line)["caption"] for line in text.splitlines()]
                for k, text in answers.items()}  # fmt: skip
    assert captions["never"] == captions["unedited"] != captions["adhh"]


def test_edits_of_an_edited_folder_are_refused(tiny_qwen, tmp_path):
    edit_folder(checkpoint.open_folder(tiny_qwen), tmp_path / "edited", QKEdit(band=(0, 0)))
    with pytest.raises(EditError, match="is edited already; compare edits of the original"):
        plan_edits(checkpoint.open_folder(tmp_path / "edited"), [QKEdit(band=(0, 0))])


@pytest.mark.parametrize("spec", [QKEdit(k=2, band=(0, 1)), QKEdit(k=2, band=(1, 1), control="R3")])
def test_an_arm_holds_the_weights_of_an_edited_folder(tiny_qwen, tmp_path, spec):
    source = checkpoint.open_folder(tiny_qwen)
    model = load(tiny_qwen)
    planned = plan_edits(source, [QKEdit(k=1, band=(2, 2)), spec])[spec]
    arm = planned.treatment.apply(model)
    edit_folder(source, tmp_path / "edited", spec)
    expected = load(tmp_path / "edited")
    assert arm.params.keys() == expected.params.keys()
    for path, array in expected.params.items():
        np.testing.assert_array_equal(np.asarray(arm.params[path]), np.asarray(array), path)
    changed = [path for path in arm.params if arm.params[path] is not model.params[path]]
    assert changed == [f"decoder/layers/{n}/wq_dnh" for n in spec.layers(3)]
