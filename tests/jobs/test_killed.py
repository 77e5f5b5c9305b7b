"""The evaluate job, killed at random moments and started again."""

import contextlib
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.children import ENVIRONMENT, ROOT

MODEL = ROOT / "vlm_jax/testbed/models/llava-0"
# Every start of Python and jax takes seconds on a quiet machine, and many more on a crowded one.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
CONFIG = """
from configs import base


def get_config():
    config = base.get_config()
    config.bootstrap_draws = 50
    config.max_new_tokens, config.batch_size = 24, 8
    config.edit.band, config.edit.k = (2, 3), 2
    scenes = {"set": "broken", "split": "dev", "n": 24}
    questions = {**scenes, "negatives": "adversarial", "pairs": 1}
    config.benchmarks.chair = {"kind": "testbed_chair", **scenes}
    config.benchmarks.pope = {"kind": "testbed_pope", **questions}
    config.arms = {
        "R1": {"control": "R1", "draws": 2},
        "air": {"method": "air", "heads": "identified"},
        "edited": {},
    }
    config.frontier.tokens, config.frontier.biases = ("and", "."), (1.0,)
    return config
"""


class Job:
    """The evaluate job in a process of its own, one compile cache for all starts."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        (folder / "small.py").write_text(CONFIG)

    def start(self, workdir: pathlib.Path) -> subprocess.Popen:
        flags = [
            "--job=evaluate",
            f"--config={self.folder / 'small.py'}",
            f"--config.compile_cache={self.folder / 'compiled'}",
            f"--source={MODEL}",
            f"--workdir={workdir}",
        ]
        with (self.folder / "said.txt").open("w") as said:
            command = [sys.executable, "launch.py", *flags]
            return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=said, stderr=said)

    def said(self) -> str:
        return (self.folder / "said.txt").read_text()

    def finish(self, workdir: pathlib.Path) -> None:
        assert self.start(workdir).wait(300) == 0, self.said()

    def kill(self, workdir: pathlib.Path, size: int) -> None:
        """Starts the job and kills it where its folder has reached a size."""
        child = self.start(workdir)
        while child.poll() is None and _size(workdir) < size:
            time.sleep(0.0005)
        assert child.poll() is None, self.said()
        os.kill(child.pid, signal.SIGKILL)
        child.wait()


def _size(folder: pathlib.Path) -> int:
    size = 0
    for path in list(folder.rglob("*.*")):
        with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
            size += path.stat().st_size if path.is_file() else 0
    return size


def _files(folder: pathlib.Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): _undated(p) for p in folder.rglob("*.*")
            if p.is_file()}  # fmt: skip


def _undated(path: pathlib.Path) -> bytes:
    """A file's bytes; of results without when and by which command they were made."""
    content = path.read_bytes()
    if path.name == "report.html":
        when = rb"\d{4}-\d\d-\d\d(T[\d:+]+)?|<dt>Command</dt><dd>[^<]*</dd>"
        return re.sub(when, b"", content)
    if path.name != "results.json":
        return content
    fields = json.loads(content)
    fields.pop("made", None)
    return json.dumps(fields).encode()


def test_an_evaluation_killed_at_random_moments_leaves_what_an_undisturbed_one_leaves(tmp_path):
    job, rng = Job(tmp_path), random.Random(0)
    whole, workdir = tmp_path / "whole", tmp_path / "work"
    job.finish(whole)
    expected = _files(whole)
    answers = sum(len(content) for name, content in expected.items() if "answers." in name)
    total = sum(map(len, expected.values()))
    # Twice while answers are made, once while results are written.
    moments = [*sorted(rng.randrange(answers) for _ in range(2)), rng.randrange(answers, total)]
    for moment in moments:
        job.kill(workdir, moment)
        assert not (workdir / "report.html").exists()
    job.finish(workdir)
    assert "24 answers in" not in job.said()  # the last start found all of them
    found = _files(workdir)
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []
