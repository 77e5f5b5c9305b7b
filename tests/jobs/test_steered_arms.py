"""Attention methods as arms: what they are compared with, what is kept of them, several models."""

import json
import os
import shutil

import pytest

from vlm_jax import checkpoint
from vlm_jax.errors import AnswersError, ConfigError, UserError
from vlm_jax.jobs import evaluate, sweep
from vlm_jax.study.fingerprint import fingerprint
from vlm_jax.study.request import Request

AIR = {"method": "air", "heads": ((1, 0), (2, 3))}
GAINS = {"method": "functional_heads", "reasoning_to": 0.1, "perception_from": 0.5}


def read(path):
    return json.loads(path.read_text())


@pytest.fixture
def config(config):
    config.control_draws = 3
    config.arms = {
        "air": AIR,
        "air_random": {**AIR, "control": "random"},
        "both": [{"strength": 1.0}, AIR],
        "gains": GAINS,
        "qk": {},
    }
    return config


def test_steered_arms_stand_beside_edits(job):
    top = read(job(evaluate.run) / "results.json")
    arms = top["comparison"]["arms"]
    assert list(arms) == ["unedited", "air", "air_random", "both", "gains", "qk"]
    found = {arm: top["all"]["broken"][arm]["differences"] for arm in list(arms)[1:]}
    change = {arm: differences["C_S"]["value"] for arm, differences in found.items()}
    assert change["air"] == pytest.approx(-0.1)
    assert change["air_random"] == pytest.approx(-0.1)  # one head of layer 1, whichever it is
    assert change["both"] == pytest.approx(-0.4)
    assert change["gains"] == 0
    assert arms["air"]["frontier_gap"]["value"] == pytest.approx(-0.1)
    assert arms["both"]["edit"]["strength"] == 1.0
    assert arms["both"]["methods"][0]["method"] == "air"
    assert top["all"]["broken"]["air"]["config"]["methods_of_arm"][0]["method"] == "air"
    (contrast,) = top["comparison"]["controls"]
    assert (contrast["edit"], contrast["control"]) == ("air", "air_random")
    assert contrast["rank_p"]["broken"] == 1.0
    assert contrast["smallest_rank_p"] == 0.25


def test_what_methods_did_is_kept_and_summed_up(job, fake, capsys):
    workdir = job(evaluate.run)
    line = (workdir / "broken" / "air" / "answers.jsonl").read_text().splitlines()[0]
    did = json.loads(line)["steering"]
    assert did["fired"] == [0, 0.5, 0.5]
    assert did["steps"] == {"fired": [0, 1]}
    assert "steering" not in (workdir / "broken" / "qk" / "answers.jsonl").read_text()
    arms = read(workdir / "results.json")["comparison"]["arms"]
    (air,) = arms["air"]["acted"]
    assert (air["layers"], air["heads"], air["trigger_rate"]) == ([1, 2], 2, 0.5)
    assert air["perception"] is None
    assert len(arms["air_random"]["acted"]) == 3
    (gains,) = arms["gains"]["acted"]
    assert (gains["trigger_rate"], gains["perception"]) == (None, 1.0)
    assert gains["selected"] == pytest.approx(1 / 12)
    assert set(gains["by_benchmark"]) == {"broken", "normal", "pope"}
    printed = capsys.readouterr().out
    assert "What the methods did" in printed
    assert "warning" not in printed
    assert "for 2 kinds of steering" in printed
    made = len(fake.calls)
    again = read(job(evaluate.run) / "results.json")["comparison"]["arms"]
    assert len(fake.calls) == made
    assert again["air"]["acted"] == arms["air"]["acted"]


def test_a_config_asks_for_two_passes(job, config, fake):
    config.arms = {"once": GAINS, "twice": {**GAINS, "passes": 2}}
    config.frontier.biases = ()
    top = read(job(evaluate.run) / "results.json")
    (twice,) = top["comparison"]["arms"]["twice"]["acted"]
    assert twice["perception"] == 1.0  # what the first pass read, as gains are fixed in the second
    once, others = len(fake.calls) // 4, 3
    assert len(fake.calls) == (others + 1) * once
    assert once == 3 * 40


def test_a_great_share_of_selected_heads_is_a_warning(job, monkeypatch, capsys):
    from vlm_jax.study import acted

    monkeypatch.setattr(acted, "REGIME", 0.05)
    job(evaluate.run)
    assert "warning: gains: more than 5 % of all heads are selected" in capsys.readouterr().out


def test_other_settings_under_the_same_name_are_refused(job, config):
    job(evaluate.run)
    config.arms["air"] = {**AIR, "text_gain": 0.2}
    with pytest.raises(AnswersError, match="another run: "):
        job(evaluate.run)


def test_a_wrong_method_is_an_error_before_any_answer(job, config, fake):
    config.arms["zz"] = {"method": "air", "heads": ((9, 9),)}
    with pytest.raises(ConfigError, match=r"config.arms.zz: .*there is no head \(9, 9\)"):
        job(evaluate.run)
    assert not fake.calls


@pytest.fixture
def two(tiny_llava, tmp_path):
    """Two models of one architecture."""
    return tuple(shutil.copytree(tiny_llava, tmp_path / name) for name in ("seed_0", "seed_1"))


def test_several_models_make_one_table(two, tmp_path, config, fake, capsys):
    work = tmp_path / "work"
    evaluate.run(Request(config=config, sources=two, workdir=work))
    top = read(work / "results.json")
    assert list(top["models"]) == ["seed_0", "seed_1"]
    assert read(work / "seed_1" / "results.json")["comparison"] == top["models"]["seed_1"]
    printed = capsys.readouterr().out.split("2 models: seed_0, seed_1")[1]
    rows = {line.split("  ")[0] or line.split()[0]: line for line in printed.splitlines() if line}
    assert "-10.0 {-10.0 to -10.0} 2/2" in rows["air"]
    assert "+0.0 {+0.0 to +0.0} 0/2" in rows["gains"]
    assert "0/2" in rows["air - air_random (3 draws)"]
    assert printed.count("  seed_1 ") == 5 + 1
    assert "| C_S broken | C_I broken | recall broken |" in (work / "report.md").read_text()
    assert (work / "report.html").exists()


def test_models_of_one_name_are_refused(two, tmp_path, config, fake):
    other = shutil.copytree(two[0], tmp_path / "elsewhere" / "seed_0")
    with pytest.raises(ConfigError, match="whose results would share a folder"):
        evaluate.run(Request(config=config, sources=(two[0], other), workdir=tmp_path / "w"))
    assert not fake.calls


def test_other_jobs_read_one_model(two, tmp_path, config):
    with pytest.raises(UserError, match="reads one model; --source names 2"):
        sweep.run(Request(config=config, sources=two, workdir=tmp_path / "w"))


def test_a_moved_folder_is_the_same_and_a_changed_one_is_not(two):
    one, other = (checkpoint.open_folder(path) for path in two)
    os.utime(two[0] / "config.json", (1, 1))
    assert fingerprint(one) == fingerprint(other)
    (two[1] / "heads.json").write_text("{}")
    assert fingerprint(one) == fingerprint(other)
    weights = next(two[1].glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert fingerprint(one) != fingerprint(other)


def test_large_files_are_hashed_once_until_they_change(two, monkeypatch, tmp_path):
    from vlm_jax.study import fingerprint as module

    monkeypatch.setattr(module, "_REMEMBERED", 1 << 10)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    read = []
    digest = module._digest
    monkeypatch.setattr(module, "_digest", lambda path: read.append(path.name) or digest(path))
    weights = next(two[1].glob("*.safetensors"))
    before = fingerprint(checkpoint.open_folder(two[1]))
    assert weights.name in read
    read.clear()
    assert fingerprint(checkpoint.open_folder(two[1])) == before
    assert weights.name not in read
    status = weights.stat()
    with weights.open("r+b") as file:  # one byte in the middle, in place
        file.seek(status.st_size // 2)
        byte = file.read(1)
        file.seek(status.st_size // 2)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fingerprint(checkpoint.open_folder(two[1])) != before
    (tmp_path / "cache" / "vlm_jax" / "content.json").write_text("[" * 100_000)
    assert fingerprint(checkpoint.open_folder(two[0])) == before
