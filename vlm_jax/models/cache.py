"""Keys and values that decoding remembers: the prompt, and slots for what is generated."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from vlm_jax.attention import NEVER, Segment, Visibility
from vlm_jax.attention.steering import Rows, State
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


def prompt_order(batch: Batch) -> Int[Array, "B T"]:
    """Returns the causal order of prompt tokens as keys: their index, `NEVER` for padding."""
    places = jnp.arange(batch.tokens_bt.shape[1], dtype=jnp.int32)
    return jnp.where(batch.kinds_bt == Kind.PAD, NEVER, places)


def prompt_rows(batch: Batch) -> Rows:
    """Returns what the rows of prompts are, for steering."""
    kinds_bt = jnp.asarray(batch.kinds_bt)
    is_image = kinds_bt == Kind.IMAGE
    # True from the last image token on; samples without an image have no such row.
    later = jnp.flip(jnp.cumsum(jnp.flip(is_image, axis=1), axis=1), axis=1)
    after = (kinds_bt == Kind.TEXT) & (later == 0) & jnp.any(is_image, axis=1, keepdims=True)
    return Rows(after, kinds_bt != Kind.PAD, jnp.asarray(batch.lengths_b) - 1)


def new_slots(prompt: Segment, slots: int) -> Segment:
    """Returns empty slots after a prompt. A slot is seen from the step that fills it on."""
    batch, kv_heads, length, dim = prompt.k_bksh.shape
    empty = jnp.zeros((batch, kv_heads, slots, dim), prompt.k_bksh.dtype)
    order = jnp.broadcast_to(length + jnp.arange(slots, dtype=jnp.int32), (batch, slots))
    kinds = jnp.full((batch, slots), Kind.TEXT, jnp.int8)
    return Segment(empty, empty, Visibility(order=order), kinds)
