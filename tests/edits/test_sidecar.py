"""Sidecars: exact revert, other strengths, storage."""

import numpy as np
import pytest

from tests.edits.dense import BF16, one, random_layer
from vlm_jax.edits.qk import QKEdit, Sidecar, edit_layers, edit_many


def edit(layer, **fields):
    return one(edit_layers(lambda _: layer, 1, QKEdit(**{"band": (0, 0), **fields})))


@pytest.mark.parametrize("dtype", [BF16, np.float32])
@pytest.mark.parametrize(
    "fields",
    [
        {"strength": 1.0},
        {"strength": -2.0},
        {"control": "R3"},
        {"control": "C1", "strength": 0.9},
        {"bias": "operator"},
        {"control": "C5"},
    ],
    ids=str,
)
def test_revert_is_exact(dtype, fields):
    layer = random_layer(0, dtype=dtype)
    layer["wq_dnh"][::5] = -0.0
    edited = edit(layer, **fields)
    stored = Sidecar.from_arrays(edited.sidecar.arrays())
    wq, bq = stored.revert(edited.arrays["wq_dnh"], edited.arrays.get("bq_nh", layer["bq_nh"]))
    assert wq.tobytes() == layer["wq_dnh"].tobytes()
    assert bq.tobytes() == layer["bq_nh"].tobytes()


def test_revert_needs_few_stored_weights():
    edited = edit(random_layer(1, dtype=BF16), strength=0.1)
    assert edited.sidecar.undo_index.size < 0.1 * edited.arrays["wq_dnh"].size
    assert edited.sidecar.undo_index.size > 0


@pytest.mark.parametrize("fields", [{}, {"control": "C1"}, {"method": "symmetric"}], ids=str)
def test_another_strength_is_the_edit_made_at_that_strength(fields):
    layer = random_layer(2, dtype=np.float32)
    first, second = (edit(layer, strength=a, **fields) for a in (0.3, 0.8))
    again, _ = first.sidecar.apply(layer["wq_dnh"], strength=0.8)
    assert again.tobytes() == second.arrays["wq_dnh"].tobytes()
    same, _ = first.sidecar.apply(layer["wq_dnh"])
    assert same.tobytes() == first.arrays["wq_dnh"].tobytes()


def test_sidecar_is_low_rank_and_small():
    sidecar = edit(random_layer(3), k=3).sidecar
    assert sidecar.columns_ehr.shape == (4, 16, 3)
    assert sidecar.directions_erd.shape == (4, 3, 96)


def test_revert_without_its_record_is_refused():
    layer = random_layer(4)
    (edits,) = edit_many(lambda _: layer, 1, [QKEdit(band=(0, 0))])
    with pytest.raises(ValueError, match="no undo record"):
        edits[0].sidecar.revert(edits[0].arrays["wq_dnh"])


def test_foreign_weights_and_files_are_refused():
    sidecar = edit(random_layer(5)).sidecar
    with pytest.raises(ValueError, match="another layer or model"):
        sidecar.apply(random_layer(5, dims=64)["wq_dnh"])
    with pytest.raises(ValueError, match="at most 1"):
        sidecar.apply(random_layer(5)["wq_dnh"], strength=1.5)
    arrays = sidecar.arrays()
    with pytest.raises(ValueError, match="columns_ehr"):
        Sidecar.from_arrays({k: v for k, v in arrays.items() if k != "columns_ehr"})
    with pytest.raises(ValueError, match="wv_dkh"):
        Sidecar.from_arrays({**arrays, "wv_dkh": arrays["columns_ehr"]})


def test_overflow_is_refused():
    layer = random_layer(6, dtype=np.float16)
    layer["wq_dnh"] = (layer["wq_dnh"].astype(np.float64) * 2e5).clip(-6e4, 6e4).astype(np.float16)
    with pytest.raises(ValueError, match="leaves the range of float16"):
        edit(layer, strength=-50.0)
