"""Energies of query-key products against the products themselves."""

import numpy as np
import pytest

from vlm_jax.edits.energy_rescale import energy_scale, product_energies


def weights(heads=6, kv_heads=2, dims=24, width=4):
    rng = np.random.default_rng(0)
    size_n = np.geomspace(0.5, 3, heads)
    q_dnh = rng.normal(size=(dims, heads, width)) * size_n[:, None]
    return q_dnh, rng.normal(size=(dims, kv_heads, width))


def products(wq_dnh, wk_dkh):
    """The D x D product of each head."""
    group = wq_dnh.shape[1] // wk_dkh.shape[1]
    return [wq_dnh[:, n] @ wk_dkh[:, n // group].T for n in range(wq_dnh.shape[1])]


def test_energies_are_those_of_the_products():
    q_dnh, k_dkh = weights()
    whole = [np.sum(w * w) for w in products(q_dnh, k_dkh)]
    np.testing.assert_allclose(product_energies(q_dnh, k_dkh), whole, rtol=1e-12)
    symmetric = [np.trace(((w + w.T) / 2) @ ((w + w.T) / 2)) for w in products(q_dnh, k_dkh)]
    found = product_energies(q_dnh, k_dkh, "symmetrised")
    np.testing.assert_allclose(found, symmetric, rtol=1e-12)
    assert (found > 0).all()
    assert min(np.trace(w @ w) for w in products(q_dnh, k_dkh)) < 0


@pytest.mark.parametrize("energy", ["frobenius", "symmetrised"])
def test_rescaled_products_have_the_mean_energy_within_the_limits(energy):
    q_dnh, k_dkh = weights()
    before_n = product_energies(q_dnh, k_dkh, energy)
    scale_n = energy_scale(before_n, xi=0.0)
    after_n = product_energies(q_dnh * scale_n[:, None], k_dkh, energy)
    free_n = (scale_n > 0.8) & (scale_n < 1.25)
    assert 0 < free_n.sum() < len(free_n)
    np.testing.assert_allclose(after_n[free_n], before_n.mean(), rtol=1e-12)
    assert (np.abs(after_n - before_n.mean()) <= np.abs(before_n - before_n.mean()) + 1e-9).all()
    assert energy_scale(np.full(4, 2.0), xi=0.0).tolist() == [1.0] * 4
    assert (energy_scale(np.full(4, 2.0)) < 1).all()
