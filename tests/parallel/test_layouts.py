"""Parameters in an order of dims of a device's own."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from vlm_jax.parallel import lay_out, make_mesh, param_shardings
from vlm_jax.parallel.layouts import HEADS_FIRST, layout_of, param_formats


def heads_first(path, sharding):
    """What a TPU wants, here."""
    return HEADS_FIRST if path.endswith("_dnh") else None


def test_an_order_changes_where_values_lie_and_nothing_else():
    plain = {
        "decoder/layers/0/wq_dnh": np.arange(24.0, dtype=np.float32).reshape(2, 3, 4),
        "decoder/layers/0/wo_nhd": np.ones((3, 4, 2), np.float32),
    }
    shardings = param_shardings(plain, make_mesh())
    assert layout_of("decoder/layers/0/wq_dnh", shardings["decoder/layers/0/wq_dnh"]) is None
    params = {path: jax.device_put(array, shardings[path]) for path, array in plain.items()}
    before = dict(params)
    lay_out(params)
    assert all(params[path] is before[path] for path in params), "a CPU keeps its own"
    lay_out(params, heads_first)
    laid = params["decoder/layers/0/wq_dnh"]
    assert laid.format.layout.major_to_minor == (1, 0, 2)
    assert laid.sharding == shardings["decoder/layers/0/wq_dnh"]
    assert params["decoder/layers/0/wo_nhd"] is before["decoder/layers/0/wo_nhd"]
    np.testing.assert_array_equal(np.asarray(laid), plain["decoder/layers/0/wq_dnh"])
    lay_out(params, heads_first)
    assert params["decoder/layers/0/wq_dnh"] is laid, "it is so already"
    product = jax.jit(lambda x_d, w_dnh: jnp.einsum("d,dnh->nh", x_d, w_dnh))
    ones = np.ones(2, np.float32)
    np.testing.assert_array_equal(product(ones, laid), plain["decoder/layers/0/wq_dnh"].sum(0))
    formats = param_formats(shardings, heads_first)
    shape = jax.ShapeDtypeStruct((2, 3, 4), np.float32, sharding=formats["decoder/layers/0/wq_dnh"])
    compiled = product.lower(ones, shape).compile()
    assert compiled.input_formats[0][1].layout.major_to_minor == (1, 0, 2)
    assert isinstance(formats["decoder/layers/0/wo_nhd"], NamedSharding)
