"""What is refused before any work, several sources, and jobs of their own for edited folders."""

import json
import shutil
from typing import Any, cast

import pytest

from vlm_jax import checkpoint
from vlm_jax.cli import configs, listing
from vlm_jax.edits.qk import QKEdit
from vlm_jax.edits.qk.folder import edit_folder
from vlm_jax.errors import ConfigError, UserError
from vlm_jax.evals.suites import read_benchmark
from vlm_jax.jobs import edit, evaluate, fold, restrength, revert, sweep
from vlm_jax.study.request import Request
from vlm_jax.study.treated import treated


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bootstrap_draws", "0"),
        ("bootstrap_draws", "-1"),
        ("bootstrap_draws", "1000000000"),
        ("seed", "-1"),
        ("max_failures", "inf"),
        ("max_failures", "nan"),
        ("control_draws", "0"),
        ("prefix_cache_mb", "-1"),
        ("dtype", "fp16"),
        ("layouts", "{'a': 1}"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_before_any_job(name, value):
    with pytest.raises(ConfigError, match=rf"^config\.{name} must (be|list) .*not "):
        Request(config=configs.read("base", [(name, value)]))


@pytest.mark.parametrize("name", ["chair", "pope", "chair_methods", "pope_methods"])
def test_configs_of_real_benchmarks_have_arms_and_their_controls(name):
    config: Any = configs.read(name, [("arms.mild", "{}"), ("arms.mild.k", "2")])
    arms = config.arms.to_dict()
    assert arms.pop("mild") == {"k": 2}
    controlled = [arm for arm in arms.values() if arm.get("control")]
    assert controlled
    assert len(controlled) < len(arms)
    assert bool(config.frontier.biases) == name.startswith("chair")


@pytest.mark.parametrize("value", ["-1", "1.5", "[1, 'air']", "true"])
def test_a_method_that_is_none_is_refused(value):
    config: Any = configs.read("generate", [("method", value)])
    with pytest.raises(ConfigError, match=r"config\.method must be a method's name"):
        treated(cast(Any, None), config)


def test_a_benchmark_that_is_no_section_is_refused():
    with pytest.raises(ConfigError, match=r"config\.benchmarks\.a is a section: give"):
        read_benchmark("a", cast(Any, 1))


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("frontier", {"bias": (1.0,)}, "config.frontier has no setting 'bias' .did you mean 'bias"),
        ("frontier", {"biases": (float("nan"),)}, "config.frontier.biases must be a finite number"),
        ("frontier", {"tokens": "and"}, "config.frontier.tokens must be a list"),
        ("arms", {"edited": {"kk": 2}}, "config.arms.edited has no setting 'kk'"),
    ],
)
def test_a_wrong_section_is_refused_by_name(job, config, fake, section, changes, message):
    config[section] = changes
    with pytest.raises(ConfigError, match=message):
        job(evaluate.run)


def test_a_changed_edit_that_no_arm_makes_is_refused(job, config, fake):
    config.arms = {}
    with pytest.raises(ConfigError, match=r"config.edit.k changes nothing: no arm edits weights"):
        job(evaluate.run, changed=("seed", "edit.k"))


def test_a_changed_edit_that_a_sweep_varies_is_refused(job, config, fake):
    config.sweep = {"k": (1, 2)}
    config.frontier.biases = ()
    with pytest.raises(ConfigError, match=r"config.edit.k changes nothing: config.sweep varies it"):
        job(sweep.run, changed=("edit.k",))


def test_all_sources_are_opened_before_the_first_runs(config, fake, tiny_llava, tmp_path):
    sources = (tiny_llava, tmp_path / "typo")
    with pytest.raises(UserError, match="typo"):
        evaluate.run(Request(config=config, sources=sources, workdir=tmp_path / "work"))
    assert not (tmp_path / "work").exists()


def test_models_are_compared_on_the_same_items(config, fake, tiny_llava, tmp_path, capsys):
    sources = [tmp_path / name for name in ("first", "second")]
    for source in sources:
        shutil.copytree(tiny_llava, source)
    config.arms, config.frontier.biases = {}, ()
    evaluate.run(Request(config=config, sources=tuple(sources), workdir=tmp_path / "work"))
    found = json.loads((tmp_path / "work" / "results.json").read_text())
    rows = found["compared"]["broken"]
    assert list(rows) == ["first", "second"]
    assert rows["second"]["differences"]["C_S"]["value"] == 0  # the same model twice
    assert "60.0 (+0.0 [+0.0, +0.0])" in capsys.readouterr().out
    assert set(found["made"]) == {"date", "command", "commit"}


def test_edited_folders_are_reverted_and_restrengthened_by_jobs(tiny_llava, tmp_path, capsys):
    source, config = checkpoint.open_folder(tiny_llava), configs.read("restrength")
    edited = tmp_path / "edited"
    edit_folder(source, edited, QKEdit(band=(1, 1), k=2, strength=0.5))
    asked = lambda name: Request(config=config, source=edited, target=tmp_path / name)
    revert.run(asked("original"))
    original = checkpoint.open_folder(tmp_path / "original")
    for path, array in original.stream(list(original.tensors)):
        assert array.tobytes() == source.read(path).tobytes()
    with pytest.raises(ConfigError, match=r"Set config.restrength"):
        restrength.run(asked("mild"))
    config.restrength = 0.25
    restrength.run(asked("mild"))
    mild = checkpoint.open_folder(tmp_path / "mild").certificate
    assert mild is not None
    assert mild.fields["edit"]["strength"] == 0.25
    assert "Edited model" in capsys.readouterr().out
    assert {"revert", "restrength", "fold"} <= set(listing.jobs())


def test_editing_by_a_method_names_the_job_that_folds(tiny_llava, tmp_path):
    config = configs.read("fold")
    request = Request(config=config, source=tiny_llava, target=tmp_path / "folded")
    with pytest.raises(ConfigError, match="say --job=fold"):
        edit.run(request)


def test_an_edited_folder_takes_part_as_it_is(config, fake, tiny_llava, tmp_path, capsys):
    plain, changed = tmp_path / "plain", tmp_path / "changed"
    shutil.copytree(tiny_llava, plain)
    edit_folder(checkpoint.open_folder(tiny_llava), changed, QKEdit(band=(1, 1), k=2))
    work = tmp_path / "work"
    evaluate.run(Request(config=config, sources=(plain, changed), workdir=work))
    said = capsys.readouterr().out
    assert "changed is edited already, so arms that edit weights are left out of it" in said
    found = json.loads((work / "results.json").read_text())
    assert list(found["compared"]["broken"]) == ["plain", "changed"]
    assert list(found["models"]["changed"]["arms"]) == ["as edited"]
    assert len(found["models"]["plain"]["arms"]) == 4


def test_results_of_further_arms_are_not_written_over(job, config):
    workdir = job(evaluate.run)
    before = (workdir / "results.json").read_bytes()
    del config.arms["C5"]
    with pytest.raises(ConfigError, match=r"has arms that this run lacks: C5\. Choose another"):
        job(evaluate.run)
    assert (workdir / "results.json").read_bytes() == before
    (workdir / "results.json").unlink()
    job(evaluate.run)


def test_folding_works_on_every_model_by_default(tiny_llava, tmp_path):
    request = Request(config=configs.read("fold"), source=tiny_llava, target=tmp_path / "folded")
    fold.run(request)
    before, after = (checkpoint.open_folder(p) for p in (tiny_llava, tmp_path / "folded"))
    path = "decoder/layers/1/wq_dnh"
    assert before.read(path).tobytes() != after.read(path).tobytes()
