"""Half-made and finished folders that lost or changed bytes: named, or that part is made again."""

import errno
import os
import pathlib
import shutil

import pytest

import convert
from convert import safetensors_io
from tests import tiny
from tests.convert.test_resume import assert_same_parameters, count_saves
from tests.convert.test_round_trip import assert_same_folder
from vlm_jax import checkpoint
from vlm_jax.checkpoint import orbax_store
from vlm_jax.errors import CheckpointError


def flip(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def cut(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: pathlib.Path) -> None:
    path.write_bytes(b"")


def zeros(path: pathlib.Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


DAMAGE = [flip, cut, empty, zeros, pathlib.Path.unlink]
MORE = [flip, cut, *(pytest.param(one, marks=pytest.mark.slow) for one in DAMAGE[2:])]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    return tiny.qwen2_5_vl(tmp_path_factory.mktemp("damage") / "hf", shards=3)


@pytest.fixture(scope="module")
def whole(sharded):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(orbax_store, "GROUP_BYTES", 300_000)
        convert.import_hf(sharded, sharded.parent / "ours", progress=False)
    return sharded.parent / "ours"


@pytest.fixture
def half(sharded, tmp_path, monkeypatch):
    """An import of which three groups are written."""
    monkeypatch.setattr(orbax_store, "GROUP_BYTES", 100_000)
    with monkeypatch.context() as patch:
        count_saves(patch, fail_at=3)
        with pytest.raises(CheckpointError, match="the same command goes on"):
            convert.import_hf(sharded, tmp_path / "target", progress=False)
    return tmp_path / ".target.partial" / "params"


@pytest.mark.parametrize("damage", MORE, ids=lambda damage: damage.__name__)
def test_a_group_that_was_damaged_is_made_again(half, sharded, whole, monkeypatch, damage):
    for path in sorted(p for p in (half / "00001").rglob("*") if p.is_file()):
        damage(path)
    groups = count_saves(monkeypatch)
    target = half.parents[1] / "target"
    convert.import_hf(sharded, target, progress=False)
    made = {path for group in groups for path in group}
    assert made
    assert len(made) < len(checkpoint.open_folder(whole).tensors), "the other groups are kept"
    assert_same_parameters(target, whole)


@pytest.mark.parametrize("damage", MORE, ids=lambda damage: damage.__name__)
def test_an_index_that_was_damaged_loses_no_more_than_its_groups(half, sharded, whole, damage):
    damage(half / orbax_store.INDEX)
    convert.import_hf(sharded, half.parents[1] / "target", progress=False)
    assert_same_parameters(half.parents[1] / "target", whole)


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_file_of_an_export_that_was_damaged_is_made_again(
    sharded, whole, tmp_path, monkeypatch, damage
):
    write, done = safetensors_io.write, []

    def fails(path, *args):
        if len(done) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        done.append(path.name)
        return write(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors_io, "write", fails)
        with pytest.raises(CheckpointError, match="the same command goes on"):
            convert.export_hf(whole, tmp_path / "target", progress=False)
    damage(sorted((tmp_path / ".target.partial").glob("*.safetensors"))[0])
    convert.export_hf(whole, tmp_path / "target", progress=False)
    assert_same_folder(tmp_path / "target", sharded)


def test_a_file_of_a_copy_that_was_damaged_is_copied_again(sharded, tmp_path, monkeypatch):
    copyfile, done = shutil.copyfile, []

    def fails(source, path):
        if len(done) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        done.append(path)
        return copyfile(source, path)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", fails)
        with pytest.raises(CheckpointError, match="the same command goes on"):
            convert.open_hf(sharded).copy(tmp_path / "target", {})
    flip(sorted((tmp_path / ".target.partial").glob("*.safetensors"))[0])
    convert.open_hf(sharded).copy(tmp_path / "target", {})
    assert_same_folder(tmp_path / "target", sharded)


@pytest.mark.parametrize("damage", MORE, ids=lambda damage: damage.__name__)
def test_a_finished_folder_that_was_damaged_is_one_error_or_the_same(whole, tmp_path, damage):
    names = [str(p.relative_to(whole)) for p in (whole / "params").rglob("*") if p.is_file()]
    found = 0
    for name in sorted(names)[:5]:
        folder = pathlib.Path(shutil.copytree(whole, tmp_path / "x"))
        damage(folder / name)
        try:
            assert_same_parameters(folder, whole)
        except CheckpointError as error:
            assert "\n" not in str(error)  # noqa: PT017
            found += 1
        shutil.rmtree(folder)
    assert found
