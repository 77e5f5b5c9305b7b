"""Prefill and decoding as two jitted programs over a mesh.

Decoding is one `lax.while_loop` inside one jit that ends when every row has. Its cache is donated,
and returned, so that the buffers of new tokens are updated in place.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from vlm_jax.batch import Batch
from vlm_jax.config import VLMConfig
from vlm_jax.decoding.sampling import Knobs, Sampling, row_keys, sample
from vlm_jax.models import Cache, Params, abstract, merge
from vlm_jax.parallel import batch_sharding, replicated


@dataclasses.dataclass(frozen=True)
class Generated:
    """What a batch was answered.

    Attributes:
        tokens_bn: int32 [B, slots] generated ids, the stop id included; pad id after it.
        lengths_b: int32 [B] generated tokens before the stop id.
        ended_b: bool [B] whether a stop id was reached within the limit.
    """

    tokens_bn: np.ndarray
    lengths_b: np.ndarray
    ended_b: np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Request:
    """Traced settings of one call; the batch dim leads where there is one."""

    limit: Any  # int32 scalar, tokens to generate
    stop_ids: Any  # int32 [stops]
    pad_id: Any  # int32 scalar
    knobs: Knobs
    seeds_b: Any  # uint32 [B]
    bias_bv: Any  # float32 [B, V] added to logits, or None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
    """What the loop carries."""

    count: Array
    tokens_bn: Array
    ended_b: Array
    logits_bv: Array
    cache: Cache


class Generator:
    """Compiled generation for one architecture on one mesh.

    Shapes are static: one compilation for each (batch, prompt length, image groups, slots). All
    settings (limits, stop ids, temperature, seeds, logit biases) are traced.
    """

    def __init__(self, config: VLMConfig, mesh: Mesh):
        self.mesh = mesh
        graphdef = abstract(config)[0]
        rows, whole = batch_sharding(mesh), replicated(mesh)

        def prefill(params: Params, batch: Batch, slots: int):
            return merge(graphdef, params).prefill(batch, slots)

        def forward(params: Params, batch: Batch):
            return merge(graphdef, params).forward(batch)

        def decode(params: Params, logits_bv, cache, request, slots: int, greedy: bool):
            return _decode(merge(graphdef, params), logits_bv, cache, request, slots, greedy)

        self._prefill = jax.jit(prefill, static_argnames="slots")
        self._forward = jax.jit(forward)
        self._decode = jax.jit(decode, static_argnames=("slots", "greedy"), donate_argnames="cache")
        self._put_rows = functools.partial(jax.device_put, device=rows)
        self._put_whole = functools.partial(jax.device_put, device=whole)

    @property
    def compilations(self) -> int:
        """How many programs have been compiled so far."""
        jitted: tuple[Any, ...] = (self._prefill, self._forward, self._decode)
        return sum(program._cache_size() for program in jitted)

    def logits(self, params: Params, batch: Batch) -> Float[Array, "B T V"]:
        """Returns float32 logits at every place of the prompts."""
        return self._forward(params, self._put_rows(batch))

    def __call__(
        self,
        params: Params,
        batch: Batch,
        *,
        max_new_tokens: int,
        slots: int | None = None,
        stop_ids: Sequence[int] = (),
        pad_id: int = 0,
        sampling: Sampling | None = None,
        row_ids: Sequence[int] | None = None,
        logit_bias: np.ndarray | None = None,
    ) -> Generated:
        """Generates.

        Args:
            params: parameters, already on the mesh.
            batch: prompts; their number must divide over the mesh's data axis.
            max_new_tokens: limit of generated tokens a row.
            slots: static room for them (a bucket at least as large); `max_new_tokens` by default.
            stop_ids: ids that end a row.
            pad_id: what fills a row after its end.
            sampling: how tokens are chosen; greedy by default.
            row_ids: what seeds each row's random stream; 0, 1, ... by default.
            logit_bias: float32 [V] or [B, V] added to logits at every step.
        """
        slots = slots or max_new_tokens
        sampling = sampling or Sampling()
        rows = np.arange(batch.size) if row_ids is None else np.asarray(row_ids)
        seeds = np.random.SeedSequence(sampling.seed).generate_state(1)[0] ^ (
            rows.astype(np.uint32) * np.uint32(2654435761)
        )
        stops = np.asarray(sorted(set(stop_ids)) or [-1], np.int32)
        bias = logit_bias
        if bias is not None:
            bias = np.broadcast_to(np.asarray(bias, np.float32), (batch.size, bias.shape[-1]))
        request = self._put_whole(
            _Request(
                np.int32(max_new_tokens), stops, np.int32(pad_id), sampling.knobs(), None, None
            )
        )
        request = dataclasses.replace(
            request, seeds_b=self._put_rows(seeds), bias_bv=self._put_rows(bias)
        )
        logits_bv, cache = self._prefill(params, self._put_rows(batch), slots=slots)
        tokens_bn, lengths_b, ended_b, _ = self._decode(
            params, logits_bv, cache, request, slots=slots, greedy=sampling.greedy
        )
        return Generated(*jax.device_get((tokens_bn, lengths_b, ended_b)))


def _decode(
    model,
    logits_bv: Float[Array, "B V"],
    cache: Cache,
    request: _Request,
    slots: int,
    greedy: bool,
) -> tuple[Int[Array, "B slots"], Array, Array, Cache]:
    """Runs the loop; returns tokens, lengths, whether rows ended, and the cache."""
    rows = logits_bv.shape[0]
    state = _State(
        count=jnp.int32(0),
        tokens_bn=jnp.full((rows, slots), request.pad_id, jnp.int32),
        ended_b=jnp.zeros(rows, bool),
        logits_bv=logits_bv,
        cache=cache,
    )
    limit = jnp.minimum(request.limit, slots)

    def choose(state: _State) -> _State:
        """Takes one token a row from the logits at hand."""
        biased_bv = state.logits_bv
        if request.bias_bv is not None:
            biased_bv = biased_bv + request.bias_bv
        if greedy:
            token_b = jnp.argmax(biased_bv, axis=-1).astype(jnp.int32)
        else:
            token_b = sample(biased_bv, row_keys(request.seeds_b, state.count), request.knobs)
        token_b = jnp.where(state.ended_b, request.pad_id, token_b)
        tokens_bn = jax.lax.dynamic_update_slice_in_dim(
            state.tokens_bn, token_b[:, None], state.count, axis=1
        )
        ended_b = state.ended_b | jnp.isin(token_b, request.stop_ids)
        return dataclasses.replace(
            state, count=state.count + 1, tokens_bn=tokens_bn, ended_b=ended_b
        )

    def advance(state: _State) -> _State:
        """Reads the last token and chooses the next."""
        token_b = jax.lax.dynamic_index_in_dim(
            state.tokens_bn, state.count - 1, axis=1, keepdims=False
        )
        logits_bv, cache = model.step(token_b, state.cache)
        return choose(dataclasses.replace(state, logits_bv=logits_bv, cache=cache))

    state = jax.lax.while_loop(
        lambda state: (state.count < limit) & ~jnp.all(state.ended_b), advance, choose(state)
    )
    is_stop_bn = jnp.isin(state.tokens_bn, request.stop_ids)
    first_b = jnp.where(jnp.any(is_stop_bn, axis=1), jnp.argmax(is_stop_bn, axis=1), state.count)
    return state.tokens_bn, first_b.astype(jnp.int32), state.ended_b, state.cache
