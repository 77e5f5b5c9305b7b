"""Every broken folder gets one error that names the fault, and leaves nothing behind.

What a failure of the machine leaves is `test_resume`'s.
"""

import errno
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import convert
from tests import tiny
from vlm_jax import checkpoint
from vlm_jax.checkpoint import orbax_store
from vlm_jax.errors import CheckpointError, ConfigError, UserError

Q0 = "model.layers.0.self_attn.q_proj.weight"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def source(tiny_qwen, tmp_path):
    return pathlib.Path(shutil.copytree(tiny_qwen, tmp_path / "source"))


@pytest.fixture(scope="module")
def two_shards(tmp_path_factory):
    return tiny.qwen2_5_vl(tmp_path_factory.mktemp("shards") / "hf", shards=2)


@pytest.fixture
def shards(two_shards, tmp_path):
    return pathlib.Path(shutil.copytree(two_shards, tmp_path / "source"))


@pytest.fixture(scope="module")
def ours(tiny_llava, tmp_path_factory):
    target = tmp_path_factory.mktemp("ours") / "llava"
    convert.import_hf(tiny_llava, target, progress=False)
    return target


def refuses(source, message, kind=CheckpointError):
    """Import fails with the message and leaves the folder's parent as it was."""
    before = sorted(source.parent.iterdir())
    with pytest.raises(kind, match=message) as error:
        convert.import_hf(source, source.parent / "target", progress=False)
    assert isinstance(error.value, UserError)
    assert sorted(source.parent.iterdir()) == before
    return str(error.value)


def change_config(source, **fields):
    path = source / "config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def change_tensors(source, change, file="model.safetensors"):
    tensors = load_file(source / file)
    change(tensors)
    save_file(tensors, source / file, metadata={"format": "pt"})


def test_unknown_architecture(source):
    change_config(source, model_type="blip")
    refuses(source, "model_type 'blip' is not supported", ConfigError)


@pytest.mark.parametrize("field", ["hidden_size", "num_attention_heads", "num_hidden_layers"])
def test_config_without_a_field(source, field):
    change_config(source, **{field: None})
    refuses(source, f"required field `{field}`", ConfigError)


def test_config_that_is_no_json(source):
    (source / "config.json").write_text("{")
    refuses(source, "config.json is not valid JSON", ConfigError)


def test_no_config(source):
    (source / "config.json").unlink()
    refuses(source, "config.json does not exist", ConfigError)


def test_no_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"is no Hugging Face folder"):
        convert.import_hf(tmp_path / "nowhere", tmp_path / "target")
    with pytest.raises(CheckpointError, match=r"is not a folder"):
        checkpoint.open_folder(tmp_path / "nowhere")


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "notes.txt").write_text("x")
    refuses(tmp_path / "source", "is no Hugging Face folder")
    with pytest.raises(CheckpointError, match=r"is no model folder: it has neither vlm_jax.json"):
        checkpoint.open_folder(tmp_path / "source")


def test_a_converted_folder_is_not_imported_again(ours):
    refuses(ours, "is no Hugging Face folder: it is converted already")


def test_no_weights(source):
    (source / "model.safetensors").unlink()
    refuses(source, "has neither model.safetensors nor model.safetensors.index.json")


def test_pickled_weights(source):
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    refuses(source, "holds PyTorch pickles only.*Save the model as safetensors")


def test_truncated(source):
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refuses(source, "model.safetensors is truncated: .* bytes, but its header describes")


def test_missing_shard(shards):
    (shards / SECOND).unlink()
    refuses(shards, f"{SECOND} does not exist")


def test_shard_without_a_tensor_of_the_index(shards):
    name = next(iter(load_file(shards / SECOND)))
    change_tensors(shards, lambda t: t.pop(name), SECOND)
    refuses(shards, f"{SECOND} lacks tensor '{name}', which {INDEX} places there")


def test_tensor_in_two_shards(shards):
    extra = next(iter(load_file(shards / FIRST).items()))
    change_tensors(shards, lambda t: t.update([extra]), SECOND)
    refuses(shards, f"tensor '{extra[0]}' is in both {FIRST} and {SECOND}")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_broken_index(shards, content):
    (shards / INDEX).write_text(content)
    refuses(shards, f"{INDEX}(: Expected| is not valid JSON|: Object missing)")


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({}, "names no tensors"),
        ({"a": "../model.safetensors"}, "a plain file name is needed"),
        ({"a": "/etc/x.safetensors"}, "a plain file name is needed"),
        ({"a": ".x.safetensors"}, "a plain file name is needed"),
        ({"a": "x\0.safetensors"}, "a plain file name is needed"),
        ({"a": "config.json"}, "must end in .safetensors"),
        ({"a": 3}, "Expected `str`"),
    ],
)
def test_index_of_other_files(shards, weight_map, message):
    (shards / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    refuses(shards, message)


def test_all_wrong_tensors_are_listed_at_once(source):
    def change(tensors):
        tensors["model.layers.0.self_attn.rope.weight"] = np.zeros(1, np.float32)
        tensors["model.layers.7.input_layernorm.weight"] = np.zeros(64, np.float32)
        tensors["model.language_model.norm.weight"] = tensors["model.norm.weight"]
        del tensors["lm_head.weight"], tensors["visual.blocks.1.norm1.weight"]
        tensors[Q0] = tensors[Q0][:32]
        tensors["model.layers.1.mlp.up_proj.weight"] = np.zeros((112, 64), np.int8)

    change_tensors(source, change)
    message = refuses(source, "does not hold the qwen2_5_vl model")
    assert "3 unknown: " in message
    assert "model.layers.0.self_attn.rope.weight" in message
    assert "model.layers.7.input_layernorm.weight" in message
    assert "a second spelling of" in message
    assert "2 missing: " in message
    assert "lm_head.weight" in message
    assert "visual.blocks.1.norm1.weight" in message
    assert f"1 misshapen: {Q0} has [32, 64], needs [64, 64]" in message
    assert "float32, float16 or bfloat16: model.layers.1.mlp.up_proj.weight is int8" in message


def test_config_of_another_size(source):
    change_config(source, intermediate_size=96)
    message = refuses(source, "9 misshapen")
    assert "model.layers.2.mlp.down_proj.weight has [64, 112], needs [64, 96]" in message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_not_finite(tmp_path, value, dtype):
    source = tiny.qwen2_5_vl(tmp_path / "source", dtype=dtype)

    def change(tensors):
        tensors[Q0][3, 5] = value

    change_tensors(source, change)
    message = f"tensor '{Q0}' of .*model.safetensors holds NaN or infinity"
    refuses(source, message)
    with pytest.raises(CheckpointError, match=message):
        convert.open_hf(source).load()


def test_a_conversion_that_overflows_is_refused(ours, source):
    def change(tensors):
        tensors[Q0][3, 5] = 1e6

    change_tensors(source, change)
    with pytest.raises(CheckpointError, match=r"wq_dnh' of .* as float16 holds NaN or infinity"):
        convert.open_hf(source).load(np.float16)


def test_a_converted_folder_that_is_not_finite(ours, tmp_path, monkeypatch):
    folder = checkpoint.open_folder(ours)
    params = folder.load()
    broken = params["decoder/final_norm_d"].at[2].set(np.nan)
    with pytest.raises(CheckpointError, match=r"final_norm_d' of the parameters .* holds NaN"):
        checkpoint.save(
            tmp_path / "x", params | {"decoder/final_norm_d": broken}, folder.config, folder
        )
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(orbax_store, "check_finite", lambda *_: None)
    checkpoint.save(
        tmp_path / "x", params | {"decoder/final_norm_d": broken}, folder.config, folder
    )
    with pytest.raises(CheckpointError, match=r"'decoder/final_norm_d' of .*x holds NaN or inf"):
        checkpoint.open_folder(tmp_path / "x").load()


def test_existing_target(source):
    for make in (lambda p: p.mkdir(), lambda p: p.write_text("x")):
        target = source.parent / "target"
        make(target)
        refuses(source, "target exists already; remove it or name another")
        target.rmdir() if target.is_dir() else target.unlink()


def test_target_is_the_source(source, ours):
    with pytest.raises(CheckpointError, match=r"is the source itself"):
        convert.import_hf(source, source / ".." / "source", progress=False)
    with pytest.raises(CheckpointError, match=r"is the source itself"):
        convert.export_hf(ours, ours, progress=False)
    with pytest.raises(CheckpointError, match=r"is the source itself"):
        convert.open_hf(source).copy(source, {})


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_unwritable_target(source, monkeypatch, code):
    mkdir = pathlib.Path.mkdir

    def refuse(path, *args, **kwargs):
        if path.name.endswith(".partial"):
            raise OSError(code, os.strerror(code), str(path))
        mkdir(path, *args, **kwargs)

    monkeypatch.setattr(pathlib.Path, "mkdir", refuse)
    refuses(source, f"cannot write .*target: {os.strerror(code)}")


def test_a_file_where_a_folder_should_be(source):
    (source.parent / "file").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"cannot write .*target: (File exists|Not a dir)"):
        convert.import_hf(source, source.parent / "file" / "target", progress=False)


def test_manifest_damage(ours, tmp_path):
    for content, message in (
        ("{", "vlm_jax.json is damaged"),
        ("[]", "vlm_jax.json is damaged"),
        ('{"format_version": 99, "tensors": {}}', "has format version 99"),
    ):
        folder = shutil.copytree(ours, tmp_path / "x")
        (folder / "vlm_jax.json").write_text(content)
        with pytest.raises(CheckpointError, match=message):
            checkpoint.open_folder(folder)
        shutil.rmtree(folder)


def test_parameters_lost_or_exchanged(ours, tmp_path):
    folder = shutil.copytree(ours, tmp_path / "x")
    manifest = json.loads((folder / "vlm_jax.json").read_text())
    manifest["tensors"]["decoder/final_norm_d"]["shape"] = [63]
    (folder / "vlm_jax.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"does not hold what .*: decoder/final_norm_d"):
        checkpoint.open_folder(folder).load()
    shutil.rmtree(folder / "params")
    with pytest.raises(CheckpointError, match=r"params is not a complete checkpoint"):
        checkpoint.open_folder(folder).load()
