"""Spectra of products against dense ones, and the localisation curve against random walks."""

import numpy as np
import pytest

from tests.edits.dense import random_layer
from vlm_jax.analysis.spectra import (
    THETAS,
    gaussian_energy,
    localisation,
    logit_variance,
    spectra,
)
from vlm_jax.edits.qk import Rope

HEADS, GROUP, WIDTH = 4, 2, 6


@pytest.fixture(scope="module")
def layer():
    weights = random_layer(3, dims=24, heads=HEADS, kv_heads=HEADS // GROUP, width=WIDTH)
    rng = np.random.default_rng(0)
    arrays = {name: weights[name] for name in ("wq_dnh", "wk_dkh")}
    return arrays | {"q_norm_h": rng.uniform(0.5, 2, WIDTH), "k_norm_h": rng.uniform(0.5, 2, WIDTH)}


def dense(layer, n, turn=None):
    """The product of a head, as a matrix of D x D."""
    gains = np.diag(layer["q_norm_h"]) @ (np.eye(WIDTH) if turn is None else turn)
    gains = gains @ np.diag(layer["k_norm_h"])
    return layer["wq_dnh"][:, n] @ gains @ layer["wk_dkh"][:, n // GROUP].T


def test_spectra_are_those_of_dense_products(layer):
    rope = Rope(np.array([1.0, 0.3, 0.01]), np.array([1, 7, 40]))
    found = spectra([layer, layer], rope, indices=(4, 9), modes=2)
    assert found.layers == (4, 9)
    for n in range(HEADS):
        product = dense(layer, n)
        left, values, right = np.linalg.svd(product)
        symmetric = (product + product.T) / 2
        expected = {
            "values_lnm": values[:WIDTH],
            "alignment_lnm": np.sum(left[:, :WIDTH] * right[:WIDTH].T, axis=0),
            "symmetry_ln": np.trace(product @ product) / np.sum(product**2),
            "trace_ln": np.trace(product),
            "squared_trace_ln": np.trace(symmetric @ symmetric),
            "energy_lnm": np.cumsum(values[:WIDTH] ** 2) / np.sum(values**2),
            "stable_rank_ln": np.sum(values**2) / values[0] ** 2,
        }
        for name, value in expected.items():
            np.testing.assert_allclose(getattr(found, name)[1, n], value, rtol=1e-8, err_msg=name)
        kept = []
        for turn in rope.rotations(WIDTH):
            turned = dense(layer, n, turn)
            best = np.sum(np.linalg.svd(turned, compute_uv=False)[:2] ** 2)
            kept.append(np.sum((left[:, :2].T @ turned) ** 2) / best)
        assert found.capture_ln[0, n] == pytest.approx(np.median(kept))
        queries, _ = np.linalg.qr(layer["wq_dnh"][:, n])
        keys, _ = np.linalg.qr(layer["wk_dkh"][:, n // GROUP])
        assert found.overlap_ln[0, n] == pytest.approx(np.sum((queries.T @ keys) ** 2) / WIDTH)
    assert found.curves().shape == (2, HEADS, len(THETAS))
    np.testing.assert_allclose(spectra([layer]).capture_ln, 1.0)


def test_the_energy_of_gaussian_weights_is_that_of_their_spectra():
    rng = np.random.default_rng(1)
    weights = {"wq_dnh": (24, 64, 6), "wk_dkh": (24, 64, 6)}
    found = spectra([{name: rng.standard_normal(shape) for name, shape in weights.items()}])
    expected = found.energy_lnm[..., 1].mean()
    assert gaussian_energy(24, 6, 2, heads=64) == pytest.approx(expected, abs=0.02)
    assert gaussian_energy(24, 6, 6) == pytest.approx(1)


def test_the_exact_variance_is_that_of_random_walks():
    """Tokens walk at random; the last one's logit with the one at theta, walks centred."""
    rng, width, steps, walks = np.random.default_rng(1), 6, 100, 20_000
    half = rng.normal(size=(width, width))
    product = (half + half.T) / 2
    walk = np.cumsum(rng.normal(size=(walks, steps, width), scale=steps**-0.5), axis=1)
    last, centre = walk[:, -1], walk.mean(1)
    squared = np.trace(product @ product)
    for theta in (0.1, 0.5, 1.0):
        logits = np.einsum("bd,de,be->b", walk[:, int(theta * steps) - 1] - centre, product, last)
        logits /= np.sqrt(width)
        exact = logit_variance(squared, width, theta)
        assert logits.var() == pytest.approx(exact, rel=0.1)
        assert logits.mean() == pytest.approx(
            (theta - 0.5) * np.trace(product) / np.sqrt(width), abs=0.1
        )
        assert logit_variance(squared, width, theta, "supplement") > 1.4 * exact


def test_peaks_of_the_localisation_curve():
    """Of D = 64, tr W = 16, tr W^2 = 20; a symmetric curve where the trace is nothing."""
    theta = np.linspace(0, 1, 2001)
    peak = lambda word: theta[localisation(16, 20, 64, theta, word).argmax()]
    assert peak("exact") == pytest.approx(0.715, abs=2e-3)
    assert peak("supplement") == pytest.approx(0.654, abs=2e-3)
    even = localisation(0, 20, 64, theta)
    np.testing.assert_allclose(even, even[::-1], atol=1e-12)
    closed = lambda c: np.sqrt(20) * c
    c = np.sqrt(4 * theta**2 + 7 / 6)
    first, second = (theta - 0.5) * 16 / closed(c), ((theta - 0.5) * 16 - 8) / closed(c)
    from vlm_jax.analysis.spectra import _erf

    expected = 0.5 * (_erf(first) - _erf(second))
    np.testing.assert_allclose(localisation(16, 20, 64, theta, "supplement"), expected, atol=1e-12)
