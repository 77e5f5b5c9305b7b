"""How likely a decoder finds text that it is given, without images."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vlm_jax.analysis.ablation import in_batches
from vlm_jax.attention import Segment, Visibility
from vlm_jax.config import VLMConfig
from vlm_jax.models import Network, Params, abstract, merge


def passages(texts: Sequence[Sequence[int]], length: int, most: int) -> Int[np.ndarray, "P T"]:
    """Returns stretches of texts, all equally long, spread evenly over those that there are.

    Of texts of 7 and 4 ids and length 3 there are ids 0 to 2 and 3 to 5 of the first and 0 to 2 of
    the second; with `most` 2 the first and the last of these three are taken.

    Args:
        texts: ids of each.
        length: of a passage, in ids.
        most: how many passages.
    """
    starts = [
        (n, at) for n, ids in enumerate(texts) for at in range(0, len(ids) - length + 1, length)
    ]
    count = min(most, len(starts))
    chosen = np.linspace(0, len(starts) - 1, count).round().astype(int) if count else []
    found = [texts[n][at : at + length] for n, at in (starts[index] for index in chosen)]
    return np.asarray(found, np.int32).reshape(count, length)


class TokenLosses:
    """Losses of given tokens, for one architecture; a program for each length of passage.

    Args:
        config: the model.
        rows: passages in a batch.
    """

    def __init__(self, config: VLMConfig, rows: int = 4):
        self.rows = rows
        self._losses = jax.jit(functools.partial(_losses, abstract(config)[0]))

    def __call__(
        self, params: Params, tokens_pt: Int[np.ndarray, "P T"]
    ) -> Float[np.ndarray, "P T-1"]:
        """Returns -log P(token | those before it in its passage) in nats; of the first no loss.

        Args:
            params: the model.
            tokens_pt: ids.
        """
        probe = lambda at: self._losses(params, tokens_pt[at])
        return in_batches(probe, len(tokens_pt), self.rows)


def _losses(graphdef, params: Params, tokens_pt: Int[Array, "P T"]) -> Float[Array, "P U"]:
    model: Network = merge(graphdef, params)
    places = jnp.broadcast_to(jnp.arange(tokens_pt.shape[1], dtype=jnp.int32), tokens_pt.shape)
    seen = Visibility(order=places)
    hidden_ptd = model.decoder(
        model.decoder.embed(tokens_pt),
        jnp.repeat(places[..., None], 3, axis=-1),
        seen,
        lambda layer, k, v: [Segment(k, v, seen)],
        causal=True,
    )
    logits_puv = model.decoder.logits(hidden_ptd[:, :-1]).astype(jnp.float32)
    target_pu1 = tokens_pt[:, 1:, None]
    of_target_pu = jnp.take_along_axis(logits_puv, target_pu1, axis=-1)[..., 0]
    return jax.nn.logsumexp(logits_puv, axis=-1) - of_target_pu
