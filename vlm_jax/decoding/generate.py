"""Generation on a mesh: puts the arguments of a call on the devices and runs its programs.

Prompts are read by one program and decoded by another, which takes the cache of the first;
`programs` has them all.
"""

import dataclasses
import functools
import itertools
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from vlm_jax.attention.steering import Readings, Steering
from vlm_jax.batch import Batch, Features
from vlm_jax.config import VLMConfig
from vlm_jax.decoding.call import GeneratorCall, Placement
from vlm_jax.decoding.loop import StepCounts
from vlm_jax.decoding.programs import Programs
from vlm_jax.decoding.search import LoopInputs, Search
from vlm_jax.decoding.settings import DecodeSettings
from vlm_jax.decoding.strategies.base import Strategy
from vlm_jax.models import Params, Prefix
from vlm_jax.parallel import collect, fetch

LOGITS_BYTES = 1 << 30
"""Most bytes of logits that a device holds at once; those of more places are made in turn."""

PART = 8
"""Tokens between two calls of `told`."""


@dataclasses.dataclass(frozen=True)
class Generated:
    """The answers to a batch.

    Attributes:
        tokens_bn: int32 [B, slots] generated ids, the stop id included; pad id after it.
        lengths_b: int32 [B] generated tokens before the stop id.
        ended_b: bool [B] whether a stop id was reached within the limit.
        readings: with steering, each reading's mean over a row's decode rows, leaves [B, L, N].
        counts: where steering reallocates or classifies heads, how many at each step.
        scores_b: float32 [B] of beam search: each answer's sum of log-probabilities over its length
            to the power of the length penalty.
    """

    tokens_bn: np.ndarray
    lengths_b: np.ndarray
    ended_b: np.ndarray
    readings: Readings | None = None
    counts: StepCounts | None = None
    scores_b: np.ndarray | None = None


class Generator:
    """Compiled generation for one architecture on one mesh.

    Shapes are static: one compilation for each (batch, prompt length, image groups, slots), and
    where prompts share prefixes for each (prefixes, prefix length, rows that share each) too, and
    for each (prefixes, image groups) where images are read apart. All settings (limits, stop ids,
    temperature, seeds, logit biases, which row owns which prefix) are traced.
    """

    def __init__(self, config: VLMConfig, mesh: Mesh):
        self.mesh, self.depth = mesh, config.decoder.num_layers
        self.vocabulary = config.decoder.vocab_size
        self.programs = Programs(config, mesh)
        self._put, self._like = Placement.on(mesh), Placement.on(mesh, abstract=True)

    @property
    def compilations(self) -> int:
        """How many programs have been compiled so far."""
        return self.programs.compilations

    def read_images(self, params: Params, batch: Batch) -> Batch:
        """Returns a batch of I prefixes with image features, so that its images are read once.

        Args:
            params: parameters, already on the mesh; only the tower's and the projector's matter.
            batch: as for `read_prefix`.

        Returns:
            The batch with `Features`, on the devices, in place of its images.
        """
        images = self._rows_or_whole(self._put, batch.size)(batch.images)
        return dataclasses.replace(batch, images=self.programs.read_images(params, images))

    def read_prefix(self, params: Params, batch: Batch, steering: Steering | None = None) -> Prefix:
        """Returns the keys and values of the beginnings of I prompts, for calls that continue them.

        Args:
            params: parameters, already on the mesh.
            batch: each prompt up to its last image token, with its images or what `read_images`
                made of them. I need not divide over the mesh's data axis, but only then do its
                devices share the work.
            steering: of the calls that continue. Only its parts that act on prefixes are used
                (`Steering.on_prefix`); without such parts the result, and the program, is that of
                no steering.

        Returns:
            The prefixes, on the devices. They are not donated: any number of calls may use them.

        Raises:
            ValueError: the steering does not let prompts share prefixes (`Steering.shares_prefix`).
        """
        steering = self._put.steering(_prefix_steering(steering))
        return self.programs.read_prefix(params, self._place_prefixes(self._put, batch), steering)

    def logits(
        self,
        params: Params,
        batch: Batch,
        steering: Steering | None = None,
        *,
        prefix: Prefix | None = None,
        owner_b: Sequence[int] | np.ndarray | None = None,
        sharing: int | None = None,
    ) -> Float[np.ndarray, "B T V"]:
        """Returns float32 logits at every place of the batch; those at padding mean nothing.

        Logits of more than `LOGITS_BYTES` a device are made for a range of places at a time.

        Args:
            params: parameters, already on the mesh.
            batch: prompts, or what follows their prefixes.
            steering: what to do to attention.
            prefix, owner_b, sharing: as for generation.
        """
        steering = self._put.steering(steering)
        before = self._before(self._put, batch, prefix, owner_b, sharing)
        args = params, self._put.rows(batch), steering, *before
        length, places = batch.tokens_bt.shape[1], self._places(batch)
        if places >= length:
            return fetch(self.programs.forward(*args), self.mesh)
        hidden_btd, found = self.programs.hidden(*args), []
        for start in range(0, length, places):
            first = min(start, length - places)
            part = self.programs.head(params, hidden_btd, np.int32(first), length=places)
            found.append(fetch(part, self.mesh)[:, start - first :])
        return np.concatenate(found, axis=1)

    def next_logits(
        self, params: Params, batch: Batch, steering: Steering | None = None
    ) -> Float[np.ndarray, "B V"]:
        """Returns float32 logits of what follows whole prompts; arguments as of `logits`."""
        placed = self._put.rows(batch), self._put.steering(steering)
        return fetch(self.programs.prefill(params, *placed, slots=1)[0], self.mesh)

    def __call__(
        self,
        params: Params,
        batch: Batch,
        settings: DecodeSettings,
        *,
        slots: int | None = None,
        stop_ids: Sequence[int] = (),
        pad_id: int = 0,
        row_ids: Sequence[int] | None = None,
        logit_bias: np.ndarray | None = None,
        prompts: np.ndarray | None = None,
        steering: Steering | None = None,
        strategy: Strategy | Search | None = None,
        prefix: Prefix | None = None,
        owner_b: Sequence[int] | np.ndarray | None = None,
        sharing: int | None = None,
        told: Callable[[np.ndarray, np.ndarray], None] | None = None,
    ) -> Generated:
        """Returns the tokens that follow the prompts.

        Args:
            params: parameters, already on the mesh.
            batch: prompts; their number must divide over the mesh's data axis. With a prefix, what
                follows the prefixes: tokens, kinds and positions as in the whole prompts, at least
                one token a row, `next_position_b` of the whole prompts and no images.
            settings: how tokens are chosen, and how many.
            slots: static number of cache slots for new tokens, at least
                `settings.max_new_tokens`, which is the default.
            stop_ids: ids that end a row.
            pad_id: what fills a row after its end.
            row_ids: what seeds each row's random stream; 0, 1, ... by default.
            logit_bias: float32 [V] or [B, V] added to logits at every step.
            prompts: int32 [B, P] tokens of the whole prompts, right-aligned, -1 before them; only
                settings that look back at them need it (`aligned`).
            steering: what to do to attention; leaves [1, L, N] or [B, L, N].
            strategy: turns the logits of W views of a sample into scores. Views are neighbouring
                rows: the batch has B W rows, all other arguments have B. With W = 2, rows 0 1 are
                sample 0, rows 2 3 sample 1.
            prefix: what `read_prefix` returned for I beginnings of prompts.
            owner_b: int32 [B], which of the I prefixes each row goes on from.
            sharing: how many neighbouring rows go on from one prefix, everywhere in the batch, as
                in 0 0 1 1 2 2; part of the program. They read its keys together, as far as they
                lie on one device of the data axis. If the prefixes come in their order, each once,
                nothing of them is copied; otherwise each is, once for those rows. None: every row
                has a copy of its own.
            told: called with the tokens_bn and lengths_b so far after every `PART` tokens; ignored
                where a sample has several rows. Such calls run a program of their own in place of
                the one that decodes to the end.

        Raises:
            ValueError: `owner_b` does not name a prefix for each row, or not one for all that
                share, the prefixes were not read as the steering needs them, or the rows are no
                whole number of samples.
        """
        call = GeneratorCall(
            settings, slots, stop_ids, pad_id, row_ids, logit_bias, prompts, steering, strategy
        )
        before = self._before(self._put, batch, prefix, owner_b, sharing)
        inputs = call.inputs(self._put, batch.size, self.vocabulary)
        logits_bv, cache, watched = self.programs.prefill(
            params,
            self._put.rows(batch),
            inputs.steering,
            *before,
            slots=call.search.room(call.room),
            watch=call.watch(self.depth),
            shared=call.shared,
        )
        read = logits_bv, watched
        if told is not None and call.width == call.search.rows == 1:
            return self._in_parts(params, read, cache, inputs, before, call, told)
        *found, _ = self.programs.decode(params, read, cache, inputs, *before, slots=call.room)
        return self._generated(found)

    def _in_parts(
        self,
        params: Params,
        read: Any,
        cache: Any,
        inputs: LoopInputs,
        before: Sequence[Any],
        call: GeneratorCall,
        told: Callable[[np.ndarray, np.ndarray], None],
    ) -> Generated:
        """Decodes `PART` tokens at a time, and calls `told` in between."""
        programs = self.programs
        state = programs.begin(params, read, cache, inputs, *before, slots=call.room)
        for until in itertools.count(PART, PART):
            *made, state = programs.decode_part(params, state, inputs, np.int32(until), *before)
            found = self._generated(made)
            if until >= call.settings.max_new_tokens or found.ended_b.all():
                return found
            told(found.tokens_bn, found.lengths_b)
        raise AssertionError("unreachable")

    def _generated(self, found: Sequence[Any]) -> Generated:
        """Returns what a program made, on the host."""
        made = Generated(*collect(found, self.mesh))
        if made.counts is None:
            return made
        return dataclasses.replace(made, counts=made.counts.summed())

    def warm(
        self,
        params: Mapping[str, Any],
        batch: Batch,
        settings: DecodeSettings,
        *,
        prefix: Batch | None = None,
        owner_b: Sequence[int] | np.ndarray | None = None,
        sharing: int | None = None,
        images_apart: bool = False,
        compile: Callable[..., Any] | None = None,
        **options: Any,
    ) -> None:
        """Compiles ahead of time the programs of a call with arguments of these shapes.

        Nothing is computed, and the call then compiles nothing. XLA compiles without Python's
        global lock, so threads can compile several buckets at once.

        Args:
            params: parameters, or `ShapeDtypeStruct`s with their shardings.
            batch: arrays or `ShapeDtypeStruct`s.
            prefix: what `read_prefix` will be given, likewise; None if prompts are read whole.
            owner_b, sharing: of the call. Of the owners only whether they come in their order
                matters; None: they do not.
            images_apart: whether the prefixes' images go through `read_images` first.
            compile: called with each program's name, the jitted program and its arguments; returns
                what the program will return, as shapes with shardings. `compile_ahead` by default.
            settings, options: of the call. Of their values only those that make shapes or programs
                matter: room for tokens, the number of stop ids, which settings act, the parts of
                the steering.
        """
        compile = compile or compile_ahead
        call = GeneratorCall(settings, **options)
        inputs = call.inputs(self._like, batch.size, self.vocabulary)
        before = ()
        if prefix is not None:
            steering = self._like.steering(_prefix_steering(call.steering))
            placed = self._place_prefixes(self._like, prefix)
            if images_apart:
                read = compile("read_images", self.programs.read_images, params, placed.images)
                placed = dataclasses.replace(placed, images=read)
            read = compile("read_prefix", self.programs.read_prefix, params, placed, steering)
            owner_b = np.zeros(batch.size, np.int32) if owner_b is None else owner_b
            before = self._before(self._like, batch, read, owner_b, sharing)
        logits_bv, cache, watched = compile(
            "prefill",
            self.programs.prefill,
            params,
            self._like.rows(batch),
            inputs.steering,
            *before,
            slots=call.search.room(call.room),
            watch=call.watch(self.depth),
            shared=call.shared,
        )
        compile(
            "decode",
            self.programs.decode,
            params,
            (logits_bv, watched),
            cache,
            inputs,
            *before,
            slots=call.room,
        )

    def warm_logits(
        self,
        params: Mapping[str, Any],
        batch: Batch,
        steering: Steering | None = None,
        *,
        compile: Callable[..., Any] | None = None,
    ) -> None:
        """Compiles ahead of time the programs of `logits` of whole prompts; arguments as `warm`."""
        rows, steering = self._like.rows(batch), self._like.steering(steering)
        compile, places = compile or compile_ahead, self._places(batch)
        if places >= batch.tokens_bt.shape[1]:
            compile("logits", self.programs.forward, params, rows, steering)
            return
        hidden_btd = compile("logits", self.programs.hidden, params, rows, steering)
        compile("head", self.programs.head, params, hidden_btd, np.int32(0), length=places)

    def _places(self, batch: Batch) -> int:
        """Returns how many places of a batch have logits within `LOGITS_BYTES` a device."""
        data, model = self.mesh.shape["data"], self.mesh.shape["model"]
        share = self.vocabulary // model if self.vocabulary % model == 0 else self.vocabulary
        rows = batch.size // data if batch.size % data == 0 else batch.size
        return max(LOGITS_BYTES // (4 * rows * share), 1)

    def _rows_or_whole(self, put: Placement, size: int) -> Callable[[Any], Any]:
        """Returns how to place `size` prefixes: split over the data axis where they divide."""
        return put.whole if size % self.mesh.shape["data"] else put.rows

    def _place_prefixes(self, put: Placement, batch: Batch) -> Batch:
        place = self._rows_or_whole(put, batch.size)
        if not isinstance(batch.images, Features):
            return place(batch)
        tokens = place(dataclasses.replace(batch, images=None))
        return dataclasses.replace(tokens, images=batch.images)  # on the devices already

    def _before(
        self,
        put: Placement,
        batch: Batch,
        prefix: Any,
        owner_b: Sequence[int] | np.ndarray | None,
        sharing: int | None,
    ) -> tuple[Any, ...]:
        """Returns the programs' arguments (prefix, owner_g); none for whole prompts.

        The prefixes are arrays or shapes, as `put` makes them; `owner_g` says which of them each
        group of rows takes, None that the groups are the prefixes in their order.
        """
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
        if sharing is None:
            return prefix, put.rows(owners)
        if batch.size % sharing or (owners != owners[::sharing].repeat(sharing)).any():
            raise ValueError(
                f"{sharing} neighbouring rows are to share a prefix; owner_b is {owner_b}: give "
                "so many rows the same owner, or leave `sharing` out."
            )
        # No group of rows lies on two devices.
        owners = owners[:: math.gcd(sharing, batch.size // self.mesh.shape["data"])]
        in_order = np.array_equal(owners, np.arange(count))
        return prefix, None if in_order else put.rows(owners)


_in_use: weakref.WeakValueDictionary[tuple[VLMConfig, Mesh], Generator]
_in_use = weakref.WeakValueDictionary()


@functools.lru_cache(maxsize=1)
def generator_of(config: VLMConfig, mesh: Mesh) -> Generator:
    """Returns the generator that models of one architecture on one mesh share.

    What was compiled for one serves the next: a model's edited folder, another training seed. It
    stays as long as a model has it, and the last one without any.
    """
    found = _in_use.get((config, mesh))
    if found is None:
        found = _in_use[config, mesh] = Generator(config, mesh)
    return found


def compile_ahead(name: str, program: Any, *args: Any, **static: Any) -> Any:
    """Compiles a jitted program; returns what it will return, as shapes with shardings.

    Calls of the program find what was compiled here in JAX's own cache.

    Args:
        name: of the program, for others that take this function's place.
        program, args, static: the program and its arguments.
    """
    lowered = program.lower(*args, **static)
    describe = lambda leaf, sharding: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=sharding, weak_type=leaf.weak_type
    )
    return jax.tree.map(describe, lowered.out_info, lowered.compile().output_shardings)


def _prefix_steering(steering: Steering | None) -> Steering | None:
    """Returns the parts of a steering that act on prefixes; refuses one that cannot share them."""
    if steering is None:
        return None
    steering.check_shares_prefix()
    return steering.on_prefix
