"""Rotations, the averaged product and the offset diagnostic."""

import numpy as np
import pytest

from tests.edits.dense import head, one, random_layer, relative
from vlm_jax.edits.qk import QKEdit, Rope, edit_layers

FREQ = 1e4 ** (-np.arange(8) / 8)


def rotate_half(x_h, position, freq):
    """Rotary embedding as models apply it to one head vector."""
    angle = np.concatenate([position * freq, position * freq])
    half = x_h.size // 2
    turned = np.concatenate([-x_h[half:], x_h[:half]])
    return x_h * np.cos(angle) + turned * np.sin(angle)


def test_rotation_is_that_of_rotated_queries_and_keys():
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 16))
    rotation = Rope(FREQ, np.array([70 - 29])).rotations(16)[0]
    logit = rotate_half(q, 70, FREQ) @ rotate_half(k, 29, FREQ)
    assert q @ rotation @ k == pytest.approx(logit, rel=1e-12)
    assert relative(rotation @ rotation.T, np.eye(16)) < 1e-14


def test_sections_give_every_frequency_its_axis():
    axis = np.repeat(np.arange(3), [2, 3, 3])
    assert axis.tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
    rope = Rope(FREQ, np.array([[5, -3, 2]]), axis)
    rotation = rope.rotations(16)[0]
    for f, distance in enumerate([5, 5, -3, -3, -3, 2, 2, 2]):
        assert rotation[f, f] == pytest.approx(np.cos(distance * FREQ[f]))
        assert rotation[f, f + 8] == pytest.approx(np.sin(distance * FREQ[f]))
    text = Rope(FREQ, np.array([[4, 4, 4]]), axis).rotations(16)
    assert (text == Rope(FREQ, np.array([4])).rotations(16)).all()


def test_dims_beyond_the_table_do_not_turn():
    rope = Rope(FREQ[:3], np.array([9, 11]))
    for matrix in (*rope.rotations(16), rope.mean_rotation(16)):
        assert (matrix[6:, 6:] == np.eye(10)).all()
        assert not matrix[:6, 6:].any()


def test_averaged_product_is_edited_in_its_own_directions():
    layer = random_layer(0)
    rope = Rope(FREQ, np.array([1, 2, 30]), weights_o=np.array([1.0, 2.0, 1.0]))
    rotations = rope.rotations(16)
    mean = (rotations[0] + 2 * rotations[1] + rotations[2]) / 4
    assert np.abs(rope.mean_rotation(16) - mean).max() < 1e-15
    spec = QKEdit(band=(0, 0), k=3, rope_avg=True)
    edited = one(edit_layers(lambda _: layer, 1, spec, rope=rope))
    for n in range(4):
        q, k = head(layer, n)
        u = np.linalg.svd(q.T @ mean @ k)[0][:, : edited.heads[n]["k"]]
        assert relative(edited.arrays["wq_dnh"][:, n].T, q @ (np.eye(96) - 0.5 * u @ u.T)) < 1e-12


def test_rho_is_the_captured_share_at_each_offset():
    layer = random_layer(1)
    rope = Rope(FREQ, np.array([0, 1, 50]))
    edited = one(edit_layers(lambda _: layer, 1, QKEdit(band=(0, 0), k=3), rope=rope))
    for n in range(4):
        q, k = head(layer, n)
        report = edited.heads[n]
        u = np.linalg.svd(q.T @ k)[0][:, : report["k"]]
        expected = []
        for rotation in rope.rotations(16):
            m = q.T @ rotation @ k
            best = np.linalg.svd(m, compute_uv=False)[: report["k"]]
            expected.append(np.sum((u.T @ m) ** 2) / np.sum(best**2))
        assert report["rho"]["values"] == pytest.approx(expected, rel=1e-10)
        assert report["rho"]["median"] == pytest.approx(np.median(expected), rel=1e-10)
        assert expected[0] == pytest.approx(1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rope(FREQ, np.zeros((0, 1))), "no offset"),
        (lambda: Rope(FREQ, np.array([1]), np.arange(8) % 3), "triples"),
        (lambda: Rope(FREQ, np.array([1]), np.arange(7)), "one length"),
        (lambda: Rope(FREQ, np.array([1, 2]), weights_o=np.array([1.0])), "weights_o"),
        (lambda: Rope(FREQ, np.array([1, 2]), weights_o=np.array([0.0, 0.0])), "weights_o"),
        (lambda: Rope(np.ones(9), np.array([1])).rotations(16), "room for 8"),
    ],
)
def test_bad_tables_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_averaging_needs_a_rotation():
    with pytest.raises(ValueError, match="rope_avg"):
        list(edit_layers(lambda _: random_layer(0), 1, QKEdit(band=(0, 0), rope_avg=True)))
