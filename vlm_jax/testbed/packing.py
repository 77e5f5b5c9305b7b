"""Several turns on one image as one row: the image is read once, and no turn sees another.

Each turn sits at the positions that it would have alone, right behind the image, so a packed row
trains exactly what `generate` later asks: a prompt with its image and nothing else.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vlm_jax.attention import NEVER, Segment, Visibility
from vlm_jax.batch import Images, Kind
from vlm_jax.errors import ConfigError
from vlm_jax.models import Network
from vlm_jax.testbed.architecture import Architecture


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedPrefix:
    """What every row begins with: the tokens of a chat up to the end of its image.

    Attributes:
        tokens_t, kinds_t, slots_t: int32 [T] as in a `Batch` row.
        positions_t3: int32 [T, 3].
        next_position: int32 scalar, the position of the first token of a turn.
    """

    tokens_t: np.ndarray
    kinds_t: np.ndarray
    slots_t: np.ndarray
    positions_t3: np.ndarray
    next_position: np.ndarray

    @classmethod
    def read(cls, processor, family: Architecture, image) -> "PackedPrefix":
        """Returns the prefix that the processor makes of a chat about `image`, a PIL image.

        Raises:
            ConfigError: the chat template does not end as prompts of training do.
        """
        batch = processor.batch([[image]], ["a"], groups=None)
        turn = processor.tokenizer.encode("a" + family.after, add_special_tokens=False)
        length = int(batch.lengths_b[0]) - len(turn)
        if batch.tokens_bt[0, length : length + len(turn)].tolist() != turn:
            raise ConfigError(
                f"the chat template of {family.name} does not end in the user's words and "
                f"{family.after!r}; training would not see what generation asks."
            )
        return cls(
            np.array(batch.tokens_bt[0, :length]),
            np.array(batch.kinds_bt[0, :length]),
            np.array(batch.slots_bt[0, :length]),
            np.array(batch.positions_bt3[0, :length]),
            np.array(batch.positions_bt3[0, length, 0]),
        )

    def without_image(self) -> "PackedPrefix":
        """The same chat with no image in it, for text-only training."""
        text = self.kinds_t != Kind.IMAGE
        count = np.int32(text.sum())
        places = np.arange(count, dtype=np.int32)
        return PackedPrefix(
            self.tokens_t[text],
            np.full(count, Kind.TEXT, np.int8),
            np.zeros(count, np.int32),
            np.repeat(places[:, None], 3, axis=1),
            np.array(count),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Turns:
    """The turns of each row, one after another, padded to one length.

    Attributes:
        tokens_bu: int32 [B, U].
        turns_bu: int32 [B, U] which turn a token belongs to, -1 where padded.
        offsets_bu: int32 [B, U] place of the token in its turn.
        targets_bu: int32 [B, U] the token that should follow.
        weights_bu: float32 [B, U] the turn's weight spread over its answer, 0 elsewhere.
    """

    tokens_bu: np.ndarray
    turns_bu: np.ndarray
    offsets_bu: np.ndarray
    targets_bu: np.ndarray
    weights_bu: np.ndarray


def pack_turns(
    tokenizer, family: Architecture, rows: Sequence[Sequence[tuple[str, str, float]]], length: int
) -> Turns:
    """Tokenises and packs turns.

    Args:
        tokenizer: the family's tokenizer.
        family: how a turn ends.
        rows: per row, (the user's words, the answer, weight of the whole answer) of each turn.
        length: tokens a row has room for.

    Raises:
        ConfigError: a row is longer than `length`.
    """
    flat = [turn for row in rows for turn in row]
    encode = lambda texts: tokenizer(texts, add_special_tokens=False)["input_ids"]
    asked = encode([words + family.after for words, _, _ in flat])
    answered = encode([answer for _, answer, _ in flat])
    eos = tokenizer.convert_tokens_to_ids(family.eos)
    shape = (len(rows), length)
    tokens, offsets, targets = (np.zeros(shape, np.int32) for _ in range(3))
    turns, weights = np.full(shape, -1, np.int32), np.zeros(shape, np.float32)
    pairs = zip(asked, answered)
    for index, row in enumerate(rows):
        used = 0
        for number, (_, _, weight) in enumerate(row):
            question, answer = next(pairs)
            ids = question + answer + [eos]
            end = used + len(ids) - 1  # the last token is only ever a target
            if end > length:
                raise ConfigError(f"a row of turns needs {end} tokens but has room for {length}.")
            here = index, slice(used, end)
            tokens[here], targets[here] = ids[:-1], ids[1:]
            turns[here], offsets[here] = number, np.arange(end - used)
            weights[index, used + len(question) - 1 : end] = weight / (len(answer) + 1)
            used = end
    return Turns(tokens, turns, offsets, targets, weights)


def turn_hidden(
    vlm: Network, prefix: PackedPrefix, turns: Turns, features_bmd: Array | None
) -> Float[Array, "B U D"]:
    """Returns hidden states at every token of the turns.

    Args:
        vlm: the model.
        prefix: what every row begins with.
        turns: the turns of each row.
        features_bmd: image tokens from `vlm.image_features`; None if the prefix has no image.
    """
    rows, length = turns.tokens_bu.shape
    start = prefix.tokens_t.shape[0]
    head_btd = vlm.decoder.embed(jnp.broadcast_to(prefix.tokens_t, (rows, start)))
    if features_bmd is not None:
        is_image = (prefix.kinds_t == Kind.IMAGE)[:, None]
        head_btd = jnp.where(is_image, features_bmd[:, prefix.slots_t], head_btd)
    x_btd = jnp.concatenate([head_btd, vlm.decoder.embed(jnp.asarray(turns.tokens_bu))], axis=1)
    turn_positions = (prefix.next_position + turns.offsets_bu)[..., None]
    positions_bt3 = jnp.concatenate(
        [
            jnp.broadcast_to(prefix.positions_t3, (rows, start, 3)),
            jnp.broadcast_to(turn_positions, (rows, length, 3)),
        ],
        axis=1,
    )
    places = jnp.broadcast_to(jnp.arange(start + length, dtype=jnp.int32), (rows, start + length))
    group = jnp.concatenate([jnp.full((rows, start), -2, jnp.int32), turns.turns_bu], axis=1)
    prefix_seen = Visibility(order=places[:, :start])
    order = jnp.where(turns.turns_bu < 0, NEVER, places[:, start:])
    turns_seen = Visibility(order=order, group=jnp.asarray(turns.turns_bu))

    def extend_cache(layer: int, k_bksh: Array, v_bksh: Array | None) -> list[Segment]:
        assert v_bksh is not None  # the decoders that are trained here have values
        return [
            Segment(k_bksh[:, :, :start], v_bksh[:, :, :start], prefix_seen),
            Segment(k_bksh[:, :, start:], v_bksh[:, :, start:], turns_seen),
        ]

    hidden_btd = vlm.decoder(x_btd, positions_bt3, Visibility(places, group), extend_cache)
    return hidden_btd[:, start:]


def weighted_loss(vlm: Network, hidden_bud: Array, turns: Turns, answered: int = 0) -> Array:
    """Returns the weighted sum of token losses over the sum of weights.

    Args:
        vlm: the model.
        hidden_bud: of `turn_hidden`.
        turns: the turns.
        answered: the most tokens with a weight that a row has; logits are made for as many tokens
            and no others, which counts where the vocabulary is large. 0 makes them for all.
    """
    targets, weights = jnp.asarray(turns.targets_bu), jnp.asarray(turns.weights_bu)
    if answered:
        _, places = jax.lax.top_k((weights > 0).astype(jnp.int32), answered)
        targets, weights = (jnp.take_along_axis(each, places, 1) for each in (targets, weights))
        hidden_bud = jnp.take_along_axis(hidden_bud, places[..., None], 1)
    log_probs = jax.nn.log_softmax(vlm.decoder.logits(hidden_bud), axis=-1)
    picked = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
    return -(picked * weights).sum() / weights.sum()


def image_features(vlm: Network, images: Images) -> Array:
    """Image tokens with no gradient through the tower, which stays frozen."""
    return vlm.projector(jax.lax.stop_gradient(vlm.vision(images)))
