"""Where answers come from, as a job: numbers, the page, resumption, and what it refuses."""

import json

import numpy as np
import pytest

import vlm_jax
from configs import explain as config_file
from tests.reference import IMAGES, PROMPTS
from vlm_jax.errors import AnswersError, ConfigError, PromptError
from vlm_jax.evals.base import Example
from vlm_jax.jobs import explain
from vlm_jax.jobs.explain import read_settings
from vlm_jax.study.request import Request


@pytest.fixture(scope="module")
def job(tiny_llava, tmp_path_factory):
    """The config and the workdir of a run over two requests, one without an image."""
    folder = tmp_path_factory.mktemp("contributions")
    IMAGES[0][0].save(folder / "image.png")
    lines = [
        {"id": "seen", "images": ["image.png"], "prompt": PROMPTS[0]},
        {"id": "blind <b>", "images": [], "prompt": PROMPTS[2]},
    ]
    (folder / "requests.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = config_file.get_config()
    config.requests = str(folder / "requests.jsonl")
    config.max_new_tokens = 4
    config.compile_cache = "off"
    explain.run(Request(config=config, source=tiny_llava, workdir=folder / "out"))
    return config, folder / "out"


def test_every_token_has_its_support(job):
    _, workdir = job
    document = json.loads((workdir / "contributions.json").read_text())
    seen, blind = document["answers"]
    assert (seen["id"], blind["id"]) == ("seen", "blind <b>")
    assert document["scope"] == "row"
    for number, one in enumerate((seen, blind)):
        with np.load(workdir / "answers" / f"{number:06}.npz") as arrays:
            support_mlns = arrays["support"]
        assert support_mlns.shape == (len(one["tokens"]), 3, 4, 4)
        np.testing.assert_allclose(one["support"], support_mlns.sum((1, 2)), atol=1e-5)
        assert sum(one["shares"].values()) == pytest.approx(1, abs=1e-5)
    assert seen["shares"]["image"] > 0
    assert blind["shares"]["image"] == 0


def test_the_page_shows_every_answer(job):
    text = (job[1] / "contributions.html").read_text()
    assert text.count('<figure class="chart"') == 4
    assert "blind &lt;b&gt;" in text
    assert "blind <b>" not in text
    assert "gates at the row that predicts" in text


def test_a_killed_run_goes_on(job, tiny_llava, monkeypatch):
    config, workdir = job
    whole = (workdir / "contributions.json").read_text()
    (workdir / "answers" / "000001.npz").unlink()
    real, asked = explain.measure, []
    monkeypatch.setattr(explain, "measure", lambda *args: asked.append(args[2].id) or real(*args))
    explain.run(Request(config=config, source=tiny_llava, workdir=workdir))
    assert asked == ["blind <b>"]
    assert (workdir / "contributions.json").read_text() == whole
    changed = config.copy_and_resolve_references()
    changed.contributions.scope = "all"
    with pytest.raises(AnswersError, match="another run: "):
        explain.run(Request(config=changed, source=tiny_llava, workdir=workdir))


def test_pictures_in_memory_are_known_by_their_benchmark():
    """Their addresses change from run to run."""
    one, other = (Example(0, (image,), "what?") for image in (IMAGES[0][0], IMAGES[0][0].copy()))
    assert explain._asked(one) == explain._asked(other)


@pytest.mark.parametrize(
    ("section", "match"),
    [
        ({"scopes": "row"}, "config.contributions has no setting 'scopes' .*; it knows scope"),
        ({"scope": "rows"}, "did you mean 'row'"),
        ({"rows": 0}, "config.contributions.rows must be a whole number"),
        ({"answers": 0.5}, "config.contributions.answers must be a whole number"),
    ],
)
def test_one_clear_error_for_each_bad_setting(section, match):
    with pytest.raises(ConfigError, match=match):
        read_settings(section)


def test_what_cannot_be_answered_is_named(job, tiny_llava, tmp_path):
    config = job[0].copy_and_resolve_references()
    config.requests = str(tmp_path / "requests.jsonl")
    (tmp_path / "requests.jsonl").write_text("{}")
    request = Request(config=config, source=tiny_llava, workdir=tmp_path / "out")
    with pytest.raises(PromptError, match="line 1 needs a text 'prompt'"):
        explain.run(request)
    config.benchmarks.a = config.benchmarks.b = {"kind": "testbed_chair"}
    with pytest.raises(ConfigError, match=r"one benchmark, but config\.benchmarks has 2"):
        explain.run(request)


def test_analyses_of_weights_ask_no_model(tiny_qwen, tmp_path, monkeypatch, capsys):
    config = config_file.get_config()
    config.explain.analysis = "spectra"
    config.explain.spectra.layers = (1, 2)
    monkeypatch.setattr(explain, "load_model", lambda *_: pytest.fail("loaded"))
    explain.run(Request(config=config, source=tiny_qwen, workdir=tmp_path))
    assert "Query-key products" in capsys.readouterr().out
    found = json.loads((tmp_path / "spectra.json").read_text())
    assert (found["layers"], found["kind"]) == ([1, 2], "spectra")
    assert np.shape(found["singular_values"])[:2] == (2, 4)
    assert "| layer | s_1 |" in (tmp_path / "spectra.md").read_text()
    of_model = vlm_jax.explain(vlm_jax.load(tiny_qwen), "spectra", layers=(1, 2)).document()
    np.testing.assert_allclose(of_model["trace"], found["trace"], rtol=1e-5)
    config.explain.analysis = "spectra,masse"
    with pytest.raises(ConfigError, match=r"config\.explain\.analysis must be one of"):
        explain.run(Request(config=config, source=tiny_qwen, workdir=tmp_path))
    config.explain.analysis = "spectra"
    with config.unlocked():
        config.explain.contributions = {"scope": "all"}  # these are in config.contributions
    with pytest.raises(ConfigError, match=r"config\.explain has no setting 'contributions'"):
        explain.run(Request(config=config, source=tiny_qwen, workdir=tmp_path))
    del config.explain.contributions
    config.explain.spectra.layers = (2, 9)
    with pytest.raises(ConfigError, match="layers must be the first and last"):
        explain.run(Request(config=config, source=tiny_qwen, workdir=tmp_path))
    config.explain.spectra.layers = ()
    config.explain.editing.alpha = -1.0  # of an analysis that is not asked for
    with pytest.raises(ConfigError, match=r"config\.explain\.editing\.alpha must be"):
        explain.run(Request(config=config, source=tiny_qwen, workdir=tmp_path))
    with config.ignore_type():
        config.explain.analysis = 3
    with pytest.raises(ConfigError, match=r"config\.explain\.analysis must be a list, not 3"):
        explain.run(Request(config=config, source=tiny_qwen, workdir=tmp_path))
