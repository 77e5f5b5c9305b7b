"""Pieces that towers share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_jax.models.layers import linear


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
