"""Descriptions of edits, and everything they refuse."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.edits.dense import random_layer
from vlm_jax.edits.qk import CONTROLS, QKEdit, edit_layers, edit_many
from vlm_jax.errors import EditError, UserError


@pytest.mark.parametrize(
    ("layers", "first", "last"), [(28, 10, 17), (36, 13, 22), (32, 12, 19), (24, 9, 14)]
)
def test_default_band_is_the_middle(layers, first, last):
    assert QKEdit().layers(layers) == tuple(range(first, last + 1))


@given(st.integers(1, 80), st.floats(0, 1), st.floats(0, 1))
def test_depth_bands_are_contiguous_and_inside(layers, first, last):
    first, last = sorted((first, last))
    try:
        band = QKEdit(band=(first, last)).layers(layers)
    except EditError:
        return
    assert band == tuple(range(band[0], band[-1] + 1))
    assert 0 <= band[0] <= band[-1] < layers


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "svd"}, "method must be one of.*not 'svd'"),
        ({"control": "R9"}, "control must be one of.*not 'R9'"),
        ({"bias": "no"}, "bias must be one of.*not 'no'"),
        ({"alignment_class": "x"}, "alignment_class"),
        ({"map_back": "svd"}, "map_back must be one of.*not 'svd'"),
        ({"k": 0}, "k must be a whole number, at least 1, not 0"),
        ({"k": 2.5}, "k must be a whole number.*not 2.5"),
        ({"k": 4, "energy": 0.5}, "give one"),
        ({"energy": 0.0}, "energy must be above 0, at most 1, not 0.0"),
        ({"energy": 1.5}, "energy must be .* from 0 to 1, not 1.5"),
        ({"method": "antisymmetric", "k": 3}, "k=3 is odd"),
        ({"strength": 1.01}, "strength must be .* at most 1, not 1.01"),
        ({"strength": float("nan")}, "strength must be a finite number.*not nan"),
        ({"strength": float("-inf")}, "strength must be a finite number.*not -inf"),
        ({"soft": 0.0}, "soft must be above 0, not 0.0"),
        ({"soft": 1.0, "control": "R1"}, "control=R1"),
        ({"rcond": 1.0}, "rcond must be below 1, not 1.0"),
        ({"alignment_min": 1.2}, "alignment_min must be .* from 0 to 1, not 1.2"),
        ({"method": "symmetric", "control": "R2"}, "control=R2"),
        ({"seed": -1}, "seed must be .* at least 0, not -1"),
        ({"band": (3, 2)}, "first <= last"),
        ({"band": (-1, 2)}, "first <= last"),
        ({"band": (0, 0.5)}, "mixes"),
        ({"band": (0.5, 1.5)}, r"in \[0, 1\]"),
        ({"band": (1,)}, r"band must list 2 values, not \(1,\)"),
        ({"band": "0.,1."}, "band must be a list, not '0.,1.'"),
        ({"band": (0.5, "x")}, "band must be a finite number, not 'x'"),
        ({"band": 5}, "band must be a list, not 5"),
        ({"heads": ()}, "selects no head"),
        ({"heads": "some"}, "heads must be one of .*not 'some'"),
        ({"heads": (-1,)}, "heads holds -1"),
        ({"heads": ((1, 2, 3),)}, "heads holds"),
        ({"heads": (None,)}, "heads holds None"),
        ({"heads": 3}, "heads must be a list, not 3"),
        ({"energy": "all"}, "energy must be a finite number.*not 'all'"),
        ({"fold_norm": 1}, "fold_norm must be True or False, not 1"),
    ],
    ids=str,
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        QKEdit(**fields)


def edit(layer, num_layers=1, **fields):
    return list(edit_layers(lambda _: layer, num_layers, QKEdit(**{"band": (0, 0), **fields})))


def test_band_outside_the_model_is_refused():
    with pytest.raises(EditError, match=r"ends at layer 30.*0 to 27"):
        QKEdit(band=(10, 30)).layers(28)
    with pytest.raises(EditError, match="holds none"):
        QKEdit(band=(0.41, 0.42)).layers(4)


def test_more_modes_than_head_dims_are_refused():
    with pytest.raises(EditError, match="k=17"):
        edit(random_layer(0), k=17)


def test_more_modes_than_the_rank_are_refused_by_head():
    layer = random_layer(0)
    layer["wk_dkh"][:, 1, 4:] = 0
    with pytest.raises(EditError, match="layer 0 head 2: k=5 is above the rank 4"):
        edit(layer, k=5)
    assert len(edit(layer, k=5, heads=(0, 1))[0].heads) == 2


def test_head_outside_the_model_is_refused():
    with pytest.raises(EditError, match="head 4"):
        edit(random_layer(0), heads=(0, 4))


def test_heads_can_differ_by_layer():
    spec = QKEdit(band=(0, 2), heads=((0, 1), (0, 3), (2, 2)))
    assert [spec.heads_of(layer, 4) for layer in range(3)] == [(1, 3), (), (2,)]
    done = list(edit_layers(lambda _: random_layer(0), 3, spec))
    assert [[report["head"] for report in layer.heads] for layer in done] == [[1, 3], [], [2]]
    assert done[1].arrays["wq_dnh"].tobytes() == random_layer(0)["wq_dnh"].tobytes()


@pytest.mark.parametrize("name", ["wq_dnh", "wk_dkh"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("method", ["plain", "symmetric"])
def test_weights_that_are_not_finite_are_refused_by_name(name, value, method):
    layer = random_layer(0)
    layer[name][3, 1, 2] = value
    with pytest.raises(EditError, match=f"layer 0: {name} holds NaN"):
        edit(layer, method=method)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wk_dkh": None}, "layer 0 has no wk_dkh.*MLA"),
        ({"wk_dkh": np.zeros((95, 2, 16))}, "D is 96"),
        ({"wk_dkh": np.zeros((96, 2, 8))}, "H is 16"),
        ({"wk_dkh": np.zeros((96, 32))}, "expected"),
        ({"wk_dkh": np.zeros((96, 3, 16)), "bk_kh": None}, "multiple"),
        ({"bq_nh": np.zeros((3, 16))}, "N is 4"),
    ],
    ids=str,
)
def test_misshapen_layers_are_refused(change, message):
    with pytest.raises(EditError, match=message):
        edit({**random_layer(0), **change})


def test_options_without_their_arrays_are_refused():
    bare = {name: random_layer(0)[name] for name in ("wq_dnh", "wk_dkh")}
    for fields, message in (
        ({"bias": "operator"}, "no query bias"),
        ({"bias": "augmented"}, "no query bias"),
        ({"fold_norm": True}, "attn_norm_d"),
    ):
        with pytest.raises(EditError, match=message):
            edit(bare, **fields)
    layer = random_layer(0)
    layer["attn_norm_d"][5] = 0
    with pytest.raises(EditError, match="cannot be divided out"):
        edit(layer, fold_norm=True)


def test_dead_keys_are_refused_by_head():
    layer = random_layer(0)
    layer["wk_dkh"][:, 0] = 0
    with pytest.raises(EditError, match="layer 0 head 0: k=4 is above the rank 0"):
        edit(layer)


def test_many_edits_share_reading_and_equal_one_by_one():
    layers = [random_layer(seed) for seed in range(4)]
    reads = []

    def read(layer):
        reads.append(layer)
        return layers[layer]

    specs = [
        QKEdit(band=(1, 2), strength=0.3),
        QKEdit(band=(1, 2), control="R3"),
        QKEdit(band=(2, 3), method="symmetric"),
        QKEdit(band=(2, 3), control="C4"),
    ]
    together = list(edit_many(read, 4, specs))
    assert reads == [0, 1, 2, 3]
    assert [sorted(edits) for edits in together] == [[3], [0, 1, 3], [0, 1, 2], [2]]
    for index, spec in enumerate(specs):
        alone = {e.layer: e for e in edit_layers(lambda n: layers[n], 4, spec)}
        for edits in together:
            if index in edits:
                ours = edits[index]
                expected = alone[ours.layer].arrays["wq_dnh"]
                assert ours.arrays["wq_dnh"].tobytes() == expected.tobytes()


def test_every_control_is_explained():
    assert all(CONTROLS.values())
    assert {"", "R1", "R2", "R3", "R4", "R5", "C1", "C2", "C3", "C4", "C5", "C6"} <= set(CONTROLS)
