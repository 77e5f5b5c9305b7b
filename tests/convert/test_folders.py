"""What both kinds of model folder offer: reading, loading to a dtype and sharding, copying."""

from unittest import mock

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tensorstore
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file

import convert
from convert import safetensors_io, table
from tests import tiny
from vlm_jax import checkpoint
from vlm_jax.checkpoint import orbax_store
from vlm_jax.errors import CheckpointError
from vlm_jax.parallel import param_shardings

QUERY = "decoder/layers/1/wq_dnh"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    return tiny.qwen2_5_vl(tmp_path_factory.mktemp("folders") / "hf", shards=4, dtype="bfloat16")


@pytest.fixture(scope="module", params=["huggingface", "converted"])
def folder(request, sharded):
    if request.param == "converted":
        target = sharded.parent / "ours"
        convert.import_hf(sharded, target, progress=False)
        return checkpoint.open_folder(target)
    return convert.open_hf(sharded)


def test_reads_in_our_layout(folder, sharded):
    tensors = {}
    for path in sharded.glob("*.safetensors"):
        tensors |= load_file(path)
    disk = tensors["model.layers.1.self_attn.q_proj.weight"]  # [N * H, D]
    read = folder.read(QUERY)
    assert folder.tensors[QUERY].shape == read.shape == (64, 4, 16)
    assert read.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(read, disk.reshape(4, 16, 64).transpose(2, 0, 1))
    fused = folder.read("vision/layers/2/wqkv_d3nh")
    key = tensors["visual.blocks.2.attn.qkv.weight"][32:64]  # rows: query, key, value
    np.testing.assert_array_equal(fused[:, 1], key.reshape(2, 16, 32).transpose(2, 0, 1))
    patch = folder.read("vision/patch_de")
    np.testing.assert_array_equal(patch, tensors["visual.patch_embed.proj.weight"].reshape(32, -1))


def test_streams_in_the_order_asked(folder):
    paths = [QUERY, "decoder/embed_vd", "vision/patch_de", QUERY]
    assert [path for path, _ in folder.stream(paths)] == paths


def test_streams_the_same_in_small_groups(folder, monkeypatch):
    whole = dict(folder.stream())
    monkeypatch.setattr(orbax_store, "GROUP_BYTES", 20_000)
    for path, array in folder.stream():
        assert array.tobytes() == whole[path].tobytes(), path


@pytest.mark.parametrize("dtype", [None, jnp.float32])
def test_loads(folder, dtype):
    params = folder.load(dtype)
    assert params.keys() == folder.tensors.keys()
    for path, array in params.items():
        assert array.dtype == (dtype or ml_dtypes.bfloat16)
        np.testing.assert_array_equal(np.asarray(array), folder.read(path).astype(array.dtype))


def test_parts_of_a_file_are_those_of_the_whole(sharded, monkeypatch):
    monkeypatch.setattr(table, "GAP_BYTES", 0)
    monkeypatch.setattr(safetensors_io, "STRIP_BYTES", 1000)  # strips end within runs
    folder, rng = convert.open_hf(sharded), np.random.default_rng(0)
    for path, info in folder.tensors.items():
        bounds = [sorted(rng.choice(size + 1, 2, replace=False)) for size in info.shape]
        part = tuple(slice(int(start), int(stop)) for start, stop in bounds)
        part = folder.names[folder._names_of[path][0]].readable(part, info.dtype.itemsize)
        assert folder._ours(path, part).tobytes() == folder.read(path)[part].tobytes(), path


def test_unknown_path(folder):
    with pytest.raises(CheckpointError, match=r"has no parameters decoder/layers/9/wq_dnh"):
        folder.read("decoder/layers/9/wq_dnh")


def test_copy_replaces_only_what_is_asked(folder, tmp_path):
    new = np.random.default_rng(0).standard_normal((64, 4, 16)).astype(np.float32)
    folder.copy(tmp_path / "copy", {QUERY: lambda: new}, {"edit.json": b"{}"})
    copied = checkpoint.open_folder(tmp_path / "copy")
    assert (tmp_path / "copy" / "edit.json").read_bytes() == b"{}"
    assert type(copied) is type(folder)
    assert copied.tensors == folder.tensors
    before = dict(folder.stream())
    for path, array in copied.stream():
        expected = new.astype(ml_dtypes.bfloat16) if path == QUERY else before[path]
        assert array.tobytes() == expected.tobytes(), path
    for name, companion in folder.companions().items():
        assert (tmp_path / "copy" / name).read_bytes() == companion.read_bytes()


def test_hf_copy_changes_only_the_bytes_of_the_tensor(sharded, tmp_path):
    folder = convert.open_hf(sharded)
    folder.copy(tmp_path / "copy", {QUERY: lambda: 2 * folder.read(QUERY)})
    name = "model.layers.1.self_attn.q_proj.weight"
    changed = []
    assert {p.name for p in sharded.iterdir()} == {p.name for p in (tmp_path / "copy").iterdir()}
    for path in sharded.iterdir():
        before, after = path.read_bytes(), (tmp_path / "copy" / path.name).read_bytes()
        if before != after:
            changed.append(path)
            header = safetensors_io.read_header(path)
            entry = header.entries[name]
            start, stop = header.data_start + entry.start, header.data_start + entry.stop
            assert before[:start] == after[:start]
            assert before[stop:] == after[stop:]
            assert len(before) == len(after)
    assert len(changed) == 1


def test_an_edited_converted_folder_exports_in_the_source_layout(sharded, tmp_path):
    convert.import_hf(sharded, tmp_path / "ours", progress=False)
    ours = checkpoint.open_folder(tmp_path / "ours")
    ours.copy(tmp_path / "edited", {QUERY: lambda: 2 * ours.read(QUERY)})
    convert.export_hf(tmp_path / "edited", tmp_path / "theirs", progress=False)
    folder = convert.open_hf(sharded)
    folder.copy(tmp_path / "direct", {QUERY: lambda: 2 * folder.read(QUERY)})
    assert checkpoint.open_folder(tmp_path / "edited").manifest["replaced"] == [QUERY]
    for path in (tmp_path / "direct").iterdir():
        assert (tmp_path / "theirs" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(
    ("replace", "message"),
    [
        ({"decoder/layers/1/wq": None}, r"has no parameters decoder/layers/1/wq\."),
        ({QUERY: np.zeros((64, 64))}, r"replacement of '.*wq_dnh' is \[64, 64\].*\[64, 4, 16\]"),
        ({QUERY: np.full((64, 4, 16), np.nan)}, "wq_dnh' of its replacement holds NaN"),
        ({QUERY: np.full((64, 4, 16), 1e39)}, "wq_dnh' of its replacement holds NaN"),
    ],
)
def test_bad_replacements(folder, replace, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        folder.copy(tmp_path / "copy", replace)
    assert not list(tmp_path.iterdir())


def test_a_copy_cannot_hide_behind_a_reserved_name(folder, tmp_path):
    for name in ("vlm_jax.json", "params", "../x", "/x"):
        with pytest.raises(CheckpointError, match=r"is no name for a companion"):
            folder.copy(tmp_path / "copy", {}, {name: b""})
    assert not list(tmp_path.iterdir())


def test_save_wants_the_config_of_the_parameters(folder, tmp_path):
    params = folder.load()
    other = convert.open_hf(tiny.llava(tmp_path / "llava")).config
    with pytest.raises(CheckpointError, match=r"config.json describes another model"):
        checkpoint.save(tmp_path / "x", params, other, folder)
    with pytest.raises(CheckpointError, match=r"no config.json is among"):
        checkpoint.save(tmp_path / "x", params, folder.config, {})
    checkpoint.save(tmp_path / "x", params, folder.config, folder, {"note": "kept"})
    saved = checkpoint.open_folder(tmp_path / "x")
    assert saved.manifest["note"] == "kept"
    assert saved.tensors == folder.tensors


def test_export_refuses_parameters_of_another_model(folder, tmp_path):
    params = {"decoder/stray_d": jnp.ones(3), **folder.load()}
    del params["projector/b2_d"]
    checkpoint.save(tmp_path / "x", params, folder.config, folder)
    with pytest.raises(CheckpointError, match=r"stray_d is \(3,\), needs none; projector/b2_d is"):
        convert.export_hf(tmp_path / "x", tmp_path / "y", progress=False)


def mesh(*shape):
    return jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def same(params, folder):
    for path, array in params.items():
        np.testing.assert_array_equal(np.asarray(array), folder.read(path).astype(array.dtype))


def bytes_read():
    name = "/tensorstore/kvstore/file/bytes_read"
    return sum(
        value["value"]
        for metric in tensorstore.experimental_collect_matching_metrics(name)
        for value in metric["values"]
    )


# As at full size: a parameter has several chunks, and a head is one.
@mock.patch.object(orbax_store, "_CHUNK_BYTES", 4000)
@mock.patch.object(orbax_store, "_HEAD_BYTES", 1)
def load_sharded(source, work):
    """Loads both kinds of folder onto meshes of eight devices, and saves from there."""
    convert.import_hf(source, work / "ours", progress=False)
    for folder in (convert.open_hf(source), checkpoint.open_folder(work / "ours")):
        specs = {path: P(*(None,) * len(i.shape)) for path, i in folder.tensors.items()}
        specs |= {p: P(None, "model") for p in specs if p.endswith("/wq_dnh")}
        specs["decoder/embed_vd"] = P("model", "data")
        shardings = {path: NamedSharding(mesh(2, 4), spec) for path, spec in specs.items()}
        params = folder.load(np.float32, shardings)
        same(params, folder)
        assert all(params[path].sharding == shardings[path] for path in params)
        query = params["decoder/layers/0/wq_dnh"]
        assert {shard.data.shape for shard in query.addressable_shards} == {(64, 1, 16)}

    total = sum(info.nbytes for info in folder.tensors.values())
    for shape in ((1, 8), (2, 4), (8, 1)):
        shardings = param_shardings(folder.tensors, mesh(*shape))
        before = bytes_read()
        params = checkpoint.open_folder(work / "ours").load(None, shardings)
        ratio = (bytes_read() - before) / total
        # A chunk that two devices share is read once or twice, as their reads happen to meet: up to
        # 2.07 in all here. Were the whole read for each part, it would be 4 to 8 times.
        assert ratio < 2.2, f"{shape}: the devices read {ratio} times what they hold together"
        same(params, folder)
        written = work / f"from_{shape[0]}"
        checkpoint.save(written, params, folder.config, folder)
        other = checkpoint.open_folder(written)
        same(other.load(None, param_shardings(other.tensors, mesh(2, 4))), folder)
        same(other.load(), folder)


@pytest.mark.slow
def test_loads_straight_to_shardings_of_any_mesh(eight, sharded, tmp_path):
    eight(load_sharded, sharded, tmp_path, timeout=200)
    assert jax.device_count() == 1  # eight devices are over there alone
