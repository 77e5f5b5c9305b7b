"""Edits of folders that were killed go on, and leave what an undisturbed one leaves."""

import errno
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

import convert
from convert import safetensors_io
from tests import tiny
from tests.children import ENVIRONMENT
from vlm_jax.checkpoint import CERTIFICATE, ModelFolder, open_folder, orbax_store
from vlm_jax.edits.head_gains import fold_gains
from vlm_jax.edits.qk import QKEdit
from vlm_jax.edits.qk.folder import FolderEdit, edit_folder, restrength_folder, revert_folder
from vlm_jax.errors import CheckpointError

SPEC = QKEdit(band=(1, 2), k=2, strength=0.7)
KEPT = r"What was done is kept in .*\.edited\.partial: the same command goes on from there"
GROUP = 60_000


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A Hugging Face folder of three files, and the same converted, in several groups."""
    root = tmp_path_factory.mktemp("sources")
    hf = tiny.qwen2_5_vl(root / "huggingface", dtype="bfloat16", shards=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(orbax_store, "GROUP_BYTES", GROUP)
        convert.import_hf(hf, root / "converted", progress=False)
    return {"huggingface": hf, "converted": root / "converted"}


@pytest.fixture(params=["huggingface", "converted"])
def source(request, folders, monkeypatch) -> pathlib.Path:
    monkeypatch.setattr(orbax_store, "GROUP_BYTES", GROUP)
    return folders[request.param]


@pytest.fixture(scope="module")
def wholes():
    return {}


@pytest.fixture
def whole(source, wholes, tmp_path_factory, monkeypatch) -> tuple[dict[str, bytes], int]:
    """What an undisturbed edit of the source leaves, and how many files or groups it writes."""
    if source not in wholes:
        target = tmp_path_factory.mktemp("whole") / "edited"
        with monkeypatch.context() as patch:
            full = Stops(patch)
            edit_folder(open_folder(source), target, SPEC)
        wholes[source] = everything(target), len(full.whole)
    return wholes[source]


class Stops:
    """Fails within the write of a file or group of weights, and keeps those that are whole."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int | None = None, error=None):
        self.at, self.error, self.whole = at, error or OSError(errno.ENOSPC, "No space left"), []
        for module, name in (
            (safetensors_io, "write"),
            (shutil, "copyfile"),
            (orbax_store, "_save"),
        ):
            patch.setattr(module, name, self.counted(getattr(module, name)))

    def counted(self, function):
        def wrapped(*args, **named):
            weights = [
                str(a) for a in args if re.search(r"\.partial[^/]*/(params/|.*safetensors)", str(a))
            ]
            if not weights:
                return function(*args, **named)
            if len(self.whole) == self.at:
                path = pathlib.Path(weights[0])
                if "params" in path.parts:
                    path.mkdir()
                    path /= "half"
                path.write_bytes(b"half of it")
                raise self.error
            self.whole.append(weights[0])
            return function(*args, **named)

        return wrapped


def everything(folder: pathlib.Path) -> dict[str, bytes]:
    """Each parameter, and each file beside the parameters."""
    opened = open_folder(folder)
    return {path: array.tobytes() for path, array in opened.stream()} | {
        p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()
    }


def count_edits(monkeypatch) -> list[int]:
    make, made = FolderEdit._make, []
    monkeypatch.setattr(
        FolderEdit, "_make", lambda self, layer: (made.append(layer), make(self, layer))
    )
    return made


@pytest.mark.parametrize("error", [None, KeyboardInterrupt()])
def test_an_edit_goes_on_and_certifies_what_it_wrote(source, whole, tmp_path, monkeypatch, error):
    expected_bytes, writes = whole
    target = tmp_path / "edited"
    assert writes >= 3
    for at in range(3):  # one more each time but the first
        with monkeypatch.context() as patch:
            stops = Stops(patch, at=min(at, 1), error=error)
            expected = KeyboardInterrupt if error else CheckpointError
            with pytest.raises(expected, match=None if error else KEPT):
                edit_folder(open_folder(source), target, SPEC)
            assert len(stops.whole) == min(at, 1)
        assert not target.exists()
    with monkeypatch.context() as patch:
        last, made = Stops(patch), count_edits(patch)
        certificate = edit_folder(open_folder(source), target, SPEC)
    assert len(last.whole) == writes - 2
    assert sorted(made) == [1, 2]
    assert everything(target) == expected_bytes
    assert open_folder(target).certificate.fields["summary"] == certificate["summary"]
    assert [p.name for p in tmp_path.iterdir()] == ["edited"]
    assert not [p for p in target.iterdir() if p.name.startswith(".")]


KILLED = """
import os, pathlib, signal, sys
from convert import safetensors_io
from vlm_jax.checkpoint import open_folder, orbax_store
from vlm_jax.edits.qk.folder import FolderEdit, edit_folder
from vlm_jax.edits.qk import QKEdit

source, target, at = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])
orbax_store.GROUP_BYTES = {group}
written = []

def dies(function):
    def wrapped(*args):
        written.append(args)
        if len(written) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args)
    return wrapped

safetensors_io._Summed.write = dies(safetensors_io._Summed.write)
orbax_store.append_index = dies(orbax_store.append_index)
edit_folder(open_folder(source), target, QKEdit(band=(1, 2), k=2, strength=0.7))
"""


def test_an_edit_that_was_killed_goes_on(source, whole, tmp_path):
    target, program = tmp_path / "edited", KILLED.format(group=GROUP)
    at = 20 if source.name == "huggingface" else 3
    command = [sys.executable, "-c", program, str(source), str(target), str(at)]
    died = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
    assert died.returncode == -9, died.stderr
    left = tmp_path / ".edited.partial"
    assert [p for p in left.rglob("*") if p.is_file()]
    with pytest.raises(CheckpointError):
        open_folder(left).load()
    edit_folder(open_folder(source), target, SPEC)
    assert everything(target) == whole[0]
    assert not left.exists()


def begun(source: pathlib.Path, target: pathlib.Path, monkeypatch) -> None:
    """Leaves an edit half-written."""
    with monkeypatch.context() as patch:
        Stops(patch, at=2)
        with pytest.raises(CheckpointError, match=KEPT):
            edit_folder(open_folder(source), target, SPEC)


def test_a_folder_begun_by_another_edit_is_refused_and_stays(source, tmp_path, monkeypatch):
    own = pathlib.Path(shutil.copytree(source, tmp_path / "source"))
    os.utime(own / "config.json", ns=(0, 0))
    target = tmp_path / "edited"
    begun(own, target, monkeypatch)
    kept = sorted(tmp_path.rglob("*"))
    message = r"edited was begun from another source, with other settings .* is half-written in .*"
    with pytest.raises(CheckpointError, match=message + r"\.edited\.partial: run that to its end"):
        edit_folder(open_folder(own), target, QKEdit(band=(1, 2), k=1, strength=0.7))
    with pytest.raises(CheckpointError, match=message):
        fold_gains(open_folder(own), target, [[1.0, 2.0, 1.0, 1.0]] * 3)
    with pytest.raises(CheckpointError, match=message):
        edit_folder(open_folder(source), target, SPEC)
    assert sorted(tmp_path.rglob("*")) == kept
    edit_folder(open_folder(own), target, SPEC)
    assert (target / CERTIFICATE).exists()


def test_what_was_written_otherwise_is_not_certified(source, tmp_path, monkeypatch):
    target = tmp_path / "edited"
    begun(source, target, monkeypatch)
    made = FolderEdit._take
    monkeypatch.setattr(FolderEdit, "_take", lambda self, *of: 1.01 * made(self, *of))
    message = (
        r"tensor '.*' of .*, which an interrupted run wrote, is not what is made now; what was"
    )
    with pytest.raises(CheckpointError, match=message):
        edit_folder(open_folder(source), target, SPEC)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_other_copies_go_on_too(source, tmp_path, monkeypatch):
    edit_folder(open_folder(source), tmp_path / "edit", SPEC)
    copies = {
        "restrength": lambda target: restrength_folder(open_folder(tmp_path / "edit"), target, 0.3),
        "revert": lambda target: revert_folder(open_folder(tmp_path / "edit"), target),
        "fold": lambda target: fold_gains(open_folder(source), target, [[1.0, 2.0, 1.0, 1.0]] * 3),
        "plain": lambda target: open_folder(source).copy(target, {}),
    }
    for name, copy in copies.items():
        copy(tmp_path / name)
        with monkeypatch.context() as patch:
            Stops(patch, at=2)
            with pytest.raises(CheckpointError, match=KEPT):
                copy(tmp_path / "edited")
        copy(tmp_path / "edited")
        assert everything(tmp_path / "edited") == everything(tmp_path / name), name
        shutil.rmtree(tmp_path / "edited")


def test_replacements_that_nothing_names_begin_anew(source, tmp_path, monkeypatch):
    folder: ModelFolder = open_folder(source)
    path = "decoder/layers/1/wq_dnh"
    with monkeypatch.context() as patch:
        Stops(patch, at=2)
        with pytest.raises(CheckpointError, match=r"No space left.*\.$"):
            folder.copy(tmp_path / "edited", {path: 2 * folder.read(path)})
    assert not list(tmp_path.iterdir())
