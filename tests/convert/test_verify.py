"""Edited folders held against their originals: what changed, by how much, and what should not."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import convert
from convert import safetensors_io
from convert.shards import INDEX
from convert.verify import _in_groups, _scaled
from tests import tiny
from vlm_jax import checkpoint
from vlm_jax.cli.main import main
from vlm_jax.edit_record import CERTIFICATE, digest
from vlm_jax.edits.qk import QKEdit
from vlm_jax.edits.qk.folder import edit_folder
from vlm_jax.errors import CheckpointError

WITHOUT_JAX = """
import sys
sys.modules["jax"] = sys.modules["flax"] = None
import convert
print(convert.verify_hf(*sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return tiny.qwen2_5_vl(tmp_path_factory.mktemp("verify") / "original", shards=2)


@pytest.fixture(scope="module")
def edited(original):
    target = original.with_name("edited")
    spec = QKEdit(band=(1, 2), k=2, strength=0.7, heads=((1, 0), (1, 3), (2, 2)))
    edit_folder(checkpoint.open_folder(original), target, spec)
    return target


@pytest.fixture
def copied(edited, tmp_path):
    return shutil.copytree(edited, tmp_path / "copied")


def change(folder, name, by):
    """Changes a tensor of a folder in place."""
    for path in folder.glob("*.safetensors"):
        header = safetensors_io.read_header(path)
        if name in header.entries:
            arrays = {n: safetensors_io.read(path, header, n) for n in header.entries}
            arrays[name] = by(arrays[name].copy())
            path.unlink()
            safetensors_io.write(path, header, arrays.__getitem__)
            return
    raise KeyError(name)


def one_up(array):
    array.reshape(-1)[5] += 1
    return array


def test_the_heads_that_were_edited_changed_by_what_is_certified(original, edited):
    found = convert.verify_hf(original, edited)
    assert not found.faults
    assert [(h.layer, h.head) for h in found.heads] == [(1, 0), (1, 3), (2, 2)]
    assert found.equal == found.tensors - 2
    before, after = checkpoint.open_folder(original), checkpoint.open_folder(edited)
    for head in found.heads:
        path = f"decoder/layers/{head.layer}/wq_dnh"
        old, new = (folder.read(path)[:, head.head] for folder in (before, after))
        np.testing.assert_allclose(
            head.relative, np.linalg.norm(new - old) / np.linalg.norm(old), rtol=1e-5
        )
        assert head.certified == pytest.approx(head.relative, rel=1e-3)


def test_a_rounding_leaves_less_the_coarser_it_is(original, edited):
    left = convert.verify_hf(original, edited).left
    noises = [part.noise for part in left.values()]
    assert noises == sorted(noises)
    assert noises[0] < 0.05
    assert left["bfloat16"].share == pytest.approx(1, abs=1e-3)


def test_roundings_are_to_multiples_of_a_scale():
    w = np.array([[1.0, -0.26, 0.24, 0.0], [0, 0, 0, 0]])
    np.testing.assert_allclose(_scaled(w, 4), [[1, -0.25, 0.25, 0], [0, 0, 0, 0]])
    wide = np.random.default_rng(0).normal(size=(3, 256)) * np.repeat([1, 100], 128)
    error = np.abs(_in_groups(wide) - wide)
    step = np.abs(wide.reshape(3, 2, 128)).max(-1) / 7
    assert (error.reshape(3, 2, 128).max(-1) <= step / 2 + 1e-9).all()
    assert (error.reshape(3, 2, 128).max(-1) > step / 4).all()


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("model.layers.1.self_attn.q_proj.weight", f"is not the one that {CERTIFICATE} certifies"),
        ("model.layers.2.self_attn.k_proj.weight", f"was changed, and it is not in {CERTIFICATE}"),
        ("model.layers.0.self_attn.q_proj.bias", f"was changed, and it is not in {CERTIFICATE}"),
    ],
)
def test_a_tampered_folder_names_the_tensor(original, copied, name, fault):
    change(copied, name, one_up)
    found = convert.verify_hf(original, copied)
    assert found.faults == {name: fault}
    with pytest.raises(CheckpointError, match=f"tensor '{name}' {fault}"):
        found.check()


def test_tensors_that_are_not_in_both(original, copied):
    path = next(iter(copied.glob("*.safetensors")))
    header = safetensors_io.read_header(path)
    arrays = {n: safetensors_io.read(path, header, n) for n in header.entries}
    first, second, *_ = arrays
    arrays["extra"] = arrays.pop(first)
    arrays[second] = arrays[second][:-1].copy()
    made = safetensors_io.build_header([(n, a.dtype, a.shape) for n, a in arrays.items()], {})
    path.unlink()
    safetensors_io.write(path, made, arrays.__getitem__)
    index = copied / "model.safetensors.index.json"
    fields = json.loads(index.read_text())
    fields["weight_map"]["extra"] = fields["weight_map"].pop(first)
    index.write_text(json.dumps(fields))
    faults = convert.verify_hf(original, copied).faults
    assert faults[first] == "is missing"
    assert faults["extra"] == "is not in the original"
    assert faults[second].endswith("in the original")


def test_a_change_without_a_certificate_is_a_fault(original, copied):
    (copied / CERTIFICATE).unlink()
    faults = convert.verify_hf(original, copied).faults
    assert len(faults) == 2
    assert set(faults.values()) == {f"was changed, and there is no {CERTIFICATE}"}
    assert not convert.verify_hf(original, original).faults


def test_a_head_that_the_certificate_does_not_name(original, copied):
    """Whoever changes a head can write its hash, too; the head is then found by its weights."""
    name = "model.layers.1.self_attn.q_proj.weight"

    def other_head(array):
        array[array.shape[0] // 4 + 1] *= 2  # of four heads the second, which was not edited
        return array

    change(copied, name, other_head)
    path = copied / CERTIFICATE
    fields = json.loads(path.read_text())
    for file in copied.glob("*.safetensors"):
        header = safetensors_io.read_header(file)
        if name in header.entries:
            forged = digest(safetensors_io.read(file, header, name).T)
    fields["tensors"]["decoder/layers/1/wq_dnh"]["after"] = forged
    path.write_text(json.dumps(fields))
    found = convert.verify_hf(original, copied)
    assert found.faults == {name: f"changed in head 1, which {CERTIFICATE} does not name"}


def test_other_files_that_differ_are_told(original, edited, copied):
    assert not convert.verify_hf(original, edited).files
    (copied / "config.json").write_text((copied / "config.json").read_text() + " ")
    (copied / "adapter_config.json").write_text("{}")
    (copied / "preprocessor_config.json").unlink()
    found = convert.verify_hf(original, copied)
    assert found.files == {
        "adapter_config.json": "is not in the original",
        "config.json": "differs",
        "preprocessor_config.json": "is missing",
    }
    assert not found.faults
    assert "adapter_config.json" in str(found)


def two_places(folder):
    """A tensor also in the first shard, before the one that the index names."""
    index = json.loads((folder / INDEX).read_text())["weight_map"]
    first, last = (folder / file for file in sorted(set(index.values())))
    header, other = safetensors_io.read_header(first), safetensors_io.read_header(last)
    arrays = {n: safetensors_io.read(first, header, n) for n in header.entries}
    name = next(iter(other.entries))
    arrays[name] = safetensors_io.read(last, other, name) + 1
    made = safetensors_io.build_header([(n, a.dtype, a.shape) for n, a in arrays.items()], {})
    first.unlink()
    safetensors_io.write(first, made, arrays.__getitem__)


def another_place(folder):
    """The index places a tensor in the other shard."""
    fields = json.loads((folder / INDEX).read_text())
    files = sorted(set(fields["weight_map"].values()))
    name = next(iter(fields["weight_map"]))
    fields["weight_map"][name] = files[files[0] == fields["weight_map"][name]]
    (folder / INDEX).write_text(json.dumps(fields))


def two_sets(folder):
    """One file beside the shards, which some programs read and some do not."""
    shutil.copy(next(folder.glob("*.safetensors")), folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (two_places, "is in both"),
        (another_place, "lacks tensor"),
        (two_sets, "has both model.safetensors and"),
        (lambda folder: sorted(folder.glob("*.safetensors"))[0].unlink(), "does not exist"),
        (lambda folder: (folder / INDEX).unlink(), "neither model.safetensors nor"),
        (lambda folder: (folder / CERTIFICATE).write_text("{}"), "is damaged"),
    ],
)
def test_folders_that_are_read_in_more_than_one_way_are_refused(original, copied, damage, message):
    damage(copied)
    with pytest.raises(CheckpointError, match=message) as caught:
        convert.verify_hf(original, copied)
    assert "\n" not in str(caught.value)


def test_a_tensor_of_another_dtype(original, copied):
    path = next(iter(copied.glob("*.safetensors")))
    header = safetensors_io.read_header(path)
    arrays = {n: safetensors_io.read(path, header, n) for n in header.entries}
    name = next(iter(arrays))
    arrays[name] = arrays[name].astype(np.float16)
    made = safetensors_io.build_header([(n, a.dtype, a.shape) for n, a in arrays.items()], {})
    path.unlink()
    safetensors_io.write(path, made, arrays.__getitem__)
    assert convert.verify_hf(original, copied).faults[name].startswith("is float16 [")


def test_an_original_that_is_not_the_one(original, edited, tmp_path):
    other = shutil.copytree(original, tmp_path / "other")
    change(other, "model.layers.1.self_attn.q_proj.weight", one_up)
    faults = convert.verify_hf(other, edited).faults
    assert "decoder/layers/1/wq_dnh" in faults
    assert "model.layers.1.self_attn.q_proj.weight" in faults


def test_it_needs_no_jax(original, edited):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_JAX, str(original), str(edited)],
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr
    assert "tensors have the same bytes" in done.stdout


def test_the_command(original, edited, copied, capsys):
    main(["verify", str(original), str(edited)])
    shown = capsys.readouterr().out
    assert "changed as certified and nowhere else" in shown
    assert "int4" in shown
    main(["verify", str(original), str(original)])
    assert f"{original} is {original}, unchanged." in capsys.readouterr().out
    change(copied, "model.layers.2.self_attn.k_proj.weight", one_up)
    with pytest.raises(SystemExit, match="k_proj"):
        main(["verify", str(original), str(copied)])
    with pytest.raises(SystemExit, match="two folders"):
        main(["verify", str(original)])
