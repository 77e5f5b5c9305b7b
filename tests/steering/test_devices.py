"""Eight devices give the edit of one."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.steering.dense import BF16, random_layer
from vlm_jax.steering.qk import QKEdit, edit_many

SPECS = [
    {"band": [0, 2]},
    {"band": [0, 2], "control": "R3"},
    {"band": [0, 1], "method": "symmetric", "energy": 0.4},
]

CHILD = """
import json, sys
import jax
import numpy as np
from tests.steering.test_devices import edits
assert jax.local_device_count() == 8, jax.devices()
arrays, reports = edits()
np.savez(sys.argv[1], **arrays)
print(json.dumps(reports))
"""


def edits():
    layers = [random_layer(seed, heads=6, kv_heads=3, dtype=BF16) for seed in range(3)]
    arrays, reports = {}, []
    for by_spec in edit_many(lambda n: layers[n], 3, [QKEdit(**fields) for fields in SPECS]):
        for index, edited in by_spec.items():
            bits = edited.arrays["wq_dnh"].view(np.uint16)
            arrays[f"{index}/{edited.layer}"] = bits
            reports += [
                [index, edited.layer, r["head"], r["k"], r["overlap"]] for r in edited.heads
            ]
    return arrays, reports


@pytest.mark.timeout(120)
def test_eight_devices_give_the_edit_of_one(tmp_path):
    """9 and 6 kv heads over 8 devices: padded. Hangs count as failures."""
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "NPROC": "16",
        "OPENBLAS_NUM_THREADS": "1",
        "JAX_PLATFORMS": "cpu",
    }
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "eight.npz")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-2000:]
    arrays, reports = edits()
    eight = np.load(tmp_path / "eight.npz")
    assert set(eight.files) == set(arrays)
    for name, bits in arrays.items():
        assert (eight[name] == bits).mean() > 0.9999
        ours, theirs = bits.view(BF16).astype(np.float64), eight[name].view(BF16).astype(np.float64)
        assert np.abs(ours - theirs).max() <= 2**-7 * np.abs(ours).max()
    theirs = json.loads(child.stdout.strip().splitlines()[-1])
    assert [r[:4] for r in sorted(theirs)] == [r[:4] for r in sorted(reports)]
    assert [r[4] for r in sorted(theirs)] == pytest.approx([r[4] for r in sorted(reports)])
