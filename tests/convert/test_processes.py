"""Several processes: the first converts, and each reads of a folder what its devices need."""

import socket
import subprocess
import sys

from tests import tiny
from tests.children import ENVIRONMENT

PROCESS = """
import pathlib, sys
import jax, numpy as np
from jax.sharding import AxisType
import convert
from convert import safetensors_io, table
from vlm_jax import checkpoint
from vlm_jax.errors import UserError
from vlm_jax.parallel import param_shardings, processes

source, work, port, number = *map(pathlib.Path, sys.argv[1:3]), *sys.argv[3:]
processes.start(f"localhost:{port}", 2, int(number))
try:
    processes.by_primary(lambda: convert.import_hf(work / "nothing", work / "x", progress=False))
except UserError as error:
    assert "is no Hugging Face folder" in str(error)
processes.by_primary(lambda: convert.import_hf(source, work / "ours", progress=False))
processes.by_primary(lambda: convert.export_hf(work / "ours", work / "theirs", progress=False))
table.GAP_BYTES, read, seen = 0, safetensors_io._read_into, []  # the tensors are tiny
counted = lambda file, view, path: (seen.append(len(view)), read(file, view, path))
safetensors_io._read_into = counted
mesh = jax.make_mesh((1, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
for folder in (checkpoint.open_folder(work / "ours"), convert.open_hf(work / "theirs")):
    seen.clear()
    params = folder.load(None, param_shardings(folder.tensors, mesh))
    of_file, own = sum(seen), [array.addressable_shards[0].data for array in params.values()]
    for path, array in params.items():
        (shard,) = array.addressable_shards
        np.testing.assert_array_equal(np.asarray(shard.data), folder.read(path)[shard.index])
    assert shard.data.size < array.size or array.ndim == 1
assert of_file == sum(one.nbytes for one in own), "of a file each reads its share and no more"
assert of_file < 0.7 * sum(info.nbytes for info in folder.tensors.values()), of_file
processes.barrier("end")
print("same", flush=True)
"""


def test_two_processes_convert_and_load(tmp_path):
    source = tiny.llava(tmp_path / "source")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(source), str(tmp_path), str(port), str(number)],
            env=ENVIRONMENT | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        for process in started:
            out, err = process.communicate(timeout=200)
            assert out.endswith("same\n"), err
    finally:
        for process in started:
            process.kill()
    assert not (tmp_path / "x").exists()
