"""The compiled programs of one model on one mesh: reading images and prompts, logits, decoding."""

import functools

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from vlm_jax.attention.steering import Steering
from vlm_jax.batch import Batch, Features, Images
from vlm_jax.config import VLMConfig
from vlm_jax.decoding.loop import LoopState, begin, decode, end, go_on
from vlm_jax.models import Params, Prefix, abstract, merge
from vlm_jax.parallel import batch_sharding, knows_mesh


class Programs:
    """Jitted programs, each of which takes the parameters first; shapes and switches are static.

    Attributes:
        read_images: images of prefixes -> their features.
        read_prefix: beginnings of prompts, steering -> `Prefix`.
        prefill: prompts, or what follows prefixes -> logits of the next token, cache, `Watched`.
        forward: the same prompts -> logits at every place.
        hidden, head: `forward` in two, for logits that are too many to hold at once.
        decode: what prefill returned -> answers and the cache, which is donated.
        begin, decode_part: `decode` in parts: the first token, then all up to a number of tokens.
    """

    def __init__(self, config: VLMConfig, mesh: Mesh):
        network = functools.partial(merge, abstract(config)[0])
        devices = mesh.shape["model"]
        parts = devices if config.decoder.num_heads % devices == 0 else 1  # of the heads

        def read_images(params: Params, images: Images):
            return Features(network(params).image_features(images))

        def read_prefix(params: Params, batch: Batch, steering: Steering | None):
            return network(params).read_prefix(batch, steering)

        def prefill(
            params: Params,
            batch: Batch,
            steering,
            prefix=None,
            owner_g=None,
            *,
            slots,
            watch=None,
            shared=None,
        ):
            prefix = _owned(prefix, owner_g, mesh)
            read = network(params).prefill(batch, slots, steering, prefix, watch)
            logits_bv, cache, watched = read
            return logits_bv, cache.spread(*shared) if shared else cache, watched

        def forward(params: Params, batch: Batch, steering, prefix=None, owner_g=None):
            prefix = _owned(prefix, owner_g, mesh)
            return network(params).forward(batch, steering, prefix)

        def hidden(params: Params, batch: Batch, steering, prefix=None, owner_g=None):
            prefix = _owned(prefix, owner_g, mesh)
            return network(params).hidden(batch, steering, prefix)

        def head(params: Params, hidden_btd, start, *, length):
            part_btd = jax.lax.dynamic_slice_in_dim(hidden_btd, start, length, axis=1)
            return network(params).decoder.logits(part_btd)

        def decode_all(params: Params, read, cache, inputs, prefix=None, owner_g=None, *, slots):
            prefix = _owned(prefix, owner_g, mesh)
            return decode(network(params), read, cache, inputs, slots, prefix, parts)

        def begin_one(params: Params, read, cache, inputs, prefix=None, owner_g=None, *, slots):
            prefix = _owned(prefix, owner_g, mesh)
            return begin(network(params), read, cache, inputs, slots, prefix, parts)

        def decode_part(params: Params, state: LoopState, inputs, until, prefix=None, owner_g=None):
            prefix = _owned(prefix, owner_g, mesh)
            state = go_on(network(params), state, inputs, until, prefix=prefix)
            return *end(state, inputs), state

        # Tokens lie whole with every device of a replica, of which the host may not have all.
        # Readings and counts stay with the devices that have the heads.
        whole = batch_sharding(mesh)
        answers = (*[whole] * 3, None, None, whole, None)
        jit = lambda program, **options: jax.jit(knows_mesh(program, mesh), **options)
        self.read_images, self.read_prefix = jit(read_images), jit(read_prefix)
        self.prefill = jit(prefill, static_argnames=("slots", "watch", "shared"))
        self.forward, self.hidden = jit(forward), jit(hidden)
        self.head = jit(head, static_argnames="length")
        self.decode = jax.jit(
            decode_all, static_argnames="slots", donate_argnames="cache", out_shardings=answers
        )
        self.begin = jax.jit(begin_one, static_argnames="slots", donate_argnames="cache")
        self.decode_part = jax.jit(decode_part, donate_argnames="state", out_shardings=answers)

    @property
    def compilations(self) -> int:
        """How many programs have been compiled so far."""
        return sum(program._cache_size() for program in vars(self).values())


def _owned(prefix: Prefix | None, owner_g: Array | None, mesh: Mesh) -> Prefix | None:
    """Returns the prefix of each group of rows; None for `owner_g`: they are these."""
    if prefix is None or owner_g is None:
        return prefix
    return _everywhere(prefix, mesh).take(owner_g)


def _everywhere(prefix: Prefix, mesh: Mesh) -> Prefix:
    """Replicates prefixes over the data axis, so that rows pick theirs without communication.

    Left to the partitioner, picking rows of a sharded array makes each device hold all B rows.
    """
    free = PartitionSpec.UNCONSTRAINED
    whole = lambda leaf: jax.lax.with_sharding_constraint(
        leaf, NamedSharding(mesh, PartitionSpec(None, *[free] * (leaf.ndim - 1)))
    )
    return prefix if mesh.shape["data"] == 1 else jax.tree.map(whole, prefix)
