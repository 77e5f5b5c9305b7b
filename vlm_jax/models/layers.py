"""Small pieces that several towers share: norms, activations, rotary embeddings, parameters."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int


def weight(rngs: nnx.Rngs, *shape: int, fan_in: int) -> nnx.Param:
    """Declares a matrix: float32, normal with standard deviation fan_in ** -0.5."""
    return nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32) * fan_in**-0.5)


def matrix(rngs: nnx.Rngs, outputs: int, inputs: int) -> nnx.Param:
    """Declares a matrix for `linear`, drawn as `weight` draws one with its inputs first."""
    return nnx.Param(weight(rngs, inputs, outputs, fan_in=inputs)[...].T)


FEW_ROWS = 32
"""Up to so many rows, products on the CPU are faster with the matrix on the left."""


@functools.partial(jax.jit, static_argnames="kind", inline=True)
def linear(
    x: Float[Array, "*b I"], w_oi: Float[Array, "O I"], kind: jnp.dtype | None = None
) -> Float[Array, "*b O"]:
    """Multiplies each row with a matrix that has one row for each output, as checkpoints store it.

    On the CPU a product copies its right factor into tiles at every call; of few rows and a large
    matrix the rows should be the ones copied.

    Args:
        kind: of the sums and the result; by default as x.
    """
    plain = lambda x, w: jnp.einsum("...i,oi->...o", x, w, preferred_element_type=kind)
    rows = math.prod(x.shape[:-1])
    if not 1 < rows <= FEW_ROWS:
        return plain(x, w_oi)

    def turned(x: Array, w: Array) -> Array:
        # Without the barriers the compiler turns the product back.
        columns = jax.lax.optimization_barrier(x.reshape(rows, -1).T)
        out = jnp.matmul(w, columns, preferred_element_type=kind)
        return jax.lax.optimization_barrier(out).T.reshape(*x.shape[:-1], -1)

    return jax.lax.platform_dependent(x, w_oi, cpu=turned, default=plain)


def heads(
    x_bpd: Float[Array, "B P D"], w_d3nh: Float[Array, "D 3 N H"], bias_3nh: Float[Array, "3 N H"]
) -> list[Float[Array, "B P N H"]]:
    """Returns queries, keys and values, by three products.

    The result of one product would have to be copied to be split.
    """
    return [
        jnp.einsum("bpd,dnh->bpnh", x_bpd, w_d3nh[:, part]) + bias_3nh[part] for part in range(3)
    ]


def zeros(*shape: int) -> nnx.Param:
    """Declares a bias: float32 zeros."""
    return nnx.Param(jnp.zeros(shape, jnp.float32))


def ones(*shape: int) -> nnx.Param:
    """Declares a norm's gain: float32 ones."""
    return nnx.Param(jnp.ones(shape, jnp.float32))


@functools.partial(jax.jit, static_argnames="eps", inline=True)
def rms_norm(x: Float[Array, "*b D"], gain_d: Float[Array, " D"], eps: float) -> Array:
    """Divides by the root mean square and applies the gain, in float32; rounds once."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (normed * gain_d).astype(x.dtype)


def layer_norm(x: Float[Array, "*b D"], scale_d: Array, bias_d: Array, eps: float) -> Array:
    """Standardises over the last dim, scales and shifts, in float32, and rounds once."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + eps)
    return (normed * scale_d + bias_d).astype(x.dtype)


def plus(x: Array, bias: nnx.Param | None) -> Array:
    """Adds a bias where there is one."""
    return x if bias is None else x + bias[...]


def quick_gelu(x: Array) -> Array:
    """The sigmoid approximation of GELU that the original CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def inverse_frequencies(dim: int, theta: float) -> np.ndarray:
    """Returns the dim / 2 rotary frequencies theta ** (-2 i / dim), float32."""
    return (1.0 / theta ** (np.arange(0, dim, 2, dtype=np.float32) / dim)).astype(np.float32)


def text_angles(
    positions_bt3: Int[Array, "B T 3"],
    head_dim: int,
    theta: float,
    factor: float,
    axes: tuple[int, ...] | None,
) -> Float[Array, "B T {head_dim//2}"]:
    """Returns rotary angles of a decoder.

    Args:
        positions_bt3: time, height and width of each token.
        head_dim: twice the number of frequencies.
        theta: base of the frequencies.
        factor: what they are divided by.
        axes: which position each frequency follows (`DecoderConfig.rope_axes`); None: all the
            first.
    """
    frequencies = inverse_frequencies(head_dim, theta) / np.float32(factor)
    if axes is None:
        return positions_bt3[..., :1].astype(jnp.float32) * frequencies
    return positions_bt3[..., np.asarray(axes)].astype(jnp.float32) * frequencies


def patch_angles(
    positions: Int[Array, "*b 2"], head_dim: int, theta: float
) -> Float[Array, "*b {head_dim//2}"]:
    """Returns rotary angles of image patches: the first half follows rows, the second columns."""
    frequencies = inverse_frequencies(head_dim // 2, theta)
    angles = positions.astype(jnp.float32)[..., None] * frequencies
    return angles.reshape(*positions.shape[:-1], head_dim // 2)


def halves(x: Float[Array, "*b H"]) -> Float[Array, "*b H"]:
    """Puts neighbours that turn together, (0, 1), (2, 3), ..., H/2 apart, as `rotate` wants them.

    Of queries and keys alike, so that their products stay what they are.
    """
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    return jnp.concatenate([pairs[..., 0], pairs[..., 1]], axis=-1)


@functools.partial(jax.jit, inline=True)
def rotate(x_btnh: Float[Array, "B T N H"], angles: Float[Array, "B T H/2"]) -> Array:
    """Rotates each pair (i, i + H/2) of a head by its angle, in float32."""
    wide = x_btnh.astype(jnp.promote_types(x_btnh.dtype, jnp.float32))
    first, second = jnp.split(wide, 2, axis=-1)
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_btnh.dtype)


@functools.partial(jax.jit, inline=True)
def rotate_patches(
    x_bpnh: Float[Array, "B P N H"], angles: Float[Array, "B P H/2"]
) -> Float[Array, "B P N H"]:
    """Rotates as `rotate` does, heads of a vision tower: their widths are 64 to 80.

    On TPU XLA would write halves of such heads as float32, one by one, and join them again. There a
    product with a permutation puts the halves in each other's place, exactly.
    """

    def by_product(x: Array, angles: Array) -> Array:
        width, wide = x.shape[-1], jnp.promote_types(x.dtype, jnp.float32)
        swap_hh = jnp.roll(jnp.eye(width, dtype=x.dtype), width // 2, axis=1)
        swapped = jnp.einsum("bpnh,hj->bpnj", x, swap_hh, precision=jax.lax.Precision.HIGHEST)
        cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
        cos, sin = jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)
        return (x.astype(wide) * cos + swapped.astype(wide) * sin).astype(x.dtype)

    return jax.lax.platform_dependent(x_bpnh, angles, tpu=by_product, default=rotate)
