"""Conversions that were killed, or that the machine failed, go on where they stopped."""

import errno
import os
import pathlib
import resource
import shutil
import subprocess
import sys

import pytest

import convert
from convert import safetensors_io
from tests import tiny
from tests.children import ENVIRONMENT
from tests.convert.test_round_trip import assert_same_folder
from vlm_jax import checkpoint
from vlm_jax.checkpoint import atomic, orbax_store
from vlm_jax.errors import CheckpointError

KEPT = r"What was done is kept in .*\.target\.partial: the same command goes on from there"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    return tiny.qwen2_5_vl(tmp_path_factory.mktemp("resume") / "hf", shards=3)


@pytest.fixture(scope="module")
def whole(sharded):
    """The same conversion, undisturbed."""
    convert.import_hf(sharded, sharded.parent / "ours", progress=False)
    return sharded.parent / "ours"


@pytest.fixture
def source(sharded, tmp_path):
    return pathlib.Path(shutil.copytree(sharded, tmp_path / "source"))


@pytest.fixture
def small_groups(monkeypatch):
    monkeypatch.setattr(orbax_store, "GROUP_BYTES", 40_000)


def assert_same_parameters(first, second):
    arrays = [dict(checkpoint.open_folder(folder).stream()) for folder in (first, second)]
    assert arrays[0].keys() == arrays[1].keys()
    for path, array in arrays[0].items():
        assert array.dtype == arrays[1][path].dtype
        assert array.tobytes() == arrays[1][path].tobytes(), path


def count_saves(monkeypatch, fail_at=None, error=errno.ENOSPC):
    """Records the groups that are written; one of them finds the disk full."""
    save, groups = orbax_store._save, []

    def counted(folder, group):
        if len(groups) == fail_at:
            raise OSError(error, os.strerror(error), str(folder))
        groups.append(list(group))
        save(folder, group)

    monkeypatch.setattr(orbax_store, "_save", counted)
    return groups


KILLED = """
import os, pathlib, random, signal, sys, time
import convert
from convert import safetensors_io
from vlm_jax.checkpoint import converted, orbax_store

source, target = map(pathlib.Path, sys.argv[1:])
orbax_store.GROUP_BYTES = 40_000
save, append, strips = orbax_store._save, orbax_store.append_index, safetensors_io.read_strips

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def at(count, function, before=lambda *_: None, after=lambda *_: None):
    calls = []
    def wrapped(*args):
        calls.append(0)
        if len(calls) == count:
            before(*args)
        result = function(*args)
        if len(calls) == count:
            after(*args)
        return result
    return wrapped

def half_a_line(folder, name, tensors):
    with (folder / orbax_store.INDEX).open("a") as file:
        file.write('{"group": "000')
    die()

def before_first_group(): orbax_store._save = at(1, save, before=lambda *_: die())
def between_save_and_index(): orbax_store.append_index = at(2, append, before=lambda *_: die())
def within_the_index(): orbax_store.append_index = at(3, append, before=half_a_line)
def while_reading(): safetensors_io.read_strips = at(30, strips, before=lambda *_: die())
def before_the_manifest():
    converted.write_files = lambda *_: die()
def sometime():
    def slow(*args):
        time.sleep(0.2)
        save(*args)
    orbax_store._save = slow

moments = [before_first_group, between_save_and_index, within_the_index, while_reading,
           sometime, sometime, before_the_manifest]
rng = random.Random(int(time.time()))
for moment in moments:
    child = os.fork()
    if not child:
        moment()
        convert.import_hf(source, target, progress=False)
        os._exit(3)
    if moment is sometime:
        time.sleep(rng.uniform(0.1, 0.8))
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    index = target.with_name(".target.partial") / "params" / orbax_store.INDEX
    groups = len(index.read_text().splitlines()) if index.exists() else 0
    print(moment.__name__, killed, target.exists(), groups, flush=True)
"""


def test_killed_at_any_moment(sharded, whole, tmp_path, small_groups, monkeypatch):
    target = tmp_path / "target"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(sharded), str(target)],
        env=ENVIRONMENT | {"PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 7, done.stderr
    for moment, killed, complete, _ in lines:
        if moment != "sometime":
            assert killed == "True", done.stdout + done.stderr
            assert complete == "False"
    groups = [int(count) for *_, count in lines]
    assert groups == sorted(groups), "a run lost what an earlier one had written"
    assert groups[3] > groups[1] >= 1
    partial = tmp_path / ".target.partial"
    with pytest.raises(CheckpointError):
        checkpoint.open_folder(partial)
    assert any(partial.rglob("*.ocdbt"))
    written = count_saves(monkeypatch)
    convert.import_hf(sharded, target, progress=False)
    assert not written, "everything was there: only the manifest was missing"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert_same_parameters(target, whole)
    convert.export_hf(target, tmp_path / "theirs", progress=False)
    assert_same_folder(tmp_path / "theirs", sharded)


def test_a_full_disk_keeps_what_was_done(source, whole, small_groups, monkeypatch, capsys):
    target = source.parent / "target"
    with monkeypatch.context() as patch:
        before = count_saves(patch, fail_at=4)
        message = f"cannot write .*target: No space left on device .*{KEPT}"
        with pytest.raises(CheckpointError, match=message):
            convert.import_hf(source, target, progress=False)
    assert not target.exists()
    after = count_saves(monkeypatch)
    convert.import_hf(source, target)
    assert "importing (" in capsys.readouterr().err
    assert len(before) == 4
    assert not {p for group in before for p in group} & {p for group in after for p in group}
    assert_same_parameters(target, whole)


def test_another_source_starts_over(source, whole, small_groups, monkeypatch):
    target = source.parent / "target"
    with monkeypatch.context() as patch:
        count_saves(patch, fail_at=4)
        with pytest.raises(CheckpointError):
            convert.import_hf(source, target, progress=False)
    # The same header and length: only its time tells that the file was fetched again.
    shard = sorted(source.glob("*.safetensors"))[1]
    os.utime(shard, ns=(0, 0))
    groups = count_saves(monkeypatch)
    convert.import_hf(source, target, progress=False)
    assert sum(map(len, groups)) == len(checkpoint.open_folder(whole).tensors)
    assert_same_parameters(target, whole)


@pytest.mark.parametrize("size", [60_000, 10_000])
def test_a_write_that_the_system_refuses_is_one_line(source, small_groups, whole, capfd, size):
    target = source.parent / "target"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        with pytest.raises(CheckpointError, match=f"target: File too large .*{KEPT}"):
            convert.import_hf(source, target, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert capfd.readouterr().err == ""
    convert.import_hf(source, target, progress=False)
    assert_same_parameters(target, whole)


def test_a_source_that_cannot_be_read_to_its_end(source, whole, small_groups, monkeypatch):
    target = source.parent / "target"
    strips, seen = safetensors_io.read_strips, []

    def broken(path, *args):
        seen.append(path)
        if len(seen) == 40:
            path = pathlib.Path("/proc/self/mem")  # its first bytes give an input/output error
        return strips(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors_io, "read_strips", broken)
        message = f"mem cannot be read: Input/output error.*{KEPT}"
        with pytest.raises(CheckpointError, match=message):
            convert.import_hf(source, target, progress=False)
    convert.import_hf(source, target, progress=False)
    assert_same_parameters(target, whole)


def test_export_goes_on_file_by_file(sharded, whole, tmp_path, monkeypatch):
    write, done = safetensors_io.write, []

    def fails(path, *args):
        if len(done) == 2:
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        done.append(path.name)
        return write(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors_io, "write", fails)
        with pytest.raises(CheckpointError, match=f"No space left on device .*{KEPT}"):
            convert.export_hf(whole, tmp_path / "target", progress=False)
    done.clear()
    monkeypatch.setattr(safetensors_io, "write", lambda *a: done.append(0) or write(*a))
    convert.export_hf(whole, tmp_path / "target", progress=False)
    assert len(done) == 1
    assert_same_folder(tmp_path / "target", sharded)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_one_process_at_a_time(sharded, tmp_path):
    target = tmp_path / "target"
    with atomic.resumable_folder(target, sharded, "x") as partial:
        (partial / "file").write_bytes(b"")
        with pytest.raises(CheckpointError, match=r"another process is making .*target"):
            convert.import_hf(sharded, target, progress=False)
    assert [path.name for path in target.iterdir()] == ["file"]


def test_an_error_in_the_input_leaves_nothing(sharded, tmp_path):
    def fail():
        with atomic.resumable_folder(tmp_path / "target", sharded, "x") as partial:
            (partial / "file").write_bytes(b"")
            raise CheckpointError("wrong")

    with pytest.raises(CheckpointError, match=r"^wrong$"):
        fail()
    assert not list(tmp_path.iterdir())
