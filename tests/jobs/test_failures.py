"""Items that cannot be read: arms stay paired, generate goes on, files say what failed."""

import dataclasses
import json
import re

import numpy as np
import PIL.Image
import pytest

from configs import base
from tests import tiny
from tests.jobs.conftest import IMAGES, stand_in
from vlm_jax.errors import AnswersError, ConfigError, PromptError, UserError
from vlm_jax.evals.suites.chair import Chair
from vlm_jax.evals.truth import ObjectTruth
from vlm_jax.jobs import evaluate, generate
from vlm_jax.study.prompts import read_requests
from vlm_jax.study.request import Request


@dataclasses.dataclass(frozen=True)
class Failed:
    index: int
    reason: str


@pytest.fixture
def torn(fake, monkeypatch):
    """Image 3 cannot be read by edited models, image 4 never."""
    lost = type(fake).answer

    def answer(model, images, prompts, **settings):
        for one in lost(model, images, prompts, **settings):
            number = images[one.index][0]
            bad = number == 4 or (number == 3 and model.change())
            yield Failed(one.index, f"Sample {one.index}, image 0 is corrupt.") if bad else one

    monkeypatch.setattr(type(fake), "answer", answer)


def test_an_item_that_fails_in_one_arm_is_left_out_of_all(job, config, torn):
    config.max_failures = 2
    workdir = job(evaluate.run)
    top = json.loads((workdir / "results.json").read_text())
    reason = "image 0 is corrupt."
    assert top["comparison"]["failures"] == {
        "broken": {"4": reason, "3": reason},
        "pope": {"5": reason, "4": reason},
    }
    for arm in ("unedited", "edited", "R3"):
        assert top["all"]["broken"][arm]["n"] == IMAGES - 2
        assert "2 items could not be read" in " ".join(top["all"]["broken"][arm]["notes"])
        assert top["all"]["normal"][arm]["n"] == IMAGES
    rows = [json.loads(line) for line in (workdir / "answers.jsonl").read_text().splitlines()]
    assert rows[4] == {"id": 4, "error": reason}
    assert rows[3]["caption"]
    assert f"| broken | 4 | {reason} |" in (workdir / "report.md").read_text()


def test_too_many_failures_stop_an_evaluation(job, config, torn):
    with pytest.raises(UserError, match=r"2 of 40 items failed and config.max_failures allows 1"):
        job(evaluate.run)


def test_a_malformed_row_of_questions_is_left_out_up_to_the_limit(
    job, config, fake, tmp_path, monkeypatch
):
    questions = tmp_path / "questions.jsonl"
    rows = [json.dumps({"image": number}) for number in range(IMAGES)]
    questions.write_text("\n".join([*rows[:3], '{"image": 3', *rows[4:]]))
    images = {number: number for number in range(IMAGES)}
    truth = ObjectTruth(dict.fromkeys(images, frozenset({"dog"})), ("dog", "car", "cat"))
    asks = lambda: Chair(images, truth, questions=questions)
    stand_in(monkeypatch, asks=asks)
    config.benchmarks = {"captions": {"kind": "asks"}}
    workdir = job(evaluate.run)
    top = json.loads((workdir / "results.json").read_text())
    assert top["n"] == IMAGES - 1
    ((place, reason),) = top["comparison"]["failures"]["captions"].items()
    assert place == "questions.jsonl line 4"
    assert f"| captions | {place} | {reason} |" in (workdir / "report.md").read_text()
    config.max_failures = 0
    fake.calls.clear()
    with pytest.raises(UserError, match=r"1 of 40 items failed .* questions.jsonl line 4: not"):
        job(evaluate.run, "other")
    assert not fake.calls


@pytest.fixture
def ask(tiny_llava, tmp_path, capsys):
    """Runs generate on requests, two of which cannot be read; returns its folder and output."""
    rng = np.random.default_rng(0)
    rows = []
    for n in range(5):
        PIL.Image.fromarray(rng.integers(0, 255, (56, 56, 3), np.uint8)).save(tmp_path / f"{n}.png")
        rows.append(json.dumps({"id": f"r{n}", "images": [f"{n}.png"], "prompt": f"What is {n}?"}))
    (tmp_path / "2.png").write_bytes(b"no image")
    rows.insert(1, '{"prompt"')
    requests = tmp_path / "requests.jsonl"
    requests.write_text("\n".join(rows))
    config = base.get_config()
    config.requests, config.max_new_tokens, config.batch_size = str(requests), 4, 2
    config.compile_cache = "off"

    def run(name: str = "work", source=tiny_llava, **changes):
        config.update(changes)
        generate.run(Request(config=config, source=source, workdir=tmp_path / name))
        return tmp_path / name / "answers.jsonl", capsys.readouterr()

    return run


def test_generate_records_what_it_cannot_read_and_goes_on_after_a_kill(ask):
    path, said = ask(max_failures=2)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["r0", "r1", "r2", "r3", "r4", "line 2"]
    assert "corrupt or not an image" in rows[2]["error"]
    assert "not valid JSON" in rows[5]["error"]
    assert {"id", "prompt", "image", "text"} == rows[0].keys()
    assert rows[0]["image"] == "0.png"
    assert "[r2] failed: image 0" in said.err
    assert "(2 of 6 failed)" in said.out
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b'"r1"') + 20])  # killed in the middle of a line
    path, said = ask()
    assert path.read_bytes() == whole
    assert "[r0]" not in said.out
    assert "[r4]" in said.out
    with pytest.raises(AnswersError, match="another run: max_new_tokens was 4 and is 5"):
        ask(max_new_tokens=5)


def test_what_an_answer_took_is_logged_on_request(ask, caplog):
    caplog.set_level("INFO", logger="vlm_jax.jobs.generate")
    ask(max_failures=2)
    first, *_, last = caplog.messages
    read, pictures, written = map(int, re.findall(r" (\d+)", first))
    assert first.startswith("[r0] ")
    assert 0 < pictures == 4 * 4 < read  # patches of 14 pixels
    assert 0 < written <= 4
    assert re.fullmatch(r"peak of memory: this process [\d,]+ MiB", last)


def test_a_picture_that_was_replaced_is_not_the_one_that_was_asked_about(ask, tmp_path):
    path, _ = ask(max_failures=2)
    PIL.Image.new("RGB", (56, 56)).save(tmp_path / "1.png")
    with pytest.raises(AnswersError, match="what is asked"):
        ask(max_failures=2)
    assert path.exists()


@pytest.mark.parametrize("damage", [None, "", "{", "[" * 100_000, "\xff"])
def test_answers_of_nobody_are_kept_and_made_again(ask, damage):
    path, _ = ask(max_failures=2)
    whole = path.read_bytes()
    path.with_name("answers.jsonl.damaged").write_text("of before")
    key = path.with_suffix(".run.json")
    key.unlink() if damage is None else key.write_bytes(damage.encode("latin-1"))
    path, said = ask(max_failures=2)
    assert "answers.run.json is missing or damaged" in said.err
    assert path.read_bytes() == whole
    assert path.with_name("answers.jsonl.damaged").read_text() == "of before"
    assert path.with_name("answers.jsonl.damaged.2").read_bytes() == whole


def test_nothing_answered_is_an_error(ask, tmp_path):
    for n in range(5):
        (tmp_path / f"{n}.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="none of 6 items was answered"):
        ask(max_failures=6)


def test_generate_steers_and_edits_as_asked(ask, tiny_llava):
    plain, _ = ask("plain", max_failures=2)
    edit = {"k": 1, "strength": 1.0, "band": (0.0, 1.0)}
    method = [edit, {"method": "air", "heads": "all", "text_threshold": 0.0}]
    treated, _ = ask("treated", max_failures=2, method=method)
    record = json.loads(treated.with_suffix(".run.json").read_text())
    assert [one["method"] for one in record["treatments"]] == ["qk", "air"]
    assert record["treatments"][0]["settings"]["k"] == 1
    assert plain.read_bytes() != treated.read_bytes()
    with pytest.raises(ConfigError, match=r"no method 'airr' \(did you mean 'air'"):
        ask("other", method="airr")


def test_too_many_new_tokens_are_cut_with_a_word(ask, caplog, tmp_path):
    short = tiny.llava(tmp_path / "short", text={"max_position_embeddings": 128})
    _, said = ask(max_failures=2, max_new_tokens=10_000, source=short)
    assert "max_new_tokens=10000 is cut to 82" in caplog.text
    assert "[r0]" in said.out


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"prompt": "a", "imges": []}', "has no setting 'imges' (did you mean 'images'?)"),
        ('{"prompt": "a", "image": "x", "images": []}', "both 'image' and 'images'"),
        ('{"prompt": "a", "images": "x.png"}', "a list of paths"),
        ('{"prompt": 3}', "needs a text 'prompt', not 3"),
        ('{"images": []}', "needs a text 'prompt', not None"),
        ('{"prompt": "a", "id": [1]}', "as 'id', not [1]"),
        (r'{"prompt": "\ud800"}', "half of a surrogate"),
        ("[" * 100_000, "nested too deeply"),
        ("3", "Expected"),
    ],
)
def test_what_is_wrong_with_a_request_is_said(tmp_path, row, message):
    path = tmp_path / "requests.jsonl"
    path.write_text('\ufeff{"prompt": "a\u2028b", "image": "x.png"}\r\n' + row)
    (example,), malformed = read_requests(str(path), "", [])
    assert example.images == (tmp_path / "x.png",)
    assert example.prompt == "a\u2028b"
    assert message in malformed["line 2"]


def test_a_request_may_hold_several_turns(tmp_path):
    path = tmp_path / "requests.jsonl"
    path.write_text('{"prompt": ["a", "b", "c"]}\n{"prompt": ["a", 5]}\n{"prompt": []}')
    (example,), malformed = read_requests(str(path), "", [])
    assert example.prompt == ["a", "b", "c"]
    assert sorted(malformed) == ["line 2", "line 3"]
    assert "needs texts as turns" in malformed["line 2"]


def test_generate_stops_at_too_many_failures(ask):
    with pytest.raises(UserError, match=r"2 of 6 items failed and config.max_failures allows 1"):
        ask()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"id": 1, "prompt": "a"}\n{"id": "1", "prompt": "b"}', "line 2: second request 1"),
        ("\n", "holds no request"),
    ],
)
def test_a_request_file_without_distinct_requests_is_refused(tmp_path, content, message):
    path = tmp_path / "requests.jsonl"
    path.write_text(content)
    with pytest.raises(PromptError, match=message):
        read_requests(str(path), "", [])
