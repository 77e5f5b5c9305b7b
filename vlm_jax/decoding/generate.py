"""Prefill and decoding as two jitted programs over a mesh, and a third for shared prefixes.

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
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from vlm_jax.attention.steering import Readings, Steering
from vlm_jax.batch import Batch
from vlm_jax.config import VLMConfig
from vlm_jax.decoding.sampling import Knobs, Sampling, row_keys, sample
from vlm_jax.models import VLM, Cache, Params, Prefix, abstract, merge
from vlm_jax.parallel import batch_sharding, replicated


@dataclasses.dataclass(frozen=True)
class Generated:
    """What a batch was answered.

    Attributes:
        tokens_bn: int32 [B, slots] generated ids, the stop id included; pad id after it.
        lengths_b: int32 [B] generated tokens before the stop id.
        ended_b: bool [B] whether a stop id was reached within the limit.
        readings: with steering, each reading's mean over a row's decode rows, leaves [B, L, N].
    """

    tokens_bn: np.ndarray
    lengths_b: np.ndarray
    ended_b: np.ndarray
    readings: Readings | None = None


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
    steering: Steering | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
    """What the loop carries."""

    count: Array
    tokens_bn: Array
    ended_b: Array
    logits_bv: Array
    cache: Cache
    readings: Readings | None  # sums over the decode rows of rows that had not ended


class Generator:
    """Compiled generation for one architecture on one mesh.

    Shapes are static: one compilation for each (batch, prompt length, image groups, slots), and
    where prompts share prefixes for each (prefixes, prefix length) too. All settings (limits, stop
    ids, temperature, seeds, logit biases, which row owns which prefix) are traced.
    """

    def __init__(self, config: VLMConfig, mesh: Mesh):
        self.mesh = mesh
        graphdef = abstract(config)[0]
        rows, whole = batch_sharding(mesh), replicated(mesh)

        def read_prefix(params: Params, batch: Batch, steering: Steering | None):
            return merge(graphdef, params).read_prefix(batch, steering)

        def prefill(params: Params, batch: Batch, steering, prefix=None, owner_b=None, *, slots):
            prefix = _everywhere(prefix, mesh)
            return merge(graphdef, params).prefill(batch, slots, steering, prefix, owner_b)

        def forward(params: Params, batch: Batch, steering, prefix=None, owner_b=None):
            prefix = _everywhere(prefix, mesh)
            return merge(graphdef, params).forward(batch, steering, prefix, owner_b)

        def decode(params: Params, read, cache, request, slots: int, greedy: bool):
            return _decode(merge(graphdef, params), read, cache, request, slots, greedy)

        self._read_prefix = jax.jit(read_prefix)
        self._prefill = jax.jit(prefill, static_argnames="slots")
        self._forward = jax.jit(forward)
        self._decode = jax.jit(decode, static_argnames=("slots", "greedy"), donate_argnames="cache")
        self._put_rows = functools.partial(jax.device_put, device=rows)
        self._put_whole = functools.partial(jax.device_put, device=whole)

    @property
    def compilations(self) -> int:
        """How many programs have been compiled so far."""
        jitted: tuple[Any, ...] = (
            self._read_prefix, self._prefill, self._forward, self._decode,
        )  # fmt: skip
        return sum(program._cache_size() for program in jitted)

    def read_prefix(self, params: Params, batch: Batch, steering: Steering | None = None) -> Prefix:
        """Reads the beginnings of I prompts, for any number of calls that go on from them.

        Args:
            params: parameters, already on the mesh.
            batch: each prompt up to its last image token, with its images. I need not divide over
                the mesh's data axis, but only then do its devices share the work.
            steering: of those who go on. One that leaves prefixes as they are
                (`Steering.leaves_prefix`) gives what none gives, by the same program.

        Returns:
            The prefixes, on the devices; no call consumes them.

        Raises:
            ValueError: the steering does not let prompts share prefixes (`Steering.shares_prefix`).
        """
        if steering is not None:
            steering.check_shares_prefix()
            steering = None if steering.leaves_prefix else steering
        put = self._put_whole if batch.size % self.mesh.shape["data"] else self._put_rows
        return self._read_prefix(params, put(batch), self._put_steering(steering))

    def logits(
        self,
        params: Params,
        batch: Batch,
        steering: Steering | None = None,
        *,
        prefix: Prefix | None = None,
        owner_b: Sequence[int] | np.ndarray | None = None,
    ) -> Float[Array, "B T V"]:
        """Returns float32 logits at every place of the batch; those at pads mean nothing.

        Args:
            params: parameters, already on the mesh.
            batch: prompts, or what follows their prefixes.
            steering: what to do to attention.
            prefix, owner_b: as for generation.
        """
        steering = self._put_steering(steering)
        before = self._before(batch, prefix, owner_b)
        return self._forward(params, self._put_rows(batch), steering, *before)

    def _before(
        self, batch: Batch, prefix: Prefix | None, owner_b: Sequence[int] | np.ndarray | None
    ) -> tuple[Prefix, Array] | tuple[()]:
        """Returns the arguments of the programs that say what the batch goes on from."""
        if prefix is None and owner_b is None:
            return ()
        if prefix is None or owner_b is None:
            raise ValueError("Give prefix and owner_b together, or neither.")
        owners, count = np.asarray(owner_b, np.int32), prefix.size
        if owners.shape != (batch.size,) or owners.min() < 0 or owners.max() >= count:
            raise ValueError(
                f"owner_b must say for each of the {batch.size} rows which of the {count} prefixes "
                f"it goes on from, as indices below {count}; it is {owner_b}."
            )
        return prefix, self._put_rows(owners)

    def _put_steering(self, steering: Steering | None) -> Steering | None:
        """Places steering: examples' own values with their rows, shared ones everywhere."""
        put = lambda leaf: (self._put_rows if leaf.shape[0] > 1 else self._put_whole)(leaf)
        return jax.tree.map(put, steering)

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
        steering: Steering | None = None,
        prefix: Prefix | None = None,
        owner_b: Sequence[int] | np.ndarray | None = None,
    ) -> Generated:
        """Generates.

        Args:
            params: parameters, already on the mesh.
            batch: prompts; their number must divide over the mesh's data axis. With a prefix, what
                follows the prefixes: tokens, kinds and positions as in the whole prompts, at least
                one token a row, `next_position_b` of the whole prompts and no images.
            max_new_tokens: limit of generated tokens a row.
            slots: static room for them (a bucket at least as large); `max_new_tokens` by default.
            stop_ids: ids that end a row.
            pad_id: what fills a row after its end.
            sampling: how tokens are chosen; greedy by default.
            row_ids: what seeds each row's random stream; 0, 1, ... by default.
            logit_bias: float32 [V] or [B, V] added to logits at every step.
            steering: what to do to attention; leaves [1, L, N] or [B, L, N].
            prefix: what `read_prefix` returned for I beginnings of prompts.
            owner_b: int32 [B], which of the I prefixes each row goes on from.

        Raises:
            ValueError: `owner_b` does not name a prefix for each row, or the prefixes were not read
                as the steering needs them.
        """
        before = self._before(batch, prefix, owner_b)
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
                np.int32(max_new_tokens),
                stops,
                np.int32(pad_id),
                sampling.knobs(),
                None,
                None,
                None,
            )
        )
        steering = self._put_steering(steering)
        request = dataclasses.replace(
            request,
            seeds_b=self._put_rows(seeds),
            bias_bv=self._put_rows(bias),
            steering=steering,
        )
        logits_bv, cache, readings = self._prefill(
            params, self._put_rows(batch), steering, *before, slots=slots
        )
        *found, _ = self._decode(
            params, (logits_bv, readings), cache, request, slots=slots, greedy=sampling.greedy
        )
        return Generated(*jax.device_get(found))


def _everywhere(prefix: Prefix | None, mesh: Mesh) -> Prefix | None:
    """Copies all prefixes to all data replicas, so that rows pick theirs without communication.

    The partitioner's own way to pick rows of a sharded array makes each device hold all B rows.
    """
    free = PartitionSpec.UNCONSTRAINED
    whole = lambda leaf: jax.lax.with_sharding_constraint(
        leaf, NamedSharding(mesh, PartitionSpec(None, *[free] * (leaf.ndim - 1)))
    )
    return prefix if mesh.shape["data"] == 1 else jax.tree.map(whole, prefix)


def _decode(
    model: VLM,
    read: tuple[Float[Array, "B V"], Readings | None],
    cache: Cache,
    request: _Request,
    slots: int,
    greedy: bool,
) -> tuple[Int[Array, "B slots"], Array, Array, Readings | None, Cache]:
    """Runs the loop; returns tokens, lengths, whether rows ended, readings, and the cache."""
    logits_bv, readings = read
    rows = logits_bv.shape[0]
    state = _State(
        count=jnp.int32(0),
        tokens_bn=jnp.full((rows, slots), request.pad_id, jnp.int32),
        ended_b=jnp.zeros(rows, bool),
        logits_bv=logits_bv,
        cache=cache,
        readings=readings,
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
        logits_bv, cache, new = model.step(token_b, state.cache, request.steering)
        going = (~state.ended_b)[:, None, None].astype(jnp.float32)
        readings = jax.tree.map(lambda total, now: total + going * now, state.readings, new)
        return choose(
            dataclasses.replace(state, logits_bv=logits_bv, cache=cache, readings=readings)
        )

    state = jax.lax.while_loop(
        lambda state: (state.count < limit) & ~jnp.all(state.ended_b), advance, choose(state)
    )
    is_stop_bn = jnp.isin(state.tokens_bn, request.stop_ids)
    first_b = jnp.where(jnp.any(is_stop_bn, axis=1), jnp.argmax(is_stop_bn, axis=1), state.count)
    # The first token is predicted by the prompt's last row, each later one by the token before it.
    steps_b = jnp.clip(first_b + state.ended_b, 1, state.count)[:, None, None]
    readings = jax.tree.map(lambda total: total / steps_b, state.readings)
    return state.tokens_bn, first_b.astype(jnp.int32), state.ended_b, readings, state.cache
