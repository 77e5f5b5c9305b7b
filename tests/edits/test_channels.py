"""Symmetric and antisymmetric channels against dense least squares."""

import numpy as np
import pytest

from tests.edits.both_sides import edit_both
from tests.edits.dense import channel, channel_target, head, one, random_layer, relative
from vlm_jax.edits.qk import LayerWeights, QKEdit, edit_layers
from vlm_jax.edits.qk.controls import Product
from vlm_jax.edits.qk.factor import factor_layers
from vlm_jax.edits.qk.modes import KeyMap, channel_modes
from vlm_jax.errors import EditError

CHANNELS = ("symmetric", "antisymmetric")


def edit(layer, route="auto", **fields):
    return one(edit_layers(lambda _: layer, 1, QKEdit(band=(0, 0), **fields), route=route))


def modes_of(layer, n, name, rcond=0.0):
    factors = factor_layers([LayerWeights.of(0, layer)], joint=True).heads[0][n]
    at = Product.of(factors, np.eye(16))
    return channel_modes(factors, QKEdit(method=name), KeyMap(at.r_kw, rcond), name), at


@pytest.mark.parametrize("name", CHANNELS)
@pytest.mark.parametrize(
    ("route", "tolerance"), [("gram64", 1e-12), ("qr64", 1e-12), ("qr32", 1e-5)]
)
@pytest.mark.parametrize("rcond", [None, 0.1, 0.0])
def test_change_is_that_of_dense_least_squares(name, route, tolerance, rcond):
    layer = random_layer(0)
    edited = edit(layer, route=route, method=name, k=4, strength=0.5, rcond=rcond)
    for n in range(4):
        q, k = head(layer, n)
        count = edited.heads[n]["k"]
        expected = channel(q, k, count, 0.5, name, 0.01 if rcond is None else rcond)
        assert relative(edited.arrays["wq_dnh"][:, n].T - q, expected - q) < tolerance


def test_both_channels_together_realise_the_whole_product():
    """M_s P_K + M_a P_K = M, with every mode of both."""
    layer = random_layer(1)
    for n in range(4):
        realised = 0.0
        for name in CHANNELS:
            modes, at = modes_of(layer, n, name)
            realised = realised + modes.left @ (modes.columns.T @ at.r_kw.T)
        assert np.linalg.norm(realised - at.core) / np.linalg.norm(at.core) < 1e-13


@pytest.mark.parametrize("name", CHANNELS)
def test_least_squares_is_stationary(name):
    layer = random_layer(2)
    edited = edit(layer, method=name, k=4, strength=0.7, rcond=0.0)
    for n in range(4):
        q, k = head(layer, n)
        m = q.T @ k
        target = m - 0.7 * channel_target(m, edited.heads[n]["k"], name)
        gradient = (edited.arrays["wq_dnh"][:, n] @ k - target) @ k.T
        assert np.linalg.norm(gradient) / np.linalg.norm(m @ k.T) < 1e-13


def test_antisymmetric_target_leaves_the_symmetric_part_alone():
    layer = random_layer(3)
    for n in range(4):
        modes, _ = modes_of(layer, n, "antisymmetric")
        for count in (2, 4, 6):
            target = (modes.left[:, :count] * modes.values[:count]) @ modes.right[:, :count].T
            assert np.linalg.norm(target + target.T) / np.linalg.norm(target) < 1e-13


@pytest.mark.parametrize("name", CHANNELS)
def test_residual_and_cosines_match_dense_numbers(name):
    layer = random_layer(4, dims=40)
    edited = edit(layer, method=name, k=4, strength=1.0, rcond=0.0)
    for n in range(4):
        q, k = head(layer, n)
        report = edited.heads[n]
        count = report["k"]
        projector = np.linalg.pinv(k) @ k
        targets = {c: channel_target(q.T @ k, count, c) for c in CHANNELS}
        missed = targets[name] @ (np.eye(40) - projector)
        expected = np.linalg.norm(missed) / np.linalg.norm(targets[name])
        assert report["residual"] == pytest.approx(expected, rel=1e-9)
        first, second = (targets[c] @ projector for c in CHANNELS)
        cosine = np.sum(first * second) / np.linalg.norm(first) / np.linalg.norm(second)
        assert report["cosine"]["symmetric_antisymmetric"] == pytest.approx(cosine, rel=1e-6)


def overlapping(rho, seed=0, dims=160, width=16):
    """One head whose key space overlaps its query space by rho^2."""
    rng = np.random.default_rng(seed)
    frame = np.linalg.qr(rng.standard_normal((dims, 2 * width)))[0]
    fall = np.arange(1, width + 1.0) ** -0.7
    turn = [np.linalg.qr(rng.standard_normal((width, width)))[0] for _ in range(4)]
    keys = rho * frame[:, :width] @ turn[0] + np.sqrt(1 - rho**2) * frame[:, width:]
    return {
        "wq_dnh": ((frame[:, :width] @ turn[1]) * fall @ turn[2])[:, None],
        "wk_dkh": (keys * fall @ turn[3])[:, None],
    }


@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
def test_overlap_decides_what_channels_can_realise(rho):
    layer = overlapping(rho)
    report = edit(layer, method="symmetric", k=4, rcond=0.0).heads[0]
    assert report["overlap"] == pytest.approx(rho**2, abs=1e-10)
    if rho == 0:
        assert report["residual"] == pytest.approx(np.sqrt(0.5), abs=1e-10)
        assert report["cosine"]["symmetric_antisymmetric"] == pytest.approx(1, abs=1e-9)
        assert report["cosine"]["plain_half"] == pytest.approx(1, abs=1e-9)
    elif rho == 1:
        assert report["residual"] < 1e-10
        assert abs(report["cosine"]["symmetric_antisymmetric"]) < 1e-9
    else:
        assert 0.5 < report["residual"] < 0.7
        assert 0.3 < report["cosine"]["symmetric_antisymmetric"] < 0.8


@pytest.mark.parametrize("name", CHANNELS)
def test_keys_that_follow_miss_least(name):
    layer = random_layer(9, heads=3, kv_heads=3, dims=40)
    fields = {"method": name, "k": 4, "strength": 0.7, "rcond": 0.0}
    both = edit_both(LayerWeights.of(0, layer), QKEdit(band=(0, 0), **fields))
    fixed = edit(layer, **fields)
    for n in range(3):
        q, k = head(layer, n)
        report = fixed.heads[n]
        removed = 0.7 * channel_target(q.T @ k, report["k"], name)
        target = q.T @ k - removed
        realised = both.wq_dnh[:, n] @ both.wk_dkh[:, n].T
        left, values, right = np.linalg.svd(target)
        assert relative(realised, (left[:, :16] * values[:16]) @ right[:16]) < 1e-12
        missed = np.linalg.norm(realised - target) / np.linalg.norm(removed)
        assert both.residual_n[n] == pytest.approx(missed, rel=1e-9)
        assert report["least_residual"] == pytest.approx(missed, rel=1e-9)
        assert 0 < missed < report["residual"]


def test_keys_of_an_equal_space_follow_exactly():
    layer = overlapping(1.0)
    spec = QKEdit(band=(0, 0), method="symmetric", k=4)
    both = edit_both(LayerWeights.of(0, layer), spec)
    assert both.residual_n[0] < 1e-12


@pytest.mark.parametrize(
    ("layer", "fields", "message"),
    [
        ({}, {"method": "symmetric"}, "4 query heads on 2 key heads"),
        ({"heads": 2}, {}, "symmetric or antisymmetric"),
        ({"heads": 2}, {"method": "symmetric", "control": "R1"}, "without control"),
        ({"heads": 2}, {"method": "symmetric", "energy": 0.5}, "without control, energy"),
    ],
    ids=str,
)
def test_keys_that_cannot_follow_are_refused(layer, fields, message):
    weights = LayerWeights.of(0, random_layer(0, **layer))
    with pytest.raises(EditError, match=message):
        edit_both(weights, QKEdit(band=(0, 0), **fields))


def test_ridge_tames_ill_conditioned_keys():
    layer = random_layer(5)
    fall = np.logspace(0, -5, 16)
    layer["wk_dkh"] = np.stack(
        [
            np.linalg.svd(w, full_matrices=False)[0] * fall
            for w in layer["wk_dkh"].transpose(1, 0, 2)
        ],
        1,
    )
    tame = edit(layer, method="symmetric", k=8, strength=1.0).heads[0]
    wild = edit(layer, method="symmetric", k=8, strength=1.0, rcond=0.0).heads[0]
    assert 10 * tame["edit"]["dw_relative"] < wild["edit"]["dw_relative"]
    assert tame["residual"] < wild["residual"] + 0.05


def test_positive_only_leaves_repulsion_out():
    layer = random_layer(6)
    report = edit(layer, method="symmetric", positive_only=True, k=3, rcond=0.0).heads[0]
    q, k = head(layer, 0)
    m = q.T @ k
    values, vectors = np.linalg.eigh((m + m.T) / 2)
    top = np.argsort(-values)[: report["k"]]
    target = (vectors[:, top] * values[top]) @ vectors[:, top].T
    realised = 0.5 * target @ np.linalg.pinv(k) @ k
    assert report["edit"]["dm_norm"] == pytest.approx(np.linalg.norm(realised), rel=1e-9)


def test_antisymmetric_cut_falls_between_pairs():
    reports = edit(random_layer(7), method="antisymmetric", energy=0.5).heads
    assert all(report["k"] % 2 == 0 and report["k"] > 0 for report in reports)


@pytest.mark.parametrize("name", CHANNELS)
def test_equal_query_and_key_spaces_need_no_gram(name):
    layer = random_layer(8, heads=1, kv_heads=1)
    layer["wk_dkh"] = layer["wq_dnh"] @ np.random.default_rng(0).standard_normal((16, 16))
    edited = edit(layer, method=name, k=2, rcond=0.0)
    q, k = head(layer, 0)
    expected = channel(q, k, edited.heads[0]["k"], 0.5, name, 0.0)
    assert relative(edited.arrays["wq_dnh"][:, 0].T, expected) < 1e-9
    assert edited.heads[0]["residual"] < 1e-9
