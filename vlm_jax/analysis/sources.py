"""Where the tokens of an answer come from: contributions of heads, split by what they read.

A head's output is a sum over keys, so a gate on every head (`contribution`) splits into gates on
what it reads from the system prompt, the image, the question, and the answer so far. With P the
probability of a token, the support of a part is d log P / d gate at gates of 1: positive where the
token leans on it, to first order the log-probability that it would lose without it. Supports of the
four parts add up to the head's.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vlm_jax.analysis.ablation import SCOPES, Places, in_batches
from vlm_jax.attention import Segment, Visibility, attend
from vlm_jax.batch import Batch, Kind
from vlm_jax.config import VLMConfig
from vlm_jax.models import Network, Params, abstract, merge
from vlm_jax.models.cache import prompt_order
from vlm_jax.models.hooks import Hooks

SOURCES = ("system", "image", "question", "answer")
"""What keys belong to. System is all that is before the first image; an answer begins behind its
prompt."""


class SourceSupport:
    """Supports for one architecture.

    Args:
        config: the model.
        rows: tokens in a batch, each with a backward pass through its whole sequence.
    """

    def __init__(self, config: VLMConfig, rows: int = 8):
        self.rows = rows
        graphdef = abstract(config)[0]
        self._embed = jax.jit(lambda params, batch: merge(graphdef, params).embed(batch))
        self._slopes = {
            scope: jax.jit(functools.partial(_slopes, graphdef, scope)) for scope in SCOPES
        }

    def __call__(
        self,
        params: Params,
        batch: Batch,
        starts_b: np.ndarray,
        places: Places,
        scope: str = "row",
    ) -> Float[np.ndarray, "m L N 4"]:
        """Returns the support of each token by each head's reading of each of `SOURCES`.

        Args:
            params: the model.
            batch: prompts with their answers (`Processor.batch_answers`).
            starts_b: index of each answer's first token.
            places: the tokens.
            scope: gates at the "row" that predicts a token, where all that it reads is written
                already; or at "all" rows, so that what earlier rows took from a part counts too.
        """
        x_btd = self._embed(params, batch)
        rest = jax.tree.map(jnp.asarray, dataclasses.replace(batch, images=None))
        of_key_bs = jnp.asarray(sources_of(batch, starts_b))

        def probe(at: np.ndarray) -> Array:
            sample_r = places.sample_m[at]
            asked = sample_r, places.query_m[at], places.target_m[at]
            return self._slopes[scope](params, rest, x_btd, of_key_bs, *asked)

        return in_batches(probe, len(places.sample_m), self.rows)


def sources_of(batch: Batch, starts_b: np.ndarray) -> np.ndarray:
    """Returns the index in `SOURCES` of each place of a batch, int32 [B, T]; -1 for padding."""
    kinds_bt = np.asarray(batch.kinds_bt)
    place_t = np.arange(kinds_bt.shape[1])
    text_bt = np.where(place_t < np.asarray(starts_b)[:, None], 2, 3)
    known = {Kind.SYSTEM: 0, Kind.IMAGE: 1, Kind.TEXT: text_bt}
    found_bt = np.full(kinds_bt.shape, -1)
    for kind, source in known.items():
        found_bt = np.where(kinds_bt == kind, source, found_bt)
    return found_bt.astype(np.int32)


def _slopes(
    graphdef,
    scope: str,
    params: Params,
    batch: Batch,
    x_btd: Array,
    of_key_bs: Array,
    sample_r: Array,
    query_r: Array,
    target_r: Array,
) -> Float[Array, "R L N 4"]:
    """Returns d log P / d gate of each run; runs are independent, so one pass gives all."""
    model: Network = merge(graphdef, params)
    config = model.decoder.config
    picked: Batch = jax.tree.map(lambda leaf: leaf[sample_r], batch)
    length = picked.tokens_bt.shape[1]
    keys = Visibility(order=prompt_order(picked))
    places = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (len(sample_r), length))
    acts_rt = places == query_r[:, None] if scope == "row" else jnp.ones(places.shape, bool)
    dtype = jnp.promote_types(jnp.float32, x_btd.dtype)
    ones = jnp.ones((len(sample_r), config.num_layers, config.num_heads, len(SOURCES)), dtype)

    def total(gate_rlnc: Array) -> Array:
        hidden_rtd = model.decoder(
            x_btd[sample_r],
            picked.positions_bt3,
            Visibility(order=places),
            lambda layer, k, v: [Segment(k, v, keys)],
            causal=True,
            hooks=Hooks(_Gates((gate_rlnc, of_key_bs[sample_r], acts_rt)).attend),
        )
        hidden_rd = jnp.take_along_axis(hidden_rtd, query_r[:, None, None], axis=1)[:, 0]
        logits_rv = jax.nn.log_softmax(model.decoder.logits(hidden_rd), axis=-1)
        return jnp.sum(jnp.take_along_axis(logits_rv, target_r[:, None], axis=-1))

    return jax.grad(total)(ones)


@dataclasses.dataclass
class _Gates:
    """Unsteered attention whose reading of each source has a gate in each layer and head.

    Attributes:
        gates: the gates [R, L, N, 4], the source of each key [R, S], and the rows that they act on
            [R, T].
        layer: the next one.
    """

    gates: tuple[Array, Array, Array]
    layer: int = 0

    def attend(
        self,
        q_btnh: Array,
        segments: Sequence[Segment],
        queries: Visibility,
        causal: bool,
        scale: float | None = None,
    ) -> Array:
        """Attends in the next layer."""
        gate_rlnc, of_key_rs, acts_rt = self.gates
        (segment,) = segments
        total: Array | float = 0.0
        for source in range(len(SOURCES)):
            own_rs = (of_key_rs == source)[:, None, :, None]
            part = dataclasses.replace(segment, v_bksh=jnp.where(own_rs, segment.values_bksh, 0))
            gate_rn = gate_rlnc[:, self.layer, :, source]
            gate_rtn = jnp.where(acts_rt[..., None], gate_rn[:, None], 1.0).astype(q_btnh.dtype)
            out_rtnh = attend(q_btnh, [part], queries, causal=causal, scale=scale)
            total = total + gate_rtn[..., None] * out_rtnh
        self.layer += 1
        return jnp.asarray(total)
