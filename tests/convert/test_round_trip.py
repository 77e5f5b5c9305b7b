"""HF -> ours -> HF gives the very files back, whatever their names, dtype and shards."""

import json
import pathlib
import shutil

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import convert
from convert import source_layout
from tests import tiny
from tests.tiny_weights import rename
from vlm_jax import checkpoint
from vlm_jax.errors import CheckpointError

MAKERS = {
    "internvl": tiny.internvl,
    "llava": tiny.llava,
    "llava_next": tiny.llava_next,
    "qwen2_5_vl": tiny.qwen2_5_vl,
    "qwen3_vl": tiny.qwen3_vl,
}
STYLES = [
    ("hub", "float32", 1),
    ("hub", "bfloat16", 3),
    ("saved", "float16", 1),
    ("saved", "float32", 2),
    ("memory", "bfloat16", 1),
    ("memory", "float16", 3),
]


def round_trip(source: pathlib.Path, work: pathlib.Path) -> pathlib.Path:
    convert.import_hf(source, work / "ours", progress=False)
    convert.export_hf(work / "ours", work / "theirs", progress=False)
    return work / "theirs"


def assert_same_folder(first: pathlib.Path, second: pathlib.Path) -> None:
    contents = [
        {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        for folder in (first, second)
    ]
    assert contents[0].keys() == contents[1].keys()
    for name, content in contents[0].items():
        assert content == contents[1][name], name


@pytest.mark.parametrize(("naming", "dtype", "shards"), STYLES)
@pytest.mark.parametrize("family", MAKERS)
def test_byte_equal(family, naming, dtype, shards, tmp_path):
    source = MAKERS[family](
        tmp_path / "source", naming=naming, dtype=dtype, shards=shards, nested=shards == 2
    )
    assert_same_folder(source, round_trip(source, tmp_path))


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llava", dict(text=dict(num_key_value_heads=4))),
        ("llava", dict(text=dict(attention_bias=True))),
        ("llava", dict(text=dict(model_type="qwen2", rope_theta=1e6))),
        ("llava", dict(multimodal_projector_bias=False)),
        ("llava", dict(vision_feature_layer=[-2, -1])),
        (
            "llava",
            dict(
                vision=dict(model_type="siglip_vision_model"), vision_feature_select_strategy="full"
            ),
        ),
        ("llava", dict(tie_word_embeddings=True)),
        ("qwen2_5_vl", dict(tied=True)),
        ("qwen2_5_vl", dict(tied=True, nested=True, naming="memory")),
    ],
)
def test_variants(family, options, tmp_path):
    source = MAKERS[family](tmp_path / "source", **options)
    assert_same_folder(source, round_trip(source, tmp_path))


def test_buffers_and_further_files_travel(tmp_path):
    source = tiny.llava(tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    tensors["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.rand(8)
    tensors["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt", "odd": "é"})
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "rag.jinja").write_text("{{ messages }}")
    (source / "README.md").write_text("about")
    result = round_trip(source, tmp_path)
    assert_same_folder(source, result)


def test_bookkeeping_and_stale_weights_do_not_travel(tmp_path):
    source = tiny.llava(tmp_path / "source")
    (source / ".cache").mkdir()
    (source / ".gitattributes").write_text("x")
    (source / "pytorch_model.bin").write_bytes(b"x")
    (source / "pytorch_model.bin.index.json").write_text("{}")
    result = round_trip(source, tmp_path)
    left_behind = {p.name for p in source.iterdir()} - {p.name for p in result.iterdir()}
    assert left_behind == {
        ".cache", ".gitattributes", "pytorch_model.bin", "pytorch_model.bin.index.json",
    }  # fmt: skip


def test_a_tied_head_on_disk_is_accepted_if_it_is_the_table(tmp_path):
    source = tiny.qwen2_5_vl(tmp_path / "source", tied=True)
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    assert_same_folder(source, round_trip(source, tmp_path))
    assert "decoder/head_vd" not in convert.open_hf(source).tensors

    replaced = tmp_path / "replaced"
    table = np.asarray(convert.open_hf(source).read("decoder/embed_vd"))
    convert.open_hf(source).copy(replaced, {"decoder/embed_vd": 2 * table})
    copied = load_file(replaced / "model.safetensors")
    assert torch.equal(copied["lm_head.weight"], copied["model.embed_tokens.weight"])

    tensors["lm_head.weight"] += 1
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"'lm_head.weight' differs .* to false"):
        convert.open_hf(source)


@pytest.mark.parametrize("shard_bytes", [source_layout.SHARD_BYTES, 200_000])
@pytest.mark.parametrize("family", MAKERS)
def test_a_model_without_a_source_exports_to_what_torch_reads(
    family, shard_bytes, tmp_path, monkeypatch
):
    monkeypatch.setattr(source_layout, "SHARD_BYTES", shard_bytes)
    source = MAKERS[family](tmp_path / "source", naming="memory")
    folder = convert.open_hf(source)
    files = folder.companions()
    checkpoint.save(tmp_path / "ours", folder.load(), folder.config, files)
    convert.export_hf(tmp_path / "ours", tmp_path / "theirs", progress=False)
    card = (tmp_path / "theirs" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "# ours" in card
    index = tmp_path / "theirs" / "model.safetensors.index.json"
    assert index.exists() == (shard_bytes == 200_000)
    if index.exists():
        shards = sorted(tmp_path.glob("theirs/model-*.safetensors"))
        assert len(shards) > 2
        assert set(json.loads(index.read_text())["weight_map"].values()) == {p.name for p in shards}
        for shard in shards:
            total = sum(t.numel() * t.element_size() for t in load_file(shard).values())
            assert total <= shard_bytes
    first, second = tiny.reference(source), tiny.reference(tmp_path / "theirs")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(first(input_ids=ids).logits, second(input_ids=ids).logits)
    states = first.state_dict(), second.state_dict()
    assert states[0].keys() == states[1].keys()
    for name in states[0]:
        assert torch.equal(states[0][name], states[1][name]), name
    hub = {rename(name, family, "hub") for name in states[0]}
    assert hub == set(convert.open_hf(tmp_path / "theirs").names)


def test_export_of_an_hf_folder_is_a_copy(tiny_qwen, tmp_path):
    convert.export_hf(tiny_qwen, tmp_path / "copy")
    assert_same_folder(tiny_qwen, tmp_path / "copy")


def test_symbolic_links_are_followed(tmp_path):
    """A hub cache holds links into a store of blobs."""
    blobs = tiny.llava(tmp_path / "blobs", shards=2)
    source = tmp_path / "source"
    source.mkdir()
    for path in blobs.iterdir():
        (source / path.name).symlink_to(path)
    result = round_trip(source, tmp_path)
    shutil.rmtree(source)
    assert_same_folder(blobs, result)
    assert not any(path.is_symlink() for path in result.iterdir())


def test_dtypes_survive(tmp_path):
    source = tiny.llava(tmp_path / "source", dtype="bfloat16")
    convert.import_hf(source, tmp_path / "ours", progress=False)
    folder = checkpoint.open_folder(tmp_path / "ours")
    assert {info.dtype for info in folder.tensors.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert folder.manifest["family"] == "llava"
    assert folder.manifest["source"]["files"] == ["model.safetensors"]
