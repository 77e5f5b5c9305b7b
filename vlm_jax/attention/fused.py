"""One causal segment read by a vendor's fused kernel, where there is one: cuDNN's on GPUs.

What it returns is what the tiles return, so that everything else (the edited last row, gains of
heads) goes on from either. Its log-sum-exp is bfloat16: fine for one segment, whose output does not
use it. Merging segments, or reading what is inside tiles, needs float32, so those use tiles.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, Float

from vlm_jax.attention.blockwise import Read, Tap, segment_attention
from vlm_jax.attention.segment import Segment, Visibility

TILES = "tiles"
_LARGEST_HEAD = 128
_TOLERANCE = 0.02, 0.05  # of outputs of order 1 and log-sum-exps of order 5 in bfloat16


def read_segments(
    q_btnh: Float[Array, "B T N H"],
    segments: Sequence[Segment],
    queries: Visibility,
    *,
    causal: bool,
    scale: float | None = None,
    tap: Tap | None = None,
) -> list[Read]:
    """Attends to each of some segments, by the fused kernel where it does what is asked.

    Args:
        segments: the keys.
        causal: if there is one segment, its keys are the queries' own places, in order and padded
            on the right, if at all. Rows of padding then read something that means nothing.
        q_btnh, queries, scale, tap: as `segment_attention` takes them.
    """
    causal = causal and len(segments) == 1
    fits = causal and tap is None and _fits(q_btnh, segments[0], queries)
    if fits and (kernel := choice()) != TILES:
        return [by_kernel(q_btnh, segments[0], scale, kernel)]
    return [
        segment_attention(q_btnh, segment, queries, causal=causal, scale=scale, tap=tap)
        for segment in segments
    ]


def _fits(q_btnh: Array, segment: Segment, queries: Visibility) -> bool:
    width = q_btnh.shape[-1]
    one_width = segment.values_bksh.shape[-1] == width
    heads_fit = one_width and width % 8 == 0 and width <= _LARGEST_HEAD
    return heads_fit and q_btnh.dtype in (jnp.bfloat16, jnp.float16) and queries.group is None


def by_kernel(
    q_btnh: Float[Array, "B T N H"], segment: Segment, scale: float | None, kernel: str
) -> Read:
    """Reads a causal segment by one of the implementations of `jax.nn.dot_product_attention`."""
    out_btnh, lse_btn = jax.nn.dot_product_attention(
        q_btnh,
        segment.k_bksh.transpose(0, 2, 1, 3),
        segment.values_bksh.transpose(0, 2, 1, 3),
        scale=scale,
        is_causal=True,
        implementation=kernel,  # type: ignore[arg-type]
        return_residual=True,
    )
    return Read(out_btnh.astype(jnp.float32), lse_btn.astype(jnp.float32))


@functools.cache
def choice() -> str:
    """How causal segments are read here, "cudnn" or "tiles"; tried and logged at the first call."""
    if jax.default_backend() != "gpu":
        return TILES
    reason = fault("cudnn")
    if reason:
        logging.info("Prompts attend in tiles: cuDNN's fused attention %s.", reason)
        return TILES
    logging.info("Prompts attend by cuDNN's fused attention.")
    return "cudnn"


def fault(kernel: str) -> str:
    """Says what is wrong with a kernel on this machine; empty if it gives what the tiles give."""
    rng = np.random.default_rng(0)
    with jax.ensure_compile_time_eval():
        draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.bfloat16)
        queries = Visibility(order=jnp.arange(128, dtype=jnp.int32)[None])
        k_bksh, v_bksh = draw(1, 2, 128, 64), draw(1, 2, 128, 64)
        q_btnh, segment = draw(1, 128, 4, 64), Segment(k_bksh, v_bksh, queries)
        try:
            found = by_kernel(q_btnh, segment, None, kernel)
            expected = segment_attention(q_btnh, segment, queries, causal=True)
            pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
            apart = [float(jnp.max(jnp.abs(one - other))) for one, other in pairs]
        except Exception as error:  # whatever a missing or an old library makes of it
            said = str(error) or type(error).__name__
            return f"does not run here ({said.splitlines()[0]})"
    if all(far <= allowed for far, allowed in zip(apart, _TOLERANCE, strict=True)):
        return ""
    return f"is {max(apart):.2g} from the tiles' result"
