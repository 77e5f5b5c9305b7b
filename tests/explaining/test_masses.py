"""Masses, imbalance and maps of a model's answers, in Python and as a job."""

import json

import numpy as np
import pytest

import vlm_jax
from configs import explain as config_file
from tests.reference import IMAGES, PROMPTS
from vlm_jax.cli import configs
from vlm_jax.errors import ConfigError, PromptError
from vlm_jax.explaining.masses import MassesSettings
from vlm_jax.jobs import explain
from vlm_jax.settings import plain, read
from vlm_jax.study.request import Request

OPTIONS = {"max_new_tokens": 3, "heads": ((1, 0), (2, 3)), "maps": (1,)}


@pytest.fixture(scope="module")
def found(qwen_vlm):
    return vlm_jax.explain(qwen_vlm, "masses", IMAGES[0][0], PROMPTS[0], **OPTIONS)


def test_what_is_found_is_written_out(found):
    document = json.loads(json.dumps(found.document(), allow_nan=False))
    (one,) = document["answers"]
    masses = np.stack([one["masses"][name] for name in ("image", "text", "system")])
    assert masses.shape[2:] == (3, 4)
    np.testing.assert_allclose(masses.sum(0), 1, atol=1e-4)
    mai = masses[1].sum(0) / masses[0].sum(0)
    np.testing.assert_allclose(document["mai"], mai, rtol=1e-2)
    assert np.shape(one["tai"]) == (2, len(one["sequence"]))
    assert one["tokens"] == one["sequence"][-len(one["tokens"]) :]
    (map_hs,) = one["maps"].values()
    np.testing.assert_allclose(np.sum(map_hs, -1), 1, atol=1e-4)
    assert -1 <= document["entropy_variance_rank_correlation"] < 0
    boxes = np.array(list(one["regions"].values()))
    assert all("image_pad" in one["sequence"][int(place)] for place in one["regions"])
    np.testing.assert_allclose((boxes[:, 2:] - boxes[:, :2]).prod(1).sum(), 1, rtol=1e-4)
    assert boxes.min() == 0
    assert boxes.max() == 1
    by_layer, by_token = found.tables()
    assert [row[0] for row in by_layer.rows] == ["layer 0", "layer 1", "layer 2"]
    assert len(by_token.rows) == 8


def test_one_clear_error_for_each_bad_call(qwen_vlm):
    ask = lambda *asked, **settings: vlm_jax.explain(qwen_vlm, "masses", *asked, **settings)
    with pytest.raises(PromptError, match="give images and prompts"):
        ask()
    with pytest.raises(ConfigError, match="maps keeps rows of the heads that are named"):
        ask(IMAGES[0][0], PROMPTS[0], maps=(1,))
    with pytest.raises(ConfigError, match="did you mean 'heads'"):
        ask(IMAGES[0][0], PROMPTS[0], head=())
    with pytest.raises(ConfigError, match="contribution must be one of"):
        ask(IMAGES[0][0], PROMPTS[0], contribution="erased")
    steered = qwen_vlm.apply("adhh", heads="all")
    with pytest.raises(ConfigError, match="this model is steered"):
        vlm_jax.explain(steered, "masses", IMAGES[0][0], PROMPTS[0])


def test_heads_are_named_on_the_command_line_too():
    config = config_file.get_config()
    configs.change(config, "explain.masses.heads", "identified")
    settings = read(MassesSettings, plain(config.explain.masses), "config.explain.masses")
    options = {"heads": settings.heads, "count": 2, "max_new_tokens": 2}
    found = vlm_jax.explain(vlm_jax.load("llava-0"), "masses", IMAGES[0][0], PROMPTS[0], **options)
    assert len(found.heads) == 2


def test_the_job_writes_what_the_function_finds(found, tiny_qwen, tmp_path, capsys):
    IMAGES[0][0].save(tmp_path / "image.png")
    config = config_file.get_config()
    config.explain.analysis = "masses"
    config.explain.masses.update(OPTIONS)
    config.images, config.prompt = (str(tmp_path / "image.png"),), PROMPTS[0]
    config.compile_cache = "off"
    explain.run(Request(config=config, source=tiny_qwen, workdir=tmp_path / "out"))
    assert "Where heads look" in capsys.readouterr().out
    document = json.loads((tmp_path / "out" / "masses.json").read_text())
    expected = found.document()["answers"][0]
    assert document["answers"][0]["tokens"] == expected["tokens"]
    np.testing.assert_allclose(
        document["answers"][0]["masses"]["image"], expected["masses"]["image"], atol=1e-4
    )
