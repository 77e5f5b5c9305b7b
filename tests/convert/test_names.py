"""Exports under other names than the source's: the same tensors, as others call them."""

import json

import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file

import convert
from configs import base
from convert import run
from tests import tiny
from vlm_jax.errors import CheckpointError, ConfigError
from vlm_jax.study.request import Request

MAKERS = {"llava": tiny.llava, "qwen2_5_vl": tiny.qwen2_5_vl}


def tensors(folder):
    """All tensors of a folder as bytes, each from the file that the index names."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    files = {file: load_file(folder / file) for file in set(index.values())}
    assert {name: file for file, held in files.items() for name in held} == index
    return {name: files[file][name].tobytes() for name, file in index.items()}


@pytest.mark.parametrize("family", MAKERS)
def test_exports_have_the_names_of_the_hub_or_of_transformers(family, tmp_path):
    make = MAKERS[family]
    source = make(tmp_path / "memory", naming="memory", shards=2)
    convert.import_hf(source, tmp_path / "ours", progress=False)
    for names in ("hub", "saved"):
        config = base.get_config()
        config.export.names = names
        run.export(Request(config=config, source=tmp_path / "ours", target=tmp_path / names))
        wanted = tensors(make(tmp_path / f"wanted-{names}", naming=names, shards=2))
        assert tensors(tmp_path / names) == wanted
        assert convert.open_hf(tmp_path / names).config == convert.open_hf(source).config
    run.export(
        Request(config=base.get_config(), source=tmp_path / "ours", target=tmp_path / "same")
    )
    assert tensors(tmp_path / "same") == tensors(source)


def test_what_cannot_be_named_otherwise_is_refused(tmp_path, tiny_llava):
    with pytest.raises(CheckpointError, match="make a converted folder of it first"):
        convert.export_hf(tiny_llava, tmp_path / "copy", names="hub")
    config = base.get_config()
    config.export = ConfigDict({"names": "vllm"})
    with pytest.raises(ConfigError, match=r"config\.export\.names .*hub"):
        run.export(Request(config=config, source=tiny_llava, target=tmp_path / "copy"))
    assert not (tmp_path / "copy").exists()
