"""How much each head attends to the image, to text and to the system prompt, token by token.

    seen = vlm.attention("photo.jpg", "Describe.")
    seen.image          # float32 [tokens, layers, heads], the mass on the image's tokens
    seen.pieces         # the tokens as text

A model first writes its answer; then the answer is read again through the same decode steps, which
say where every head looked when it chose each token.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from vlm_jax import answering
from vlm_jax.answering import Answer
from vlm_jax.attention.steering import Readings, Steering
from vlm_jax.batch import Batch
from vlm_jax.errors import ConfigError
from vlm_jax.listing import html_table
from vlm_jax.models import Params, abstract, merge
from vlm_jax.models.hooks import Watch, Watched
from vlm_jax.parallel import batch_sharding, fetch, put
from vlm_jax.processing.buckets import bucket
from vlm_jax.side_by_side import data_frame
from vlm_jax.steering.heads import Head
from vlm_jax.treatments import TreatedModel, TwoPasses


@dataclasses.dataclass(frozen=True)
class Masses:
    """Attention while an answer was written; of a row of weights the three add up to 1.

    Row t of an array is of the step that chose token t: row 0 is the prompt's last, row t > 0 that
    of token t - 1.

    Attributes:
        answer: the answer.
        tokens: its ids.
        pieces: the ids one by one as text.
        image, text, system: float32 [tokens, layers, heads], masses on image tokens, on text behind
            the image (the answer so far included), and on what comes before it.
    """

    answer: str
    tokens: tuple[int, ...]
    pieces: tuple[str, ...]
    image: np.ndarray
    text: np.ndarray
    system: np.ndarray

    def to_pandas(self) -> Any:
        """Returns a pandas `DataFrame`: a row a token, layer and head.

        Raises:
            UserError: pandas is not installed.
        """
        rows = [
            {"token": t, "piece": self.pieces[t], "layer": layer, "head": head}
            | {name: float(getattr(self, name)[t, layer, head]) for name in _KINDS}
            for t, layer, head in np.ndindex(*self.image.shape)
        ]
        return data_frame(rows)

    def _means(self) -> list[list[str]]:
        shares = [getattr(self, name).mean((1, 2)) for name in _KINDS]
        cells = lambda t: [f"{100 * share[t]:.0f} %" for share in shares]
        return [[piece, *cells(t)] for t, piece in enumerate(self.pieces)]

    def __repr__(self) -> str:
        tokens, layers, heads = self.image.shape
        means = ", ".join(f"{name} {100 * getattr(self, name).mean():.0f} %" for name in _KINDS)
        return f"<Masses of {tokens} tokens, {layers} layers, {heads} heads: {means}>"

    def _repr_html_(self) -> str:
        return html_table(["token", *_KINDS], self._means(), "Mean over layers and heads")


_KINDS = ("image", "text", "system")


def refuse_two_passes(model: TreatedModel) -> None:
    """Raises ConfigError if the model classifies heads in a pass of its own."""
    if any(isinstance(one, TwoPasses) for one in model.treatments):
        raise ConfigError("attention cannot be read of passes=2; use passes=1, or no treatment.")


def read_masses(
    model: TreatedModel, answer: Answer, images: list[Any], prompt: str, steering: Steering
) -> Masses:
    """Returns where a model looked while it wrote an answer.

    Args:
        model: the model.
        answer: what it wrote.
        images, prompt: what it was asked.
        steering: with which it wrote, with a part that has masses read.

    Raises:
        ConfigError: the model classifies heads in a pass of its own.
    """
    masses_tlnc, _ = replayed(model, answer.tokens, images, prompt, steering)
    found = dict(zip(_KINDS, np.moveaxis(masses_tlnc, -1, 0)))
    pieces = model.processor.decode([[token] for token in answer.tokens], [1] * len(answer.tokens))
    return Masses(answer.text, answer.tokens, tuple(pieces), **found)


def replayed(
    model: TreatedModel,
    tokens: Sequence[int],
    images: list[Any],
    prompt: str,
    steering: Steering,
    means: tuple[int, ...] = (),
    heads: tuple[Head, ...] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Reads an answer again through the decode steps that wrote it.

    Args:
        model: the model.
        tokens: the answer.
        images, prompt: what was asked.
        steering: with which it was written, with a part that has masses read.
        means: layers whose weights over the prompt are kept, the mean of their heads.
        heads: single heads whose weights over the prompt are kept.

    Returns:
        Masses on image, text and system [tokens, L, N, 3], and the weights [tokens, means and
        heads, prompt's tokens]: by queries and keys as steering left them, before it changes
        weights.

    Raises:
        ConfigError: the model classifies heads in a pass of its own.
    """
    refuse_two_passes(model)
    count = max(len(tokens), 1)
    rows = answering.batch_rows(1, 1, model.mesh.shape["data"])
    batch = model.processor.batch([images] * rows, [prompt] * rows)
    tokens_bt = np.zeros((rows, bucket(count)), np.int32)
    tokens_bt[:, : len(tokens)] = tokens
    placed = put((batch, tokens_bt), batch_sharding(model.mesh))
    found = _replay(abstract(model.config)[0], means, heads, model.params, *placed, steering)
    readings, maps_tms = jax.tree.map(
        lambda leaf: np.asarray(fetch(leaf, model.mesh))[: len(tokens), 0], found
    )
    masses = [getattr(readings, f"{name}_bn") for name in _KINDS]
    return np.stack(masses, axis=-1), maps_tms


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _replay(
    graphdef: nnx.GraphDef,
    means: tuple[int, ...],
    heads: tuple[Head, ...],
    params: Params,
    batch: Batch,
    tokens_bt: Int[Array, "B T"],
    steering: Steering,
) -> tuple[Readings, Float[Array, "T B M S"]]:
    """Returns what happened in each step of writing some tokens, leaves [T, B, ...]."""
    model = merge(graphdef, params)
    layers = tuple(sorted({*means, *(layer for layer, _ in heads)}))
    watch, length = Watch(heads=layers), batch.tokens_bt.shape[1]

    def kept(watched: Watched) -> tuple[Readings | None, Array]:
        if not layers:
            return watched.readings, jnp.zeros((len(tokens_bt), 0, length))
        weights_bjns = watched.heads_bjns[..., :length]
        maps = [weights_bjns[:, layers.index(layer)].mean(1) for layer in means]
        maps += [weights_bjns[:, layers.index(layer), head] for layer, head in heads]
        return watched.readings, jnp.stack(maps, axis=1)

    _, cache, first = model.prefill(batch, tokens_bt.shape[1], steering, watch=watch)

    def step(cache: Any, token_b: Array) -> tuple[Any, Any]:
        _, cache, watched = model.step(token_b, cache, steering, watch)
        return cache, kept(watched)

    _, rest = jax.lax.scan(step, cache, tokens_bt.T[:-1])
    join = lambda one, many: jnp.concatenate([one[None], many])
    return jax.tree.map(join, kept(first), rest)
