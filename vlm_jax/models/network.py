"""The vision-language model: towers joined by the projector, with prefill and decoding steps."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vlm_jax.attention import Segment, Visibility
from vlm_jax.attention.steering import State, Steering
from vlm_jax.batch import Batch, Features, Images, Kind
from vlm_jax.config import VLMConfig
from vlm_jax.families import find
from vlm_jax.models.cache import Cache, Prefix, new_slots, prompt_order, prompt_rows
from vlm_jax.models.dealing import Across, deal
from vlm_jax.models.decoder import Decoder
from vlm_jax.models.hooks import Hooks, Watch, Watched
from vlm_jax.models.q_former import QFormer
from vlm_jax.parallel import images_lie_whole, reads_images

Params = dict[str, jax.Array]
"""Parameters by path, as in `decoder/layers/0/wq_dnh`; see docs/architecture.md."""


class Network(nnx.Module):
    """A vision tower, a projector and a decoder."""

    def __init__(self, config: VLMConfig, rngs: nnx.Rngs):
        self.config = config
        family = find(config.family)
        self.vision = family.tower(config, rngs)
        self.qformer = None if config.qformer is None else QFormer(config.qformer, rngs)
        self.projector = family.connector(config, rngs)
        self.decoder = Decoder(config.decoder, rngs)

    def image_features(self, images: Images) -> Float[Array, "B M W"]:
        """Returns the image tokens of each sample, in group order; W as of `Decoder.__call__`."""
        apart, mesh = getattr(self.vision, "apart", None), jax.sharding.get_abstract_mesh()
        if apart is None or mesh.size <= 1 or mesh.manual_axes:
            return self._read_images(images)
        graphdef, params = split(self)
        if not images_lie_whole(params):
            return self._read_images(images)

        def read(own: Params, images: Images, across: Across) -> Array:
            return merge(graphdef, params | own)._read_images(images, across)

        reading = {path: array for path, array in params.items() if reads_images(path)}
        return deal(read, reading, images, apart)

    def _read_images(self, images: Images, across: Across = ()) -> Float[Array, "B M W"]:
        features = self.vision(images, across) if across else self.vision(images)
        if self.qformer is not None:
            features = self.qformer(features, images.words_bs)
        return self.projector(features)

    def embed(self, batch: Batch) -> Float[Array, "B T W"]:
        """Embeds a prompt: tokens from the table, image tokens from the image features.

        What features hold for later layers (W > D, see `Decoder.__call__`) is 0 for other tokens.
        """
        x_btd = self.decoder.embed(batch.tokens_bt)
        images = batch.images
        if images is None:
            return x_btd
        read = isinstance(images, Features)
        features_bmd = images.features_bmd if read else self.image_features(images)
        slots_bt1 = jnp.asarray(batch.slots_bt)[..., None]
        picked_btd = jnp.take_along_axis(features_bmd, jnp.maximum(slots_bt1, 0), axis=1)
        # Not among the features: they are parameters, and no padding of groups moves them.
        for slot, name in ((-1, "newline_d"), (-2, "separator_d")):
            learned_d = getattr(self.projector, name, None)
            if learned_d is not None:
                picked_btd = jnp.where(slots_bt1 == slot, learned_d[...], picked_btd)
        is_image = (batch.kinds_bt == Kind.IMAGE)[..., None]
        deeper = picked_btd.shape[-1] - x_btd.shape[-1]
        x_btd = jnp.pad(x_btd, ((0, 0), (0, 0), (0, deeper))) if deeper else x_btd
        return jnp.where(is_image, picked_btd.astype(x_btd.dtype), x_btd)

    def read(
        self,
        batch: Batch,
        steering: Steering | None = None,
        prefix: Prefix | None = None,
        *,
        ends: bool = True,
        watch: Watch | None = None,
    ) -> tuple[Float[Array, "B T D"], tuple[Segment, ...], Hooks | None]:
        """Runs the decoder over prompts, or over what follows their prefixes.

        Args:
            batch: the prompts; with prefixes what follows them, its positions those of the whole
                prompts.
            steering: what to do to attention.
            prefix: what the rows go on from (`Prefix.shared_by`).
            ends: whether the last row of each sample is a prompt's last; False for prefixes.
            watch: what is kept of the last rows.

        Returns:
            Hidden states, each layer's keys and values of what was read, and the hooks, which know
            what steering remembers and what was kept.

        Raises:
            ValueError: the prefixes were not read as this steering needs them.
        """
        start = 0 if prefix is None else prefix.length
        length = batch.tokens_bt.shape[1]
        places = start + jnp.arange(length, dtype=jnp.int32)
        keys = Visibility(order=prompt_order(batch, start))
        kept: list[Segment] = []
        if prefix is not None:
            prefix.check(steering)
        hooks = None
        if steering is not None or watch is not None:
            rows = prompt_rows(batch, prefix)
            rows = rows if ends else dataclasses.replace(rows, last_b=None)
            before = None if prefix is None else prefix.states or None
            hooks = Hooks.of(steering, watch, rows, before)

        def extend_cache(layer: int, k_bksh: Array, v_bksh: Array | None) -> Sequence[Segment]:
            kept.append(Segment(k_bksh, v_bksh, keys, jnp.asarray(batch.kinds_bt)))
            return kept[-1:] if prefix is None else [prefix.segments[layer], kept[-1]]

        hidden_btd = self.decoder(
            self.embed(batch),
            jnp.asarray(batch.positions_bt3),
            Visibility(order=jnp.broadcast_to(places, batch.tokens_bt.shape)),
            extend_cache,
            causal=prefix is None,
            hooks=hooks,
        )
        return hidden_btd, tuple(kept), hooks

    def forward(
        self,
        batch: Batch,
        steering: Steering | None = None,
        prefix: Prefix | None = None,
    ) -> Float[Array, "B T V"]:
        """Returns float32 logits at every place of the batch; arguments as of `prefill`."""
        return self.decoder.logits(self.hidden(batch, steering, prefix))

    def hidden(
        self,
        batch: Batch,
        steering: Steering | None = None,
        prefix: Prefix | None = None,
    ) -> Float[Array, "B T D"]:
        """Returns the hidden states that the head reads, at every place; arguments as `prefill`."""
        return self.read(batch, steering, _shared(prefix, batch.size))[0]

    def read_prefix(self, batch: Batch, steering: Steering | None = None) -> Prefix:
        """Reads the beginnings of prompts, each up to its last image token.

        Args:
            batch: the beginnings, with their images.
            steering: what will be done to the attention of those who go on from them; its parts
                that act on prefixes (`Steering.on_prefix`) do.

        Raises:
            ValueError: the steering lets rows behind the prefix change rows within it.
        """
        if steering is not None:
            steering.check_shares_prefix()
            steering = steering.on_prefix
        _, segments, hooks = self.read(batch, steering, ends=False)
        return Prefix(segments, _states(hooks), jax.tree.structure(steering))

    def prefill(
        self,
        batch: Batch,
        slots: int,
        steering: Steering | None = None,
        prefix: Prefix | None = None,
        watch: Watch | None = None,
    ) -> tuple[Float[Array, "B V"], Cache, Watched]:
        """Reads prompts, or what follows their prefixes.

        Args:
            batch: the prompts; with prefixes what follows them, at least one token a row, its
                positions those of the whole prompts.
            slots: room for generated tokens.
            steering: what to do to attention.
            prefix: what `read_prefix` read of I prompts, with the parts of this steering that act
                there. The first B / I rows go on from the first, the next ones from the second.
            watch: what is kept of the last rows besides the readings of a steering.

        Returns:
            Float32 logits of the first generated token, the cache, and what was kept.

        Raises:
            ValueError: the prefixes were not read as this steering needs them.
        """
        prefix = _shared(prefix, batch.size)
        hidden_btd, prompt, hooks = self.read(batch, steering, prefix, watch=watch)
        last = (batch.lengths_b - 1)[:, None, None]
        hidden_bd = jnp.take_along_axis(hidden_btd, last, axis=1)[:, 0]
        before = 0 if prefix is None else prefix.length
        cache = Cache(
            prompt,
            tuple(new_slots(segment, slots, before) for segment in prompt),
            jnp.asarray(batch.next_position_b),
            jnp.int32(0),
            _states(hooks),
            before=before,
        )
        logits_bv, watched = self._read_head(hidden_bd, hooks)
        return logits_bv, cache, watched

    def step(
        self,
        tokens_b: Int[Array, " B"],
        cache: Cache,
        steering: Steering | None = None,
        watch: Watch | None = None,
        prefix: Prefix | None = None,
    ) -> tuple[Float[Array, "B V"], Cache, Watched]:
        """Reads one more token of every row; returns as `prefill` does.

        Args:
            tokens_b: the tokens.
            cache: what was read before, but for the prefixes.
            steering, watch: as for `prefill`.
            prefix: what the rows go on from (`Prefix.shared_by`).
        """
        rows = tokens_b.shape[0]
        order = cache.length + cache.used
        new: list[Segment] = []

        def extend_cache(layer: int, k_bksh: Array, v_bksh: Array | None) -> Sequence[Segment]:
            new.append(cache.write(layer, k_bksh, v_bksh))
            before = () if prefix is None else prefix.segments[layer : layer + 1]
            return [*before, cache.prompt[layer], new[-1]]

        hooks = Hooks.of(steering, watch, before=cache.states or None)
        positions_bt3 = jnp.broadcast_to(cache.next_position_b[:, None, None], (rows, 1, 3))
        hidden_btd = self.decoder(
            self.decoder.embed(tokens_b[:, None]),
            positions_bt3,
            Visibility(order=jnp.broadcast_to(order, (rows, 1))),
            extend_cache,
            hooks=hooks,
        )
        cache = dataclasses.replace(
            cache,
            new=tuple(new),
            next_position_b=cache.next_position_b + 1,
            used=cache.used + 1,
            states=_states(hooks),
        )
        logits_bv, watched = self._read_head(hidden_btd[:, 0], hooks)
        return logits_bv, cache, watched

    def _read_head(
        self, hidden_bd: Float[Array, "B D"], hooks: Hooks | None
    ) -> tuple[Float[Array, "B V"], Watched]:
        """Returns the logits of last rows and the kept values, with logits of early layers."""
        early_bjd = None if hooks is None else hooks.early_bjd
        if hooks is None or early_bjd is None:
            return self.decoder.logits(hidden_bd), _watched(hooks)
        if hooks.watch.early_norm:
            early_bjd = self.decoder.normed(early_bjd)
        logits_bjv = self.decoder.logits(jnp.concatenate([hidden_bd[:, None], early_bjd], axis=1))
        return logits_bjv[:, 0], dataclasses.replace(hooks.watched(), early_bjv=logits_bjv[:, 1:])


def _shared(prefix: Prefix | None, rows: int) -> Prefix | None:
    return None if prefix is None else prefix.shared_by(rows)


def _states(hooks: Hooks | None) -> tuple[State, ...]:
    return () if hooks is None else hooks.states


def _watched(hooks: Hooks | None) -> Watched:
    return Watched() if hooks is None else hooks.watched()


def split(model: nnx.Module) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """Splits a model into its static definition and a flat dict of arrays (or their shapes)."""
    graphdef, state = nnx.split(model)
    flat = {"/".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}
    return graphdef, flat


def merge(graphdef: nnx.GraphDef, params: Mapping[str, jax.Array]) -> Network:
    """Puts arrays back into a definition. Cheap: inside jit it runs at trace time only."""
    return merge_any(graphdef, params)


def merge_any(graphdef: nnx.GraphDef, params: Mapping[str, jax.Array]) -> Any:
    """Puts arrays back into the definition of any module; see `merge`."""
    flat = [
        (tuple(int(key) if key.isdigit() else key for key in path.split("/")), nnx.Param(array))
        for path, array in params.items()
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


@functools.cache
def abstract(config: VLMConfig) -> tuple[nnx.GraphDef, Mapping[str, Any]]:
    """Returns the definition and the `ShapeDtypeStruct` of each parameter; allocates nothing."""

    def make() -> Network:
        # Shapes need no draws of their own, and to count draws in a trace takes time that grows
        # with the square of their number.
        rngs = nnx.Rngs(0)
        key = rngs.params()
        rngs.params = lambda: key  # pyright: ignore[reportAttributeAccessIssue]
        return Network(config, rngs)

    return split(nnx.eval_shape(make))


def init(config: VLMConfig, seed: int) -> Params:
    """Returns random float32 parameters. An architecture compiles once, whatever the seeds."""
    return _initialiser(config)(jax.random.key(seed))


@functools.cache
def _initialiser(config: VLMConfig) -> Callable[[Array], Params]:
    return jax.jit(lambda key: split(Network(config, nnx.Rngs(key)))[1])
