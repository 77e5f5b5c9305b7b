"""Hooks of one decoder call: changes of attention and the residual stream, and values to keep.

    hooks = Hooks(residual=lambda layer, x_btd: 1.1 * x_btd, watch=Watch(hidden=(0, 2)))
    model.decoder(x_btd, positions_bt3, queries, extend_cache, hooks=hooks)
    hooks.watched().hidden_bjd    # what layers 0 and 1 left, [B, 2, D]

A hook that is None compiles to nothing, and so does None in place of the hooks.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vlm_jax.attention import Segment, Visibility, attend
from vlm_jax.attention.row import row_logits
from vlm_jax.attention.steering import Readings, Rows, State, Steering

Residual = Callable[[int, Array], Array]
"""(layer, hidden states [B, T, D] that it left) -> hidden states that the next layer reads."""


Attend = Callable[..., Array]
"""Attends in the next layer, with the arguments of `vlm_jax.attention.attend`: queries, segments,
order and group of the queries, and the keywords `causal` and `scale`."""


@dataclasses.dataclass(frozen=True)
class Watch:
    """Which values a call keeps, at the last row of each sample; part of the program.

    Attributes:
        hidden: levels of the residual stream: 0 is the embeddings, j what layer j - 1 left; the
            highest is what the final norm reads.
        weights: layers whose attention weights are kept, the largest over heads.
        heads: layers whose attention weights are kept, head by head.
        masses: whether masses of attention are kept even where nothing is steered.
        early: levels whose logits are computed, in one matrix product with those of the last layer.
        early_norm: whether these levels go through the final norm first.
    """

    hidden: tuple[int, ...] = ()
    weights: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    masses: bool = False
    early: tuple[int, ...] = ()
    early_norm: bool = False


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Watched:
    """The values that a call kept of its last rows; None where `Watch` does not ask.

    Attributes:
        readings: masses and what steering did, leaves [B, L, N].
        hidden_bjd: [B, J, D] the residual stream at the levels of `Watch.hidden`.
        weights_bjs: float32 [B, J, S] for the layers of `Watch.weights`, over the keys of all
            segments: the prompt's, then the slots of new tokens.
        heads_bjns: float32 [B, J, N, S] the same for the layers of `Watch.heads`, of each head.
        early_bjv: float32 [B, J, V] logits of the levels of `Watch.early`.
    """

    readings: Readings | None = None
    hidden_bjd: Any = None
    weights_bjs: Any = None
    heads_bjns: Any = None
    early_bjv: Any = None


@dataclasses.dataclass
class Steer:
    """Steered attention of one call; layers call `attend` in their order.

    Attributes:
        steering: of all layers.
        rows: what the rows of a prompt are; None for decode rows.
        before: each layer's state from earlier calls; None where there are none.
        states: gets each layer's state after this call.
        readings: gets the readings of each layer's decode row.
    """

    steering: Steering
    rows: Rows | None = None
    before: Sequence[State] | None = None
    states: list[State] = dataclasses.field(default_factory=list)
    readings: list[Readings] = dataclasses.field(default_factory=list)

    def attend(
        self,
        q_btnh: Array,
        segments: Sequence[Segment],
        queries: Visibility,
        causal: bool,
        scale: float | None = None,
    ) -> Array:
        """Attends in the next layer."""
        index = len(self.states)
        out_btnh, state, readings = attend(
            q_btnh,
            segments,
            queries,
            causal=causal,
            scale=scale,
            steering=self.steering.layer(index),
            rows=self.rows,
            state=None if self.before is None else self.before[index],
        )
        self.states.append(state)
        self.readings.append(readings)
        return out_btnh


@dataclasses.dataclass
class Hooks:
    """Hooks of one call; made anew for each.

    Attributes:
        attend: replaces plain attention; called once a layer, in their order.
        residual: changes the residual stream after a layer.
        watch: which values are kept.
        last_b: int32 [B] index of each sample's last row; None where there is one row.
        steer: the object whose `attend` this is, if any, for its readings and states.
    """

    attend: Attend | None = None
    residual: Residual | None = None
    watch: Watch = Watch()
    last_b: Int[Array, " B"] | None = None
    steer: Steer | None = None
    _hidden: dict[int, Array] = dataclasses.field(default_factory=dict)
    _weights: dict[int, Array] = dataclasses.field(default_factory=dict)
    _heads: dict[int, Array] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        steering: Steering | None,
        watch: Watch | None,
        rows: Rows | None = None,
        before: Sequence[State] | None = None,
    ) -> "Hooks | None":
        """Returns the hooks that steer and keep values; None where there is nothing to do.

        Args:
            steering: of all layers.
            watch: which values are kept.
            rows: what the rows of a prompt are; None for decode rows.
            before: each layer's state from earlier calls; None where there are none.
        """
        watch = watch or Watch()
        if watch.masses and steering is None:
            steering = Steering()
        last_b = None if rows is None else rows.last_b
        if steering is None:
            return None if watch == Watch() else cls(watch=watch, last_b=last_b)
        steer = Steer(steering, rows, before)
        return cls(steer.attend, _residual(steering, rows), watch, last_b, steer)

    @property
    def states(self) -> tuple[State, ...]:
        """Each layer's state of the steering; empty where nothing is steered."""
        return () if self.steer is None else tuple(self.steer.states)

    def attention(self, layer: int) -> Attend | None:
        """Returns the attention function of a layer; None for plain attention."""
        if layer not in (*self.watch.weights, *self.watch.heads):
            return self.attend
        return functools.partial(self._attend_watched, layer)

    def left(self, level: int, x_btd: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Returns the residual stream that the next layer reads, and keeps it where watched.

        Args:
            level: number of layers done.
            x_btd: their output.
        """
        if self.residual is not None and level > 0:
            x_btd = self.residual(level - 1, x_btd)
        if level in (*self.watch.hidden, *self.watch.early):
            self._hidden[level] = self._last(x_btd)[:, 0]
        return x_btd

    @property
    def early_bjd(self) -> Array | None:
        """The residual stream at the levels of `Watch.early`; None where there are none."""
        return _stack(self._hidden, self.watch.early)

    def watched(self) -> Watched:
        """Returns the values kept so far; `early_bjv` is None until the head has read."""
        readings = None
        if self.steer is not None:
            join = lambda *layers: jnp.stack(layers, axis=1)
            readings = jax.tree.map(join, *self.steer.readings)
        return Watched(
            readings,
            _stack(self._hidden, self.watch.hidden),
            _stack(self._weights, self.watch.weights),
            _stack(self._heads, self.watch.heads),
        )

    def _attend_watched(
        self,
        layer: int,
        q_btnh: Array,
        segments: Sequence[Segment],
        queries: Visibility,
        *,
        causal: bool,
        scale: float | None = None,
    ) -> Array:
        last_queries = jax.tree.map(self._last, queries)
        last = row_logits(self._last(q_btnh), segments, last_queries, scale)
        weights_bns = jax.nn.softmax(last, axis=-1)
        if layer in self.watch.weights:
            self._weights[layer] = jnp.max(weights_bns, axis=1)
        if layer in self.watch.heads:
            self._heads[layer] = weights_bns
        plain = self.attend or attend
        return plain(q_btnh, segments, queries, causal=causal, scale=scale)

    def _last(self, a: Array) -> Array:
        """Returns the last row of each sample, [B, 1, ...]."""
        if self.last_b is None:
            return a[:, -1:]
        return jnp.take_along_axis(a, self.last_b.reshape(-1, *[1] * (a.ndim - 1)), axis=1)


def _stack(found: dict[int, Array], order: tuple[int, ...]) -> Array | None:
    return jnp.stack([found[i] for i in order], axis=1) if order else None


def _residual(steering: Steering, rows: Rows | None) -> Residual | None:
    """Returns the residual hook of a steering; None where no part changes the stream."""
    moving = [part for part in steering.parts.values() if not part.attends]

    def residual(layer: int, x_btd: Array) -> Array:
        for part in moving:
            here = jax.tree.map(lambda leaf: jnp.asarray(leaf)[:, layer], part)
            x_btd = here.residual(x_btd, rows)
        return x_btd

    return residual if moving else None
