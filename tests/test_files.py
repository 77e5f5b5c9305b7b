"""Files that are seen whole or not at all, and what killed writers leave of them."""

import os
import pathlib
import subprocess
import sys

import pytest

from vlm_jax.errors import UserError
from vlm_jax.files import MARK, open_to_append, partial_name, read_own, replace_file


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


def test_what_another_process_clears_meanwhile_is_no_error(tmp_path, monkeypatch):
    path = tmp_path / "answers.jsonl"
    listed = tmp_path / f"{partial_name(path)}-0"  # and gone when it is looked at
    monkeypatch.setattr(pathlib.Path, "iterdir", lambda folder: iter([listed]))
    replace_file(path, "whole")
    assert path.read_text() == "whole"


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "answers.jsonl"
    replace_file(path, "one")
    monkeypatch.setattr(os, "replace", lambda *paths: os.rename(*paths[:1], tmp_path / "no" / "x"))
    with pytest.raises(UserError, match=r"cannot write .*No such file or directory; all is kept"):
        replace_file(path, "two", kept="all is kept")
    assert path.read_text() == "one"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.fixture(params=["link", "dangling link", "pipe", "folder"])
def taken(request, tmp_path):
    """A name to write to that is taken, beside a file that a link would lead to."""
    path = tmp_path / "out" / "answers.jsonl"
    path.parent.mkdir()
    (tmp_path / "theirs").write_text("theirs")
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / ("theirs" if request.param == "link" else "none"))
    return path


def test_a_name_that_is_no_file_is_neither_written_through_nor_waited_for(taken, tmp_path):
    kind = taken.lstat()
    for use in (lambda: replace_file(taken, "x"), lambda: open_to_append(taken)):
        with pytest.raises(UserError, match=r"answers\.jsonl: it is .*; remove it or choose"):
            use()
    with pytest.raises(UserError, match="it is "):
        read_own(taken)
    assert taken.lstat() == kind
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert not (tmp_path / "none").exists()


def test_own_files_are_read_and_gone_on_with(tmp_path):
    path = tmp_path / "log"
    os.close(open_to_append(path))
    path.write_bytes(b"one")
    os.close(open_to_append(path))
    assert read_own(path) == b"one"
    with pytest.raises(FileNotFoundError):
        read_own(tmp_path / "none")


def test_only_marked_folders_are_cleared_away(tmp_path):
    path = tmp_path / "target"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = partial_name(path).replace(f"-{os.getpid()}", f"-{ended.pid}")
    others, marked, link = (tmp_path / f"{left}-{n}" for n in range(3))
    for folder in (others, marked):
        folder.mkdir()
        (folder / "photo.jpg").write_text("mine")
    (marked / MARK).touch()
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "photo.jpg").write_text("mine")
    link.symlink_to(tmp_path / "album")
    replace_file(path, "x")
    assert (others / "photo.jpg").exists()
    assert (link / "photo.jpg").exists()
    assert not marked.exists()


def test_text_that_is_none_is_written_all_the_same(tmp_path):
    replace_file(tmp_path / "report.md", "a\udcffb\u2028")
    assert (tmp_path / "report.md").read_bytes() == b"a\\udcffb\xe2\x80\xa8"
