"""What lies where a folder is to be made: only what an earlier run began is touched."""

import os
import pathlib
import resource
import shutil

import pytest

from vlm_jax.checkpoint.atomic import new_folder, resumable_folder
from vlm_jax.errors import CheckpointError
from vlm_jax.files import MARK

SOURCE = pathlib.Path("/nowhere/source")


def begun(target: pathlib.Path, identity: str = "x") -> pathlib.Path:
    """What a run leaves that the machine failed."""

    def fail():
        with resumable_folder(target, SOURCE, identity) as folder:
            (folder / "part").write_text("half")
            raise OSError("the machine")

    with pytest.raises(CheckpointError, match="the same command goes on"):
        fail()
    return target.with_name(f".{target.name}.partial")


def make(target: pathlib.Path, identity: str = "x") -> list[str]:
    with resumable_folder(target, SOURCE, identity) as folder:
        found = sorted(path.name for path in folder.iterdir() if path.name != MARK)
        (folder / "whole").write_text("whole")
    return found


def snapshot(folder: pathlib.Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def test_what_a_run_began_is_gone_on_with(tmp_path):
    begun(tmp_path / "target")
    assert make(tmp_path / "target") == ["part"]
    assert sorted(p.name for p in (tmp_path / "target").iterdir()) == ["part", "whole"]


def test_an_empty_folder_of_a_run_that_was_killed_at_once_is_used(tmp_path):
    (tmp_path / ".target.partial").mkdir()
    assert make(tmp_path / "target") == []


@pytest.mark.parametrize("kind", ["files", "folder", "a mark of another program", "empty mark"])
def test_a_folder_of_somebody_is_left_as_it_is(tmp_path, kind):
    folder = tmp_path / ".target.partial"
    folder.mkdir()
    (folder / "photo.jpg").write_text("mine")
    if kind == "folder":
        (folder / MARK).mkdir()
    elif kind != "files":
        (folder / MARK).write_text("" if kind == "empty mark" else "made from wood")
    before = snapshot(tmp_path)
    for identity in ("x", "y"):
        with pytest.raises(CheckpointError, match=r"move (that|it) away, or name another target"):
            make(tmp_path / "target", identity)
    assert snapshot(tmp_path) == before


def test_links_are_not_followed(tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "photo.jpg").write_text("mine")
    (tmp_path / ".target.partial").symlink_to(theirs)
    with pytest.raises(CheckpointError, match="is not a folder that this program made"):
        make(tmp_path / "target")
    assert snapshot(theirs) == {"photo.jpg": b"mine"}
    (tmp_path / ".target.partial").unlink()
    shutil.copytree(begun(tmp_path / "other"), tmp_path / "theirs2")
    (tmp_path / ".target.partial").symlink_to(tmp_path / "theirs2")
    with pytest.raises(CheckpointError, match="is not a folder that this program made"):
        make(tmp_path / "target")


@pytest.mark.parametrize("name", ["config.json", "params", "deep/er"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_links_and_pipes_within_it_are_refused(tmp_path, name, kind):
    folder = begun(tmp_path / "target")
    (tmp_path / "theirs").write_text("mine")
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    os.mkfifo(path) if kind == "pipe" else path.symlink_to(tmp_path / "theirs")
    with pytest.raises(CheckpointError, match=f"holds {name}, which this program did not make"):
        make(tmp_path / "target")
    assert (tmp_path / "theirs").read_text() == "mine"
    assert path.lstat()


def test_a_file_or_a_pipe_in_its_place_is_refused(tmp_path):
    place = tmp_path / ".target.partial"
    place.write_text("mine")
    with pytest.raises(CheckpointError, match="is not a folder that this program made"):
        make(tmp_path / "target")
    assert place.read_text() == "mine"
    place.unlink()
    os.mkfifo(place)
    with pytest.raises(CheckpointError, match="is not a folder that this program made"):
        make(tmp_path / "target")


def test_a_link_as_the_target_is_refused(tmp_path):
    (tmp_path / "theirs").mkdir()
    for place in ("theirs", "none"):
        (tmp_path / "target").symlink_to(tmp_path / place)
        for kind in (new_folder, lambda target: resumable_folder(target, SOURCE, "x")):
            with pytest.raises(CheckpointError, match="exists already"), kind(tmp_path / "target"):
                pass
        (tmp_path / "target").unlink()
    assert not list((tmp_path / "theirs").iterdir())


@pytest.mark.parametrize("name", ["\udcff", "a\ud800", "a\0b", "x" * 300])
def test_names_that_cannot_be_are_one_error(tmp_path, name):
    target = f"{tmp_path}/{name}"
    for kind in (new_folder, lambda target: resumable_folder(target, SOURCE, "x")):
        with pytest.raises(CheckpointError), kind(target):
            pass
    assert not list(tmp_path.iterdir())


def test_a_disk_that_takes_no_byte_is_one_error_of_the_target(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with (
            pytest.raises(CheckpointError, match=f"cannot write {tmp_path / 'target'}: File too"),
            resumable_folder(tmp_path / "target", tmp_path / "source", "a"),
        ):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
