"""The arguments of one call of the generator, checked and put on the devices."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from vlm_jax.attention.steering import Steering
from vlm_jax.decoding.processors import LOOKS_BACK
from vlm_jax.decoding.search import LoopInputs, Search, search_of
from vlm_jax.decoding.settings import DecodeSettings
from vlm_jax.decoding.strategies.base import Strategy
from vlm_jax.decoding.together import check_together
from vlm_jax.errors import ConfigError
from vlm_jax.models import Watch
from vlm_jax.parallel import batch_sharding, put, replicated


@dataclasses.dataclass(frozen=True)
class Placement:
    """Puts trees of arrays on a mesh, or returns shapes with shardings in their place.

    Attributes:
        rows: places arrays whose first dim is the batch, split over the data axis.
        whole: places arrays that every device holds whole.
    """

    rows: Callable[[Any], Any]
    whole: Callable[[Any], Any]

    @classmethod
    def on(cls, mesh: Mesh, *, abstract: bool = False) -> "Placement":
        """Returns the placement on a mesh; an abstract one returns `ShapeDtypeStruct`s."""
        to = _like if abstract else put
        rows, whole = batch_sharding(mesh), replicated(mesh)
        return cls(lambda tree: to(tree, rows), lambda tree: to(tree, whole))

    def steering(self, steering: Steering | None) -> Steering | None:
        """Places steering: leaves [B, ...] with their rows, leaves [1, ...] on every device.

        A steering without parts becomes None, so that it runs the programs of no steering.
        """
        if steering is not None and not steering.parts:
            return None
        put = lambda leaf: (self.rows if leaf.shape[0] > 1 else self.whole)(leaf)
        return jax.tree.map(put, steering)


@dataclasses.dataclass(frozen=True)
class GeneratorCall:
    """Arguments of a call besides parameters and prompts; see `Generator.__call__`."""

    settings: DecodeSettings
    slots: int | None = None
    stop_ids: Sequence[int] = ()
    pad_id: int = 0
    row_ids: Sequence[int] | None = None
    logit_bias: np.ndarray | None = None
    prompts: np.ndarray | None = None
    steering: Steering | None = None
    strategy: Strategy | Search | None = None

    @property
    def width(self) -> int:
        """Number W of views that a sample is read in."""
        return 1 if self.contrast is None else self.contrast.width

    def _samples(self, rows: int) -> int:
        """Returns how many samples so many rows are, W views of each.

        Raises:
            ValueError: they are no whole number of samples.
        """
        if rows % self.width:
            raise ValueError(
                f"The batch has {rows} rows, which are no whole number of samples of {self.width} "
                "views; give all views of each sample, one behind the other."
            )
        return rows // self.width

    @property
    def contrast(self) -> Strategy | None:
        """The decoding strategy, if `strategy` is one and not a search."""
        return self.strategy if isinstance(self.strategy, Strategy) else None

    def watch(self, depth: int) -> Watch | None:
        """Returns what is watched of each call of a model of `depth` layers."""
        return (self.contrast or self.search).watch(depth)

    @property
    def room(self) -> int:
        """Slots for generated tokens."""
        return self.slots or self.settings.max_new_tokens

    @property
    def search(self) -> Search:
        """How tokens are chosen."""
        return search_of(self.settings, self.strategy)

    @property
    def shared(self) -> tuple[int, int] | None:
        """Rows and beams (C, W) of a search that share each prompt; None where C is 1."""
        rows = self.search.rows
        return None if rows == 1 else (rows, self.search.beams)

    def _prompts(self) -> np.ndarray | None:
        """Returns the prompts' tokens if a setting reads them, such as a repetition penalty.

        Raises:
            ValueError: a setting does, but they were not given.
        """
        looking = [name for name in LOOKS_BACK if name in self.settings.traced()]
        if looking and self.prompts is None:
            raise ValueError(f"{' and '.join(looking)} look back at the prompts; give `prompts`.")
        return self.prompts if looking else None

    def inputs(self, put: Placement, rows: int, vocabulary: int) -> LoopInputs:
        """Returns the loop's arguments, placed, for a batch of so many rows.

        Raises:
            ConfigError: the steering cannot act beside the search or the strategy, or the search
                wants more tokens than a model of this vocabulary has.
            ValueError: the rows are no whole number of samples.
        """
        size, search = self._samples(rows), self.search
        for what, count in (("beams", search.beams), ("candidates", search.rows // search.beams)):
            if count > vocabulary:
                raise ConfigError(
                    f"{count} {what} cannot be: the model has {vocabulary} tokens to choose among."
                )
        for method in (self.search, self.contrast):
            if method is not None:
                check_together(self.steering, method.name, method)
        ids = np.arange(size) if self.row_ids is None else np.asarray(self.row_ids)
        seeds = np.random.SeedSequence(self.settings.seed).generate_state(1)[0] ^ (
            ids.astype(np.uint32) * np.uint32(2654435761)
        )
        stops = np.asarray(sorted(set(self.stop_ids)) or [-1], np.int32)
        limit, pad = np.int32(self.settings.max_new_tokens), np.int32(self.pad_id)
        bias = self.logit_bias
        if bias is not None:
            bias = np.broadcast_to(np.asarray(bias, np.float32), (size, bias.shape[-1]))
        return LoopInputs(
            *put.whole((limit, stops, pad, self.settings.traced())),
            *put.rows((seeds, bias, self._prompts())),
            steering=put.steering(of_views(self.steering, self.width)),
            strategy=None if self.contrast is None else self.contrast.placed(put.whole),
            search=self.search.placed(put.whole),
        )


def of_views(steering: Steering | None, width: int) -> Steering | None:
    """Returns the steering of the rows of a batch that holds `width` views of each sample."""
    many = lambda leaf: leaf if leaf.shape[0] == 1 else np.repeat(np.asarray(leaf), width, axis=0)
    return steering if width == 1 else jax.tree.map(many, steering)


def _like(tree: Any, sharding: NamedSharding) -> Any:
    """Returns arrays' shapes and dtypes with a sharding."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )
