"""Own reader and writer against the safetensors package, and damaged files refused by name."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from convert import safetensors_io as io
from vlm_jax.errors import CheckpointError

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(4).astype(ml_dtypes.bfloat16),
    "c": np.array(3, np.int64),
    "empty": np.zeros((0, 5), np.float16),
    "yes": np.array([True, False]),
}


def _write(path, fields, data=b"", size=None):
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + data)


def _field(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_reads_what_the_package_writes(tmp_path):
    save_file(ARRAYS, tmp_path / "x", metadata={"format": "pt"})
    header = io.read_header(tmp_path / "x")
    assert set(header.entries) == set(ARRAYS)
    for name, array in ARRAYS.items():
        read = io.read(tmp_path / "x", header, name)
        assert read.dtype == array.dtype
        np.testing.assert_array_equal(read, array)


def test_the_package_reads_what_it_writes(tmp_path):
    header = io.build_header([(n, a.dtype, a.shape) for n, a in ARRAYS.items()], {"format": "pt"})
    io.write(tmp_path / "x", header, ARRAYS.__getitem__)
    read = load_file(tmp_path / "x")
    assert set(read) == set(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(read[name], array)
    assert io.read_header(tmp_path / "x") == header


def test_copies_the_bytes_that_are_not_given(tmp_path):
    save_file(ARRAYS, tmp_path / "x")
    header = io.read_header(tmp_path / "x")
    changed = -ARRAYS["a"]
    io.write(tmp_path / "y", header, {"a": changed}.get, (tmp_path / "x", header))
    read = load_file(tmp_path / "y")
    for name, array in (ARRAYS | {"a": changed}).items():
        np.testing.assert_array_equal(read[name], array)


def test_refuses_an_array_that_does_not_fit(tmp_path):
    header = io.build_header([("a", np.dtype(np.float32), (2, 3))], {})
    with pytest.raises(CheckpointError, match=r"'a' is float64 \[2, 3\].*needs float32 \[2, 3\]"):
        io.write(tmp_path / "x", header, lambda name: np.zeros((2, 3)))


@pytest.mark.parametrize(
    ("fields", "data", "message"),
    [
        (b"{", b"", "header is not valid JSON"),
        (b"\xff\xfe", b"", "header is not UTF-8 text"),
        (b"[]", b"", "header: Expected `object`, got `array`"),
        (
            b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": 1}',
            bytes(4),
            "names 'a' twice",
        ),
        ({"a": {"dtype": "F32"}}, b"", "'a': Object missing required field `shape`"),
        ({"a": _field(dtype="F128")}, bytes(8), "dtype 'F128', which is not supported"),
        ({"a": _field(shape=(-2,))}, bytes(8), r"'a': Expected `int` >= 0 - at `\$.shape\[0\]`"),
        ({"a": _field(offsets=(8, 0))}, bytes(8), "-8 bytes"),
        ({"a": _field(shape=(3,))}, bytes(8), r"8 bytes, which F32 \[3\] does not fill"),
        (
            {"a": _field(), "b": _field(offsets=(4, 12))},
            bytes(12),
            "bytes 4 to 12 of tensor 'b' overlap",
        ),
        ({"a": _field(), "b": _field(offsets=(12, 20))}, bytes(20), "'b' leave a gap"),
        ({"a": _field()}, bytes(7), "is truncated: .* bytes, but its header describes"),
        ({"a": _field()}, bytes(9), "has bytes that no tensor owns"),
    ],
)
def test_damage_is_named(fields, data, message, tmp_path):
    path = tmp_path / "shard.safetensors"
    _write(path, fields, data)
    with pytest.raises(CheckpointError, match=message) as error:
        io.read_header(path)
    assert "shard.safetensors" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is truncated"),
        (b"abc", "is truncated"),
        (struct.pack("<Q", 100) + b"{}", "ends within its header"),
        (struct.pack("<Q", 1 << 60) + b"{}", "is not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    ],
)
def test_no_header(content, message, tmp_path):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        io.read_header(tmp_path / "x")


@pytest.mark.parametrize("strip_bytes", [1, 8, 4 << 20])
def test_reads_by_strips(strip_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(io, "STRIP_BYTES", strip_bytes)
    save_file(ARRAYS, tmp_path / "x")
    header = io.read_header(tmp_path / "x")
    for rows in (1, 2, 3, 6):
        seen = []
        io.read_strips(
            tmp_path / "x",
            header,
            "a",
            rows,
            lambda row, strip, seen=seen: seen.append((row, len(strip), strip.tobytes())),
        )
        seen.sort()
        assert [row for row, _, _ in seen] == [
            sum(n for _, n, _ in seen[:i]) for i in range(len(seen))
        ]
        assert b"".join(raw for *_, raw in seen) == ARRAYS["a"].tobytes()
        assert len(seen) == (
            1 if strip_bytes > 24 else -(-rows // max(1, strip_bytes * rows // 24))
        )
    io.read_strips(tmp_path / "x", header, "empty", 5, lambda *_: pytest.fail("nothing to read"))


def test_maps_in_order_and_not_too_far_ahead(monkeypatch):
    monkeypatch.setattr(io, "THREADS", 3)
    begun = []
    results = io.in_order(lambda item: begun.append(item) or -item, range(20))
    for item, result in enumerate(results):
        assert result == -item
        assert len(begun) <= item + 3
    assert sorted(begun) == list(range(20))
    with pytest.raises(ZeroDivisionError):
        list(io.in_order(lambda item: 1 // (item - 5), range(20)))


def test_pieces_must_fill_their_place(tmp_path):
    header = io.build_header([("a", np.dtype(np.float32), (2, 3))], {})
    pieces = lambda count: lambda name: iter([np.ones(3, np.float32)] * count)
    io.write(tmp_path / "x", header, pieces(2))
    np.testing.assert_array_equal(load_file(tmp_path / "x")["a"], np.ones((2, 3), np.float32))
    with pytest.raises(ValueError, match="12 bytes are given for"):
        io.write(tmp_path / "x", header, pieces(1))


def test_a_file_that_shrank_after_opening(tmp_path):
    save_file(ARRAYS, tmp_path / "x")
    header = io.read_header(tmp_path / "x")
    content = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(content[: header.data_start + 4])
    with pytest.raises(CheckpointError, match="is truncated"):
        io.read(tmp_path / "x", header, "a")
    with pytest.raises(CheckpointError, match="is truncated"):
        io.write(tmp_path / "y", header, lambda name: None, (tmp_path / "x", header))
