"""Key-value caches: of shared beginnings of prompts, of prompts, and slots for new tokens."""

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
    """Keys and values of a prompt and of the tokens generated after it.

    The prompt stays as prefill left it; generated tokens go to slots of their own, the same slot
    for every row, so that a step is one slice update and never a scatter. Attention reads both, and
    the prefixes that prompts share (`Prefix`, no part of the cache), as segments, which merge by
    log-sum-exp.

    Neighbouring rows that continue one prompt, such as the beams of a sample, share its keys and
    the slots: a slot has a place for each row, and `order` says which places a row sees. No key
    moves when a row continues the tokens of another, and none is lost when tokens are withdrawn:

        slots of 2 rows          places 0 1 | 2 3 | 4 5
        both wrote 2 tokens      row 0 sees 0 2, row 1 sees 1 3
        row 0 continues row 1    row 0 sees 1 3, row 1 sees 1 3; they write to 4 and 5

    Attributes:
        prompt: per layer, the keys and values of the prompt, or of what follows its prefix.
        new: per layer, slots of generated tokens.
        next_position_b: rotary position of the next token.
        used: int32 scalar, number of slots that hold a token.
        states: per layer, what steering keeps from row to row; empty when nothing is steered.
        beams: places of a slot.
        before: places of the prefixes that the prompts follow; 0 where there are none.
    """

    prompt: tuple[Segment, ...]
    new: tuple[Segment, ...]
    next_position_b: Int[Array, " B"]
    used: Int[Array, ""]
    states: tuple[State, ...] = ()
    beams: int = dataclasses.field(default=1, metadata={"static": True})
    before: int = dataclasses.field(default=0, metadata={"static": True})

    @property
    def length(self) -> int:
        """Places before the slots."""
        return self.before + self.prompt[0].length

    @property
    def slots(self) -> int:
        """How many tokens can be generated."""
        return self.new[0].length // self.beams

    @property
    def rows(self) -> int:
        """Number of neighbouring rows that share a prompt."""
        return self.prompt[0].sharing(len(self.next_position_b))

    def write(self, layer: int, k_bk1h: Array, v_bk1h: Array | None) -> Segment:
        """Returns a layer's slots with every row's new key and value in the next slot."""
        if self.rows > 1:
            split = lambda a: a.reshape(-1, self.rows, a.shape[1], a.shape[3])
            places = lambda a: jnp.moveaxis(split(a), 1, 2)
            k_bk1h, v_bk1h = jax.tree.map(places, (k_bk1h, v_bk1h))
        return self.new[layer].write(k_bk1h, v_bk1h, self.used * self.beams)

    def spread(self, rows: int, beams: int) -> "Cache":
        """Returns a cache with empty slots, in which several neighbouring rows share each prompt.

        Args:
            rows: number of rows C a prompt, that are read in a step.
            beams: number of them W whose tokens are kept: all, or those that `gather` names.
        """
        many = lambda tree: jax.tree.map(lambda leaf: jnp.repeat(leaf, rows, axis=0), tree)
        shared = lambda segment: segment.shared_by(rows * len(self.next_position_b))
        places = self.slots * beams + rows - beams
        cache = dataclasses.replace(
            self,
            prompt=tuple(map(shared, self.prompt)),
            new=tuple(shared(new_slots(segment, places)) for segment in self.prompt),
            next_position_b=many(self.next_position_b),
            states=many(self.states),
            beams=beams,
        )
        return cache._see(jnp.zeros((len(cache.next_position_b), places), bool))

    def gather(
        self,
        parents_gc: Int[Array, "G C"],
        kept_gw: Int[Array, "G W"] | None = None,
        withdrawn: "Withdrawn | None" = None,
    ) -> "Cache":
        """Returns the cache for rows that continue other rows, as beams do.

        Args:
            parents_gc: for each next row of a prompt, the beam that it continues.
            kept_gw: which of the C rows that wrote the last slot the beams are; None: all.
            withdrawn: tokens that the beams withdraw.
        """
        groups, rows = parents_gc.shape
        sees_gwp = self._sees_rp.reshape(groups, rows, -1)
        start, places_p = (self.used - 1) * self.beams, jnp.arange(sees_gwp.shape[-1])
        cache, from_gc = self, parents_gc
        if kept_gw is not None:
            from_gc = jnp.take_along_axis(kept_gw, parents_gc, axis=1)
            own_wp = places_p == start + jnp.arange(self.beams)[:, None]
            sees_gwp = jnp.take_along_axis(sees_gwp, kept_gw[..., None], axis=1)
            sees_gwp = (sees_gwp & (places_p < start)) | own_wp

            def move(segment: Segment) -> Segment:
                wrote = segment.slice(start, rows)
                take = lambda a: jnp.take_along_axis(a, kept_gw[:, None, :, None], axis=2)
                k_bksh, v_bksh = jax.tree.map(take, (wrote.k_bksh, wrote.v_bksh))
                return segment.write(k_bksh, v_bksh, start)

            cache = dataclasses.replace(self, new=tuple(map(move, self.new)))
        fewer_g1 = 0
        if withdrawn is not None:
            sees_gwp, fewer_g1 = withdrawn.sees_gwp, withdrawn.tokens_g[:, None]
        from_r = (from_gc + rows * jnp.arange(groups)[:, None]).reshape(-1)
        take = lambda leaf: jnp.take(leaf, from_r, axis=0)
        position_gc = take(self.next_position_b).reshape(groups, rows) - fewer_g1
        cache = dataclasses.replace(
            cache,
            next_position_b=position_gc.reshape(-1),
            states=jax.tree.map(take, self.states),
        )
        sees_gcp = jnp.take_along_axis(sees_gwp, parents_gc[..., None], axis=1)
        return cache._see(sees_gcp.reshape(-1, len(places_p)))

    @property
    def _sees_rp(self) -> Bool[Array, "B P"]:
        """Bool [rows, places], the places of used slots that each row sees."""
        order_rp = self.new[0].keys.order
        assert order_rp is not None
        return (order_rp != NEVER) & (jnp.arange(order_rp.shape[1]) < self.used * self.beams)

    def _see(self, sees_rp: Bool[Array, "B P"]) -> "Cache":
        """Returns the cache whose rows see these places, and their own place of the next slot."""
        rows, places = sees_rp.shape
        places_p, start = jnp.arange(places, dtype=jnp.int32), self.length
        order_rp = jnp.where(sees_rp, start + places_p // self.beams, NEVER)
        own_r = self.used * self.beams + jnp.arange(rows) % self.rows
        order_rp = jnp.where(places_p == own_r[:, None], start + self.used, order_rp)
        see = lambda segment: dataclasses.replace(segment, keys=Visibility(order=order_rp))
        return dataclasses.replace(self, new=tuple(map(see, self.new)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Withdrawn:
    """Tokens that the beams of G prompts no longer see.

    Attributes:
        sees_gwp: bool [G, W, places], the places of used slots that each beam still sees.
        tokens_g: int32 [G], number of tokens withdrawn from each beam.
    """

    sees_gwp: Bool[Array, "G W P"]
    tokens_g: Int[Array, " G"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefix:
    """Beginnings of prompts, read once for all prompts that go on from them.

    A prompt's prefix ends with its last image token, so that the questions about an image share
    it. Behind its tokens a prefix is padded; what follows has its places after the padding.

    Attributes:
        segments: per layer, the keys and values [I, K, P, H] of I prefixes; neighbouring rows may
            share them (`shared_by`).
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
    def has_image_b(self) -> Bool[Array, " B"]:
        """Which prefixes hold an image, or those that rows go on from."""
        return jnp.any(kinds_of(self.segments[0]) == Kind.IMAGE, axis=1)

    def take(self, owner_g: Int[Array, " G"]) -> "Prefix":
        """Returns copies of G prefixes, given their indices."""
        return jax.tree.map(lambda leaf: jnp.take(leaf, owner_g, axis=0, mode="clip"), self)

    def shared_by(self, rows: int) -> "Prefix":
        """Returns what so many rows of prompts go on from, as many neighbours from each prefix.

        The keys and values are these, of which nothing is copied; rows have what says who sees
        them, and states of their own.
        """
        many = lambda leaf: jnp.repeat(leaf, rows // self.size, axis=0)
        segments = tuple(segment.shared_by(rows) for segment in self.segments)
        return dataclasses.replace(self, segments=segments, states=jax.tree.map(many, self.states))

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
    return "none" if steering is None else " and ".join(steering.parts) or "none"


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
    last_b = jnp.asarray(batch.lengths_b) - 1
    return Rows(after, kinds_bt != Kind.PAD, last_b, kinds_bt)


def new_slots(prompt: Segment, slots: int, before: int = 0) -> Segment:
    """Returns empty slots after a prompt. A slot is seen from the step that fills it on.

    Args:
        prompt: of a layer.
        slots: how many.
        before: places before those of the prompt.
    """
    batch, length = prompt.k_bksh.shape[0], before + prompt.length
    empty = lambda a: jnp.zeros((*a.shape[:2], slots, a.shape[3]), a.dtype)
    k_bksh, v_bksh = jax.tree.map(empty, (prompt.k_bksh, prompt.v_bksh))
    order = jnp.broadcast_to(length + jnp.arange(slots, dtype=jnp.int32), (batch, slots))
    kinds = jnp.full((batch, slots), Kind.TEXT, jnp.int8)
    return Segment(k_bksh, v_bksh, Visibility(order=order), kinds)
