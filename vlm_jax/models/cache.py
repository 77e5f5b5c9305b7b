"""Keys and values that are remembered: beginnings of prompts, prompts, and slots behind them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from vlm_jax.attention import NEVER, Segment, Visibility
from vlm_jax.attention.segment import kinds_of
from vlm_jax.attention.steering import Rows, State, Steering
from vlm_jax.batch import Batch, Kind


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """What has been read so far.

    The prompt stays as prefill left it; generated tokens go to slots of their own, the same slot
    for every row, so that a step is one slice update and never a scatter. The two merge by
    log-sum-exp.

    Attributes:
        prompt: per layer, the prompt's keys and values.
        new: per layer, slots of generated tokens.
        next_position_b: rotary position of the next token.
        used: int32 scalar, how many slots hold a token.
        states: per layer, what steering remembers; empty when nothing is steered.
    """

    prompt: tuple[Segment, ...]
    new: tuple[Segment, ...]
    next_position_b: Int[Array, " B"]
    used: Int[Array, ""]
    states: tuple[State, ...] = ()

    @property
    def slots(self) -> int:
        """How many tokens can be generated."""
        return self.new[0].length


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefix:
    """Beginnings of prompts, read once for all prompts that go on from them.

    A prompt's prefix ends with its last image token, so that the questions about an image share
    it. Behind its tokens a prefix is padded; what follows has its places after the padding.

    Attributes:
        segments: per layer, the keys and values [I, K, P, H] of I prefixes.
        states: per layer, what steering remembers; empty when nothing was steered.
        steered: which parts of a steering the prefixes were read with (`Steering.on_prefix`).
    """

    segments: tuple[Segment, ...]
    states: tuple[State, ...] = ()
    steered: Any = dataclasses.field(default=jax.tree.structure(None), metadata={"static": True})

    @property
    def size(self) -> int:
        """Number of prefixes I."""
        return self.segments[0].k_bksh.shape[0]

    @property
    def length(self) -> int:
        """Padded length P."""
        return self.segments[0].length

    @property
    def has_image_b(self) -> Bool[Array, " I"]:
        """Which prefixes hold an image."""
        return jnp.any(kinds_of(self.segments[0]) == Kind.IMAGE, axis=1)

    def take(self, owner_b: Int[Array, " B"]) -> "Prefix":
        """Returns the prefix of each of B rows, given its index."""
        return jax.tree.map(lambda leaf: jnp.take(leaf, owner_b, axis=0, mode="clip"), self)

    def check(self, steering: Steering | None) -> None:
        """Raises ValueError unless prompts that are steered so can go on from here."""
        if steering is not None:
            steering.check_shares_prefix()
        needed = None if steering is None else steering.on_prefix
        if jax.tree.structure(needed) != self.steered:
            raise ValueError(
                "The prefixes were read with other parts of a steering than act on them here, "
                f"{_parts(needed)}: read them with this steering."
            )


def _parts(steering: Steering | None) -> str:
    named = {} if steering is None else vars(steering)
    return " and ".join(name for name, part in named.items() if part is not None) or "none"


def prompt_order(batch: Batch, start: int = 0) -> Int[Array, "B T"]:
    """Returns the causal order of prompt tokens as keys: their index, `NEVER` for padding.

    Args:
        batch: the prompts, or what follows their prefixes.
        start: length of the prefixes.
    """
    places = start + jnp.arange(batch.tokens_bt.shape[1], dtype=jnp.int32)
    return jnp.where(batch.kinds_bt == Kind.PAD, NEVER, places)


def prompt_rows(batch: Batch, prefix: Prefix | None = None) -> Rows:
    """Returns what the rows of prompts are, for steering.

    Args:
        batch: the prompts, or what follows their prefixes.
        prefix: the rows' prefixes, in which an image may lie.
    """
    kinds_bt = jnp.asarray(batch.kinds_bt)
    is_image = kinds_bt == Kind.IMAGE
    # True from the last image token on; samples without an image have no such row.
    later = jnp.flip(jnp.cumsum(jnp.flip(is_image, axis=1), axis=1), axis=1)
    has_image_b = jnp.any(is_image, axis=1)
    if prefix is not None:
        has_image_b = has_image_b | prefix.has_image_b
    after = (kinds_bt == Kind.TEXT) & (later == 0) & has_image_b[:, None]
    return Rows(after, kinds_bt != Kind.PAD, jnp.asarray(batch.lengths_b) - 1)


def new_slots(prompt: Segment, slots: int) -> Segment:
    """Returns empty slots after a prompt. A slot is seen from the step that fills it on."""
    batch, kv_heads, length, dim = prompt.k_bksh.shape
    empty = jnp.zeros((batch, kv_heads, slots, dim), prompt.k_bksh.dtype)
    order = jnp.broadcast_to(length + jnp.arange(slots, dtype=jnp.int32), (batch, slots))
    kinds = jnp.full((batch, slots), Kind.TEXT, jnp.int8)
    return Segment(empty, empty, Visibility(order=order), kinds)
