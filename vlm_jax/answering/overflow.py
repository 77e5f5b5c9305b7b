"""What float16 cannot hold: found in what a layer keeps, before it is taken for an answer."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vlm_jax.attention.steering import Steering
from vlm_jax.batch import Batch
from vlm_jax.decoding import Generator
from vlm_jax.errors import UserError
from vlm_jax.models import Params, Prefix


def refuse_overflow(
    generator: Generator,
    params: Params,
    batch: Batch,
    first_b: np.ndarray,
    steering: Steering | None = None,
    prefix: Prefix | None = None,
    owner_b: Sequence[int] | None = None,
    sharing: int | None = None,
) -> None:
    """Refuses answers to prompts whose activations are not finite.

    The greatest of logits that are all NaN is the first: token 0, an exclamation mark in many
    vocabularies, again and again. Only float16 is looked at, whose range ends at 65,504, and only
    batches in which an answer begins with that token.

    Args:
        generator, params: of the model.
        batch: prompts, or what follows their prefixes.
        first_b: each row's first generated token.
        steering, prefix, owner_b, sharing: as for generation.

    Raises:
        UserError: naming the layer whose output overflowed.
    """
    if next(iter(params.values())).dtype != jnp.float16 or jax.process_count() > 1:
        return
    if not (np.asarray(first_b) == 0).any():
        return
    before = {"prefix": prefix, "owner_b": owner_b, "sharing": sharing}
    logits_btv = generator.logits(params, batch, steering, **before)
    last = (np.asarray(batch.lengths_b) - 1)[:, None, None]
    if bool(np.isfinite(np.take_along_axis(logits_btv, last, axis=1)).all()):
        return
    read = generator.read_prefix(params, batch) if prefix is None else prefix
    for layer, segment in enumerate(read.segments):
        # Keys of a layer are made of what the layer before it gave out.
        if not bool(jnp.isfinite(segment.k_bksh).all()):
            where = f"layer {layer - 1} of the decoder" if layer else "the embeddings"
            break
    else:
        where = (
            f"layer {len(read.segments) - 1} of the decoder" if prefix is None else "the decoder"
        )
    raise UserError(
        f"float16 overflows in {where}: activations exceed 65504 and answers would mean nothing. "
        "Take dtype bfloat16 or float32."
    )
