"""Eight devices give the edit of one."""

import numpy as np
import pytest

from tests.edits.dense import BF16, random_layer
from vlm_jax.edits.qk import QKEdit, edit_many

SPECS = [
    {"band": [0, 2]},
    {"band": [0, 2], "control": "R3"},
    {"band": [0, 1], "method": "symmetric", "energy": 0.4},
]


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
def test_eight_devices_give_the_edit_of_one(eight):
    """9 and 6 kv heads over 8 devices: padded. Hangs count as failures."""
    found, theirs = eight(edits, timeout=100)
    arrays, reports = edits()
    assert set(found) == set(arrays)
    for name, bits in arrays.items():
        assert (found[name] == bits).mean() > 0.9999
        ours, other = bits.view(BF16).astype(np.float64), found[name].view(BF16).astype(np.float64)
        assert np.abs(ours - other).max() <= 2**-7 * np.abs(ours).max()
    assert [r[:4] for r in sorted(theirs)] == [r[:4] for r in sorted(reports)]
    assert [r[4] for r in sorted(theirs)] == pytest.approx([r[4] for r in sorted(reports)])
