"""The readable oracle: one softmax over the whole T x S map. Tests compare everything with it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vlm_jax.attention.segment import MASKED, Segment, Visibility


def dense_logits(
    q_btnh: Float[Array, "B T N H"],
    segments: Sequence[Segment],
    queries: Visibility,
    scale: float | None = None,
) -> Float[Array, "B N T S"]:
    """Returns masked float32 logits over the keys of all segments, concatenated."""
    batch, length, heads, dim = q_btnh.shape
    k_bksh = jnp.concatenate([s.k_bksh for s in segments], axis=2)
    kv_heads = k_bksh.shape[1]
    q = q_btnh.reshape(batch, length, kv_heads, heads // kv_heads, dim)
    logits = jnp.einsum(
        "btkgh,bksh->bkgts",
        q,
        k_bksh,
        preferred_element_type=jnp.promote_types(q.dtype, jnp.float32),
    )
    logits = logits.reshape(batch, heads, length, -1) * (dim**-0.5 if scale is None else scale)
    masks = [
        jnp.ones((batch, length, s.length), bool) if m is None else m
        for s in segments
        for m in [queries.sees(s.keys)]
    ]
    return jnp.where(jnp.concatenate(masks, axis=2)[:, None], logits, MASKED)


def dense_attention(
    q_btnh: Float[Array, "B T N H"],
    segments: Sequence[Segment],
    queries: Visibility,
    scale: float | None = None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T N"]]:
    """Returns output and log-sum-exp of attention over all segments, through the whole map."""
    logits = dense_logits(q_btnh, segments, queries, scale)
    weights = jax.nn.softmax(logits, axis=-1)
    v_bksh = jnp.concatenate([s.v_bksh for s in segments], axis=2)
    batch, heads, length, keys = weights.shape
    kv_heads = v_bksh.shape[1]
    grouped = weights.reshape(batch, kv_heads, heads // kv_heads, length, keys)
    out = jnp.einsum("bkgts,bksh->btkgh", grouped, v_bksh.astype(weights.dtype))
    lse = jax.nn.logsumexp(logits, axis=-1).transpose(0, 2, 1)
    return out.reshape(q_btnh.shape), lse
