"""Pieces that towers share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.models.layers import linear, rotate, rotate_patches


@pytest.mark.parametrize("rows", [(1,), (2, 1), (4, 16), (5, 13)])
def test_linear_multiplies_rows_however_many(rows):
    rng = np.random.default_rng(0)
    x, w_oi = rng.normal(size=(*rows, 24)), rng.normal(size=(40, 24))
    given = jnp.asarray(x, jnp.float32), jnp.asarray(w_oi, jnp.float32)
    for function in (linear, jax.jit(linear)):
        np.testing.assert_allclose(function(*given), x @ w_oi.T, atol=2e-5)
    slopes = jax.grad(lambda x, w: jnp.sum(linear(x, w) ** 2), argnums=(0, 1))(*given)
    np.testing.assert_allclose(slopes[0], 2 * x @ w_oi.T @ w_oi, rtol=1e-4, atol=1e-3)
    flat = x.reshape(-1, 24)
    np.testing.assert_allclose(slopes[1], 2 * (flat @ w_oi.T).T @ flat, rtol=1e-4, atol=1e-3)


def test_linear_sums_in_the_kind_asked_for():
    x, w_oi = jnp.ones((8, 24), jnp.bfloat16), jnp.ones((40, 24), jnp.bfloat16)
    assert linear(x, w_oi).dtype == jnp.bfloat16
    assert linear(x, w_oi, jnp.dtype("float32")).dtype == jnp.float32


@pytest.mark.parametrize("kind", [jnp.float32, jnp.bfloat16])
def test_patches_rotate_on_tpus_as_elsewhere(kind, monkeypatch):
    rng = np.random.default_rng(0)
    x_bpnh, angles = jnp.asarray(rng.normal(size=(2, 5, 3, 20)), kind), rng.normal(size=(2, 5, 10))
    given = x_bpnh, jnp.float32(angles)
    expected = rotate(*given)
    np.testing.assert_array_equal(rotate_patches(*given), expected)
    on_tpu = lambda *args, tpu, default: tpu(*args)
    monkeypatch.setattr(jax.lax, "platform_dependent", on_tpu)
    found = rotate_patches.__wrapped__(*given)
    assert found.dtype == kind
    np.testing.assert_allclose(*(np.float32(a) for a in (found, expected)), rtol=1e-6, atol=1e-6)
