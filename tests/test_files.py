"""Files that are seen whole or not at all, and what killed writers leave of them."""

import os
import subprocess
import sys

import pytest

from vlm_jax.errors import UserError
from vlm_jax.files import partial_name, replace_file


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "new" / "answers.jsonl"
    replace_file(path, "one")
    replace_file(path, b"two")
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["answers.jsonl"]


def test_what_killed_writers_left_goes_and_what_others_write_stays(tmp_path):
    path = tmp_path / "answers.jsonl"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    own = partial_name(path)
    left = own.replace(f"-{os.getpid()}", f"-{ended.pid}")
    of_a_living = own.replace(f"-{os.getpid()}", "-1")
    stays = [f"{of_a_living}-0", ".answers.jsonl.partial-elsewhere-1-0", ".other.jsonl"]
    for name in (f"{left}-0", f"{left}-31", f"{own}-a", f"{own}-99999", *stays):
        (tmp_path / name).write_text("half")
    replace_file(path, "whole")
    found = sorted(p.name for p in tmp_path.iterdir())
    assert found == sorted([*stays, f"{own}-a", "answers.jsonl"])


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "answers.jsonl"
    replace_file(path, "one")
    monkeypatch.setattr(os, "replace", lambda *paths: os.rename(*paths[:1], tmp_path / "no" / "x"))
    with pytest.raises(UserError, match=r"cannot write .*No such file or directory; all is kept"):
        replace_file(path, "two", kept="all is kept")
    assert path.read_text() == "one"
    assert len(list(tmp_path.iterdir())) == 1
