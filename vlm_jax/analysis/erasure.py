"""How much an answer leans on each token: its log-probability when no row sees the token's key."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vlm_jax.analysis.ablation import Places, in_batches
from vlm_jax.attention import NEVER, Segment, Visibility
from vlm_jax.batch import Batch
from vlm_jax.config import VLMConfig
from vlm_jax.models import Network, Params, abstract, merge
from vlm_jax.models.cache import prompt_order


class TokenErasure:
    """Erases tokens for one architecture.

    Args:
        config: the model.
        rows: erased tokens in a batch, each a pass through the whole sequence.
    """

    def __init__(self, config: VLMConfig, rows: int = 8):
        self.rows = rows
        graphdef = abstract(config)[0]
        self._embed = jax.jit(lambda params, batch: merge(graphdef, params).embed(batch))
        self._log_probability = jax.jit(functools.partial(_log_probability, graphdef))

    def __call__(self, params: Params, batch: Batch, places: Places) -> Float[np.ndarray, "S m"]:
        """Returns log P of each place's token, less what it is with each token erased.

        A token is erased by hiding its key from all rows in all layers; its embedding and the
        positions of the others stay. Positive where the place's token leans on it; 0 where the
        place does not see it.

        Args:
            params: the model.
            batch: one sequence of S tokens.
            places: tokens of it.
        """
        x_1td = self._embed(params, batch)
        rest = jax.tree.map(jnp.asarray, dataclasses.replace(batch, images=None))
        asked = params, rest, x_1td, places.query_m, places.target_m
        run = lambda erased: self._log_probability(*asked, jnp.asarray(erased, jnp.int32))
        length = int(np.asarray(batch.lengths_b)[0])
        left_sm = in_batches(run, length, self.rows)
        whole_m = np.asarray(run(np.full(self.rows, -1)))[0]
        return whole_m - left_sm


def _log_probability(
    graphdef,
    params: Params,
    batch: Batch,
    x_1td: Array,
    query_m: Int[Array, " m"],
    target_m: Int[Array, " m"],
    erased_r: Int[Array, " R"],
) -> Float[Array, "R m"]:
    """Returns log P of tokens with one key of each run hidden; -1 hides none."""
    model: Network = merge(graphdef, params)
    runs, length = len(erased_r), x_1td.shape[1]
    places = jnp.arange(length, dtype=jnp.int32)
    order_rt = jnp.where(places == erased_r[:, None], NEVER, prompt_order(batch))
    keys = Visibility(order=order_rt)
    hidden_rtd = model.decoder(
        jnp.broadcast_to(x_1td, (runs, *x_1td.shape[1:])),
        jnp.broadcast_to(batch.positions_bt3, (runs, *batch.positions_bt3.shape[1:])),
        Visibility(order=jnp.broadcast_to(places, (runs, length))),
        lambda layer, k, v: [Segment(k, v, keys)],
        causal=True,
    )
    logits_rmv = jax.nn.log_softmax(model.decoder.logits(hidden_rtd[:, query_m]), axis=-1)
    return jnp.take_along_axis(logits_rmv, target_m[None, :, None], axis=-1)[..., 0]
