"""Arrays in groups, read onto devices in parts."""

import logging
import sys
import threading

import jax
import numpy as np
import pytest
from absl import logging as absl_logging

from vlm_jax.checkpoint import orbax_store
from vlm_jax.checkpoint.orbax_store import Reader, Writer
from vlm_jax.parallel import make_mesh, param_shardings


@pytest.mark.parametrize(
    ("stored", "dtype"),
    [(np.float32, np.float32), (np.float32, np.float16), (np.float16, np.float32)],
)
def test_an_array_larger_than_the_buffer_is_read_onto_devices(tmp_path, monkeypatch, stored, dtype):
    monkeypatch.setattr(orbax_store, "_BUFFER_BYTES", 1 << 10)
    monkeypatch.setattr(orbax_store, "_CHUNK_BYTES", 1 << 11)
    draw = np.random.default_rng(0).standard_normal
    params = {
        "decoder/embed_vd": draw((96, 40), np.float32).astype(stored),
        "decoder/layers/0/wq_dnh": draw((40, 6, 8), np.float32).astype(stored),
    }
    folder = tmp_path / "params"
    with Writer(folder) as writer:
        for path, array in params.items():
            writer.add(path, array)
        writer.finish()
    shardings = param_shardings(params, make_mesh())
    leaves = {
        path: jax.ShapeDtypeStruct(array.shape, dtype, sharding=shardings[path])
        for path, array in params.items()
    }
    for path, array in Reader(folder, writer.tensors).load(leaves).items():
        assert array.sharding == shardings[path]
        np.testing.assert_array_equal(array, params[path].astype(dtype), err_msg=path)


def test_after_a_failure_the_library_alone_is_silent(caplog, monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # and as it was again
    with pytest.raises(OSError, match="full"), orbax_store._quiet():
        raise OSError("full")
    absl_logging.warning("a warning of the package")
    assert "a warning of the package" in caplog.text
    late = logging.makeLogRecord({"pathname": "/lib/orbax/checkpoint/writer.py"})
    assert not logging.getLogger("absl").filter(late)


def test_who_leaves_a_stream_half_way_waits_for_no_read(tmp_path, monkeypatch):
    """Whichever thread collects the generator may be one that the read waits for."""
    monkeypatch.setattr(orbax_store, "GROUP_BYTES", 16)
    folder = tmp_path / "params"
    with Writer(folder) as writer:
        for path in ("a", "b"):
            writer.add(path, np.zeros(4, np.float32))
        writer.finish()
    reader, closed = Reader(folder, writer.tensors), threading.Event()
    read = reader._read
    monkeypatch.setattr(
        reader, "_read", lambda part: (part == ["b"] and closed.wait()) or read(part)
    )
    stream = reader.stream(["a", "b"])
    assert next(stream)[0] == "a"
    leaving = threading.Thread(target=stream.close, daemon=True)
    leaving.start()
    leaving.join(20)
    left = not leaving.is_alive()
    closed.set()
    assert left
