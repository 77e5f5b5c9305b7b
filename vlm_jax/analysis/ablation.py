"""How much each head contributes to the probability of tokens: ablate it, or differentiate.

Two scopes. "row": the head is zero where the token is predicted and nowhere else, so that all other
rows' keys and values stay as they are. "all": it is zero at every row of the sequence, prompt
included. In scope "row" a head may also become its mean over other rows, which leaves the stream
nearer to what later layers are used to than zero does.

Every ablated run is a row of a batch with head gains of its own, 0 for the one head, so a thousand
heads are a few batches of one compiled program; scope "row" shares more still (`branch`).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vlm_jax.analysis.branch import branched_probabilities, head_outputs
from vlm_jax.attention import NEVER, Segment, Visibility
from vlm_jax.attention.steering import HeadGains, State, Steering
from vlm_jax.batch import Batch
from vlm_jax.config import VLMConfig
from vlm_jax.models import Cache, Network, Params, abstract, merge
from vlm_jax.models.cache import new_slots, prompt_order, prompt_rows
from vlm_jax.models.hooks import Hooks, Steer

SCOPES = ("row", "all")
NO_HEAD = -1
"""Layer and head of a run in which nothing is zero."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Places:
    """Tokens whose probability is asked for; int32 [m].

    Attributes:
        sample_m: which sequence of the batch.
        query_m: the row that predicts the token, one before it.
        target_m: the token's id.
    """

    sample_m: Any
    query_m: Any
    target_m: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Runs:
    """What runs are asked for: each one sequence and q of its tokens.

    Attributes:
        sample_r: int32 [R].
        query_rq, target_rq: int32 [R, q]; see `Places`.
    """

    sample_r: Any
    query_rq: Any
    target_rq: Any

    def take(self, index: Any) -> "_Runs":
        """Returns the runs at some indices."""
        return jax.tree.map(lambda leaf: leaf[index], self)

    @classmethod
    def one_each(cls, places: Places) -> "_Runs":
        """A run for every place."""
        return cls(places.sample_m, places.query_m[:, None], places.target_m[:, None])

    @classmethod
    def by_sequence(cls, places: Places) -> tuple["_Runs", np.ndarray]:
        """A run for every sequence, and the index [m] of each place among runs x q."""
        samples, run_m, counts = np.unique(places.sample_m, return_inverse=True, return_counts=True)
        width = 1 << int(counts.max() - 1).bit_length()
        slot_m = np.zeros(len(run_m), np.int64)
        for run in range(len(samples)):
            slot_m[run_m == run] = np.arange(counts[run])
        query_rq = np.zeros((len(samples), width), np.int32)
        target_rq = np.zeros((len(samples), width), np.int32)
        query_rq[run_m, slot_m] = places.query_m
        target_rq[run_m, slot_m] = places.target_m
        return cls(samples.astype(np.int32), query_rq, target_rq), run_m * width + slot_m


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Read:
    """What all ablations of a batch share: embeddings [B, T, D] and each layer's keys."""

    x_btd: Any
    prompt: tuple[Segment, ...]


class HeadAblation:
    """Ablations for one architecture.

    Args:
        config: the model.
        rows: runs in a batch.
        branch: whether "row" drops of a token come from one pass that branches where each head is
            (`analysis.branch`), rather than from a run a head.
    """

    def __init__(self, config: VLMConfig, rows: int = 64, branch: bool = True):
        self.shape = config.decoder.num_layers, config.decoder.num_heads
        self.rows, self.branch = rows, branch
        graphdef = abstract(config)[0]
        compiled = lambda function, *fixed: {
            scope: jax.jit(functools.partial(function, *fixed, scope, graphdef)) for scope in SCOPES
        }
        self._read = jax.jit(functools.partial(_read, graphdef))
        self._drop = compiled(_ablated)
        self._slope = {log: compiled(_slopes, log) for log in (False, True)}
        self._branched = jax.jit(functools.partial(branched_probabilities, graphdef))
        self._outputs = jax.jit(functools.partial(head_outputs, graphdef))

    def drops(
        self,
        params: Params,
        batch: Batch,
        places: Places,
        scope: str = "row",
        mean_lnh: np.ndarray | None = None,
    ) -> Float[np.ndarray, "m L N"]:
        """Returns P(token) - P(token without the head) for every place and head.

        Args:
            params: the model.
            batch: prompts with their answers (`Processor.batch_answers`).
            places: the tokens.
            scope: "row" or "all".
            mean_lnh: what an ablated head gives, [L, N, H], in scope "row"; None is zero.

        Raises:
            ValueError: a mean is asked for where it has no meaning: in scope "all", or without
                `branch`.
        """
        branch = scope == "row" and self.branch
        if mean_lnh is not None and not branch:
            raise ValueError("Heads become means where branching runs: in scope 'row' alone.")
        read, batch = self._read_once(params, batch)
        if branch:
            put_lnh = None if mean_lnh is None else jnp.asarray(mean_lnh, jnp.float32)
            at = zip(places.sample_m, places.query_m, places.target_m)
            ask = lambda one: self._branched(params, batch, read.prompt, *one, put_lnh)
            return self._differences(np.stack([np.asarray(ask(one)) for one in at]))
        if scope == "row":
            runs, index_m = _Runs.one_each(places), np.arange(len(places.sample_m))
        else:
            runs, index_m = _Runs.by_sequence(places)
        heads = np.asarray([(NO_HEAD, NO_HEAD), *np.ndindex(*self.shape)], np.int32)
        count = len(runs.sample_r)
        run_g, head_g = np.indices((count, len(heads))).reshape(2, -1)
        probe = lambda at: self._drop[scope](
            params, batch, read, runs.take(run_g[at]), heads[head_g[at]]
        )
        p = in_batches(probe, len(run_g), self.rows)  # [runs x heads, q]
        p = p.reshape(count, len(heads), -1).transpose(0, 2, 1).reshape(-1, len(heads))[index_m]
        return self._differences(p)

    def _differences(self, p_mr: np.ndarray) -> np.ndarray:
        """Probabilities [m, 1 + heads], nothing ablated first, as drops [m, L, N]."""
        return (p_mr[:, :1] - p_mr[:, 1:]).reshape(-1, *self.shape)

    def outputs(self, params: Params, batch: Batch, places: Places) -> Float[np.ndarray, "m L N H"]:
        """Returns what each head gives at the rows that predict some tokens, before W_O; unablated.

        Args:
            params, batch, places: see `drops`.
        """
        read, batch = self._read_once(params, batch)
        at = zip(places.sample_m, places.query_m)
        return np.stack([self._outputs(params, batch, read.prompt, *one) for one in at])

    def first_order(
        self,
        params: Params,
        batch: Batch,
        places: Places,
        scope: str = "row",
        *,
        log: bool = False,
    ) -> Float[np.ndarray, "m L N"]:
        """Returns dP(token)/d(gain of the head) at gain 1: `drops` to first order.

        One backward pass gives all heads of a place.

        Args:
            params, batch, places, scope: see `drops`.
            log: whether of log P instead.
        """
        read, batch = self._read_once(params, batch)
        runs = _Runs.one_each(places)
        probe = lambda at: self._slope[log][scope](params, batch, read, runs.take(at))
        return in_batches(probe, len(runs.sample_r), self.rows)

    def _read_once(self, params: Params, batch: Batch) -> tuple[_Read, Batch]:
        """Reads a batch; returns also what ablations still need of it, on the device."""
        rest = dataclasses.replace(batch, images=None)
        return self._read(params, batch), jax.tree.map(jnp.asarray, rest)


def in_batches(run: Callable[[Any], Array], count: int, rows: int) -> np.ndarray:
    """Runs on `rows` indices at a time, the last repeated to fill the last batch."""
    starts = range(0, count, rows)
    found = [np.asarray(run(np.minimum(np.arange(s, s + rows), count - 1))) for s in starts]
    return np.concatenate(found)[:count]


def _read(graphdef, params: Params, batch: Batch) -> _Read:
    """Reads whole sequences once, nothing ablated."""
    model = merge(graphdef, params)
    return _Read(model.embed(batch), model.read(batch)[1])


def _ablated(
    scope: str,
    graphdef,
    params: Params,
    batch: Batch,
    read: _Read,
    runs: _Runs,
    head_r2: Int[Array, "R 2"],
) -> Float[Array, "R q"]:
    """Returns P(token) of each run, its (layer, head) zero."""
    layers, width = _shape(graphdef, params)
    zero_rl = head_r2[:, :1] == jnp.arange(layers)
    zero_rn = head_r2[:, 1:] == jnp.arange(width)
    gain_rln = 1.0 - (zero_rl[:, :, None] & zero_rn[:, None]).astype(jnp.float32)
    return _PROBABILITY[scope](graphdef, params, batch, read, runs, gain_rln)


def _slopes(
    log: bool, scope: str, graphdef, params: Params, batch: Batch, read: _Read, runs: _Runs
) -> Float[Array, "R L N"]:
    """Returns dP/dgain of each run and head; runs are independent, so one pass gives all."""
    dtype = jnp.promote_types(jnp.float32, read.x_btd.dtype)
    ones = jnp.ones((len(runs.sample_r), *_shape(graphdef, params)), dtype)

    def total(gain_rln: Array) -> Array:
        p_rq = _PROBABILITY[scope](graphdef, params, batch, read, runs, gain_rln)
        return jnp.sum(jnp.log(p_rq) if log else p_rq)

    return jax.grad(total)(ones)


def _shape(graphdef, params: Params) -> tuple[int, int]:
    config = merge(graphdef, params).decoder.config
    return config.num_layers, config.num_heads


def _row_probability(
    graphdef, params: Params, batch: Batch, read: _Read, runs: _Runs, gain_rln: Array
) -> Float[Array, "R q"]:
    """Returns P(token), gains at the predicting row alone, all rows before it as they were read."""
    model: Network = merge(graphdef, params)
    sample_r, query_r = runs.sample_r, runs.query_rq[:, 0]

    def before(segment: Segment) -> Segment:
        own = jax.tree.map(lambda leaf: jnp.asarray(leaf)[sample_r], segment)
        seen = jnp.arange(segment.length) < query_r[:, None]
        order_rs = jnp.where(seen, own.keys.order, NEVER)
        return dataclasses.replace(own, keys=Visibility(order=order_rs))

    prompt = tuple(before(segment) for segment in read.prompt)
    cache = Cache(
        prompt,
        tuple(new_slots(segment, 1) for segment in prompt),
        jnp.asarray(batch.positions_bt3)[sample_r, query_r, 0],
        jnp.int32(0),
        tuple(State() for _ in prompt),
    )
    steering = Steering(head_gains=HeadGains(gain_rln))
    token_r = jnp.asarray(batch.tokens_bt)[sample_r, query_r]
    logits_rv = model.step(token_r, cache, steering)[0]
    return _probability(logits_rv[:, None], runs.target_rq)


def _all_probability(
    graphdef, params: Params, batch: Batch, read: _Read, runs: _Runs, gain_rln: Array
) -> Float[Array, "R q"]:
    """Returns P(token), gains at all rows of the sequence."""
    model: Network = merge(graphdef, params)
    picked: Batch = jax.tree.map(
        lambda leaf: jnp.asarray(leaf)[runs.sample_r], dataclasses.replace(batch, images=None)
    )
    length = picked.tokens_bt.shape[1]
    order = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), picked.tokens_bt.shape)
    keys = Visibility(order=prompt_order(picked))
    hidden_rtd = model.decoder(
        read.x_btd[runs.sample_r],
        picked.positions_bt3,
        Visibility(order=order),
        lambda layer, k, v: [Segment(k, v, keys, picked.kinds_bt)],
        causal=True,
        hooks=Hooks(Steer(Steering(head_gains=HeadGains(gain_rln)), prompt_rows(picked)).attend),
    )
    hidden_rqd = jnp.take_along_axis(hidden_rtd, runs.query_rq[..., None], axis=1)
    return _probability(model.decoder.logits(hidden_rqd), runs.target_rq)


_PROBABILITY: dict[str, Callable[..., Array]] = {"row": _row_probability, "all": _all_probability}


def _probability(logits_rqv: Array, target_rq: Array) -> Float[Array, "R q"]:
    p_rqv = jax.nn.softmax(logits_rqv, axis=-1)
    return jnp.take_along_axis(p_rqv, target_rq[..., None], axis=-1)[..., 0]
