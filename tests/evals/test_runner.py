"""Long runs survive: kills, bad items, full disks, other processes."""

import concurrent.futures
import errno
import itertools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.children import ENVIRONMENT, ROOT
from tests.evals.fakes import COUNT, FakeModel, Numbers
from vlm_jax.errors import AnswersError, UserError
from vlm_jax.evals import answer_log, runner
from vlm_jax.files import replace_file

IDENTITY = {"model": "fake"}


def run(path, model=None, benchmark=None, **settings):
    settings = {"identity": IDENTITY, **settings}
    return runner.run(model or FakeModel(), benchmark or Numbers(), path, **settings)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "work" / "answers.jsonl"


def test_a_run_killed_at_random_moments_leaves_what_an_undisturbed_one_leaves(tmp_path):
    whole = tmp_path / "whole.jsonl"
    expected = run(whole, FakeModel(fails={5, 31}), max_failures=3)
    path = tmp_path / "answers.jsonl"
    rng = random.Random(0)
    command = [sys.executable, "-m", "tests.evals.killed", str(path)]
    kills = 0
    while True:
        target = _size(path) + rng.randrange(1, whole.stat().st_size // 4)
        child = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        while child.poll() is None and _size(path) < target:
            time.sleep(0.0005)
        time.sleep(rng.random() * 0.01)
        if child.poll() is None:
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            kills += 1
        else:
            assert child.returncode == 0
            break
    assert kills >= 3
    assert path.read_bytes() == whole.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith(".")) == [
        "answers.jsonl", "answers.run.json", "whole.jsonl", "whole.run.json",
    ]  # fmt: skip
    again = run(path, FakeModel(fails={5, 31}), max_failures=3)
    assert again.table().totals() == expected.table().totals()


def _size(path):
    return path.stat().st_size if path.exists() else 0


def test_an_answer_is_in_the_file_before_the_next_is_asked_for_and_soon_on_disk(path, monkeypatch):
    synced, sync = threading.Event(), os.fsync
    monkeypatch.setattr(answer_log, "SYNC_SECONDS", 0.01)
    seen = []

    class Model(FakeModel):
        def answer(self, *given, **settings):
            for answer in super().answer(*given, **settings):
                yield answer
                seen.append(len(lines(path)))
                if len(seen) == 2:
                    monkeypatch.setattr(os, "fsync", lambda file: (sync(file), synced.set()))
                if len(seen) == 3:
                    assert synced.wait(5)

    run(path, Model())
    assert seen == list(range(1, COUNT + 1))


def test_a_log_closes_while_its_last_lines_go_to_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(answer_log, "SYNC_SECONDS", 0.001)
    path, syncing = tmp_path / "answers.jsonl", threading.Event()

    def write():
        with answer_log.AnswerLog(path, IDENTITY) as log:
            wanted, stopping = log._sync.wanted, log._sync._stop
            clear = wanted.clear

            def clear_late():
                syncing.set()
                stopping.wait(5)
                time.sleep(0.05)
                clear()

            wanted.clear = clear_late
            log.append(0, {})
            assert syncing.wait(5)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "closing a log never ended"
    assert lines(path) == [{"id": 0}]


def test_what_is_there_is_not_asked_again_and_keeps_its_random_stream(path):
    with pytest.raises(RuntimeError):
        run(path, FakeModel(breaks=40))
    model = FakeModel()
    found = run(path, model)
    assert model.asked == list(range(40, COUNT))
    assert model.streams == {n: n for n in range(40, COUNT)}
    assert found.table().totals() == {"right": COUNT, "asked": COUNT}
    assert len(found.table().ids) == COUNT // 2


def test_answers_of_another_model_are_refused(path):
    run(path)
    with pytest.raises(AnswersError, match="another run: "):
        run(path, identity={"model": "other"})


def test_a_second_run_on_the_same_file_is_refused_while_the_first_writes(path):
    class Model(FakeModel):
        def answer(self, *given, **settings):
            with pytest.raises(UserError, match="another run is writing"):
                run(path)
            yield from super().answer(*given, **settings)

    run(path, Model())
    assert len(lines(path)) == COUNT


def test_of_two_runs_that_begin_at_once_one_is_refused_and_none_loses_answers(path):
    first, second = (answer_log.AnswerLog(path, IDENTITY) for _ in range(2))
    assert first.find({"q1"}) == second.find({"q1"}) == {}
    with first:
        first.append("q1", {"text": "yes"})
        with pytest.raises(UserError, match="another run is writing"):
            second.__enter__()
        first.append("q2", {"text": "no"})
    assert [line["text"] for line in lines(path)] == ["yes", "no"]


def test_what_is_removed_while_a_run_goes_on_is_written_again(path):
    class Model(FakeModel):
        def answer(self, *given, **settings):
            for answer in super().answer(*given, **settings):
                if answer.index == 5:
                    path.with_suffix(".run.json").unlink()
                yield answer

    run(path, Model())
    model = FakeModel()
    run(path, model)
    assert model.asked == []


def test_items_that_cannot_be_read_are_recorded_counted_left_out_and_tried_again(path, capsys):
    found = run(path, FakeModel(fails={3, 8, 9}), max_failures=0.05)
    assert found.failures == {f"q{n}": f"image 0 (n{n}) is corrupt." for n in (3, 8, 9)}
    assert lines(path)[3] == {"id": "q3", "error": "image 0 (n3) is corrupt."}
    assert [line["id"] for line in lines(path)] == [f"q{n}" for n in range(COUNT)]
    assert found.table().totals() == {"right": 57, "asked": 57}
    assert len(found.table().ids) == 29  # both questions on one image are gone
    assert found.table(without={"q0"}).totals()["asked"] == 56
    assert ", 3 failed" in capsys.readouterr().err
    model = FakeModel(fails={3})
    again = run(path, model, max_failures=0.05)
    assert model.asked == [3, 8, 9]
    assert sorted(again.failures) == ["q3"]
    assert [line["id"] for line in lines(path)] == [f"q{n}" for n in range(COUNT)]


def test_too_many_failures_stop_the_run_and_keep_what_was_answered(path):
    fails = {3, 8, 9, 50}
    message = r"4 of 60 items failed and config.max_failures allows 3, the last q50: image 0 \(n50"
    with pytest.raises(UserError, match=message):
        run(path, FakeModel(fails=fails), max_failures=0.05)
    assert len(lines(path)) == 51
    with pytest.raises(UserError, match=r"1 of 60 items failed and config.max_failures allows 0"):
        run(path, FakeModel(fails=fails))
    model = FakeModel(fails=fails)
    run(path, model, max_failures=4)
    assert model.asked == [3, 8, 9, *range(50, COUNT)]


@pytest.mark.parametrize(
    ("allowed", "limit"), [(0, 0), (0.01, 1), (0.1, 6), (1.0, 1), (7, 7), (0.999, 59)]
)
def test_a_limit_is_a_number_or_a_share(allowed, limit):
    assert runner.failure_limit(allowed, 60) == limit


def test_a_limit_below_nothing_is_refused():
    with pytest.raises(UserError, match=r"config.max_failures=-1"):
        runner.failure_limit(-1, 60)


def test_a_full_disk_is_one_clear_error_and_keeps_the_answers_so_far(path, monkeypatch):
    write, room = os.write, [1000]

    def full(file: int, data: bytes) -> int:
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = write(file, data[: room[0]])
        room[0] -= done
        return done

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        message = r"cannot write .*answers.jsonl: No space left on device; the answers so far are"
        with pytest.raises(UserError, match=message):
            run(path)
    kept = len(lines(path))
    assert 10 < kept < COUNT
    assert path.read_text().endswith("\n")
    model = FakeModel()
    run(path, model)
    assert model.asked == list(range(kept, COUNT))


def test_a_disk_that_fails_to_sync_is_one_clear_error(path, monkeypatch):
    def fail(file):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    replace_file(path.with_suffix(".run.json"), "")  # written whole while the disk still works
    path.with_suffix(".run.json").unlink()
    monkeypatch.setattr(answer_log, "replace_file", lambda path, content: path.write_text(content))
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match="quota exceeded; the answers so far are kept"):
        run(path)
    assert len(lines(path)) == COUNT


def test_a_full_disk_at_the_final_rename_says_where_the_answers_are(path, monkeypatch):
    def full(source, target):
        if pathlib.Path(target).name == "answers.jsonl":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.rename(source, target)

    model = FakeModel(shuffled=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        message = "No space left on device; the answers are kept in .*answers.jsonl"
        with pytest.raises(UserError, match=message):
            run(path, model)
    assert len(lines(path)) == COUNT
    assert not [p for p in path.parent.iterdir() if p.name.startswith(".")]
    again = FakeModel()
    run(path, again)
    assert not again.asked
    assert [line["id"] for line in lines(path)] == [f"q{n}" for n in range(COUNT)]


class Together:
    """Processes as threads: `agree` for each of them."""

    def __init__(self, count: int):
        self.count, self.messages = count, {}
        self.barrier = threading.Barrier(count)

    def agree(self, index, work):
        self.messages[index] = json.loads(json.dumps(work()))
        self.barrier.wait(20)
        found = [self.messages[n] for n in range(self.count)]
        self.barrier.wait(20)
        return found

    def run(self, task):
        with concurrent.futures.ThreadPoolExecutor(self.count) as pool:
            shares = [
                runner.Share(n, self.count, lambda work, n=n: self.agree(n, work))
                for n in range(self.count)
            ]
            return list(pool.map(task, shares))


@pytest.mark.parametrize("shared_disk", [True, False])
def test_processes_share_a_run_and_leave_what_one_leaves(tmp_path, shared_disk):
    whole = tmp_path / "whole.jsonl"
    expected = run(whole, FakeModel(fails={31}), max_failures=1)
    place = lambda share: tmp_path / ("all" if shared_disk else f"p{share.index}") / "answers.jsonl"
    models = [FakeModel(fails={31}) for _ in range(3)]
    task = lambda share: run(place(share), models[share.index], share=share, max_failures=1)
    found = Together(3).run(task)
    assert place(runner.Share()).read_bytes() == whole.read_bytes()
    assert all(one == expected for one in found)
    asked = [sorted(model.asked) for model in models]
    assert sorted(itertools.chain(*asked)) == list(range(COUNT))
    assert {n // 2 % 3 for n in asked[1]} == {1}  # questions on one image stay together
    assert not [p for p in tmp_path.rglob("*-of-3*")]
    models = [FakeModel(fails={31}) for _ in range(3)]
    Together(3).run(task)
    assert sorted(itertools.chain(*(model.asked for model in models))) == [31]


def test_one_process_goes_on_with_what_three_have_left(path):

    def task(share):
        model = FakeModel(breaks=[n for n in range(COUNT) if n // 2 % 3 == share.index][-1])
        with pytest.raises(RuntimeError):
            run(path, model, share=runner.Share(share.index, 3, _alone))
        return len(model.asked) - 1

    done = Together(3).run(task)
    assert sum(done) == COUNT - 3
    assert len(list(path.parent.glob("answers.*-of-3.jsonl"))) == 3
    model = FakeModel()
    run(path, model)
    assert len(model.asked) == 3
    assert [line["id"] for line in lines(path)] == [f"q{n}" for n in range(COUNT)]
    assert not list(path.parent.glob("*-of-3*"))


def _alone(work):
    return [work()]
