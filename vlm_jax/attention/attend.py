"""The attention function that every layer of every tower calls once."""

from collections.abc import Callable, Sequence

from jaxtyping import Array, Float

from vlm_jax.attention.blockwise import segment_attention
from vlm_jax.attention.dense import dense_attention
from vlm_jax.attention.segment import Segment, Visibility, merge


def _blockwise(q_btnh, segments, seen, causal, scale):
    reads = [
        segment_attention(q_btnh, s, seen, causal=causal and len(segments) == 1, scale=scale)
        for s in segments
    ]
    return merge([out for out, _ in reads], [lse for _, lse in reads])


def _dense(q_btnh, segments, seen, causal, scale):
    return dense_attention(q_btnh, segments, seen, scale)


BACKENDS: dict[str, Callable] = {"blockwise": _blockwise, "dense": _dense}
"""Forms of the same function. All return (output, log-sum-exp) in float32 or wider."""


def attend(
    q_btnh: Float[Array, "B T N H"],
    segments: Sequence[Segment],
    seen: Visibility | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
    backend: str = "blockwise",
    steering: None = None,
) -> Float[Array, "B T N H"]:
    """Attends to segments of keys as if they were one.

    Args:
        q_btnh: queries; query head n reads key head n // (N / K).
        segments: disjoint segments of keys and values.
        seen: order and group of each query; None when every query sees every key.
        causal: queries and the one segment are the same places in the same order, so that tiles
            above the diagonal may be skipped. The mask itself always comes from `seen`.
        scale: factor on the logits; H ** -0.5 when None.
        backend: one of `BACKENDS`.
        steering: what to do to this layer's heads and masses; None is the vanilla function.

    Returns:
        The output in the queries' dtype. Softmax and sums are float32 or wider.
    """
    out, _ = BACKENDS[backend](q_btnh, segments, seen or Visibility(), causal, scale)
    return out.astype(q_btnh.dtype)
