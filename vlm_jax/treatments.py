"""What is done to a model: an edit of weights, steering, a strategy, a bias of logits.

A treatment is a method with its settings. A model carries those that it has, in order, and an arm
of a comparison is draws of treatments:

    vlm.apply("qk", k=4).treatments     # (qk(k=4),)
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from vlm_jax.answering import DeviceStore
from vlm_jax.attention.steering import Steering
from vlm_jax.batch import Batch
from vlm_jax.checkpoint import ModelFolder
from vlm_jax.config import VLMConfig
from vlm_jax.decoding import Generator, named
from vlm_jax.decoding.rerankers import HostMethod
from vlm_jax.decoding.search import Search
from vlm_jax.decoding.strategies import Strategy
from vlm_jax.decoding.together import check_together
from vlm_jax.edits import Certificate, MadeEdit
from vlm_jax.errors import ConfigError
from vlm_jax.models import Params, Prefix
from vlm_jax.processing import Processor
from vlm_jax.settings import plain
from vlm_jax.steering.combine import merge
from vlm_jax.steering.two_pass import answer_in_two_passes


class TreatedModel(Protocol):
    """What is needed of a model; `vlm_jax.VLM` is one."""

    config: VLMConfig
    params: Params
    processor: Processor
    mesh: Mesh
    folder: ModelFolder | None
    treatments: "tuple[Treatment, ...]"
    steering: Steering | None
    generator: Generator
    prefixes: DeviceStore[Prefix]
    images: DeviceStore[Batch]
    buckets: set[Hashable]

    @property
    def answer(self) -> Callable[..., Iterator[Any]]:
        """See `VLM.answer`."""
        ...

    @property
    def generate(self) -> Callable[..., Any]:
        """See `VLM.generate`."""
        ...

    @property
    def ask(self) -> Callable[..., list[Any]]:
        """See `VLM.ask`."""
        ...

    def source_folder(self, what: str) -> ModelFolder:
        """See `VLM.source_folder`."""
        ...

    def treated(self, treatment: "Treatment", replace: Any = None) -> Any:
        """See `VLM.treated`."""
        ...


@dataclasses.dataclass(frozen=True)
class Treatment:
    """A method with its settings, as it was applied to a model.

    Attributes:
        method: its name.
        settings: those that were given.
    """

    method: str
    settings: Mapping[str, Any]

    @property
    def control(self) -> str:
        """Which control of the method this is; "" is the method itself."""
        return str(self.settings.get("control", ""))

    def identity(self) -> dict[str, Any]:
        """Returns JSON values that say what this is: the method and the settings that were given.

        Apart, since an edit has a setting `method` of its own.
        """
        return {
            "method": self.method,
            "settings": json.loads(json.dumps(self.settings, default=_json)),
        }

    def apply(self, model: TreatedModel) -> Any:
        """Returns the model with this treatment added to those that it has.

        Raises:
            ConfigError: another one sets the same part.
        """
        self.check_beside(model.treatments)
        return model.treated(self)

    def check_beside(self, others: "Sequence[Treatment]") -> None:
        """Refuses others that set the same part.

        Raises:
            ConfigError: naming both.
        """

    def __str__(self) -> str:
        return f"{self.method}({', '.join(f'{k}={v!r}' for k, v in self.settings.items())})"


@dataclasses.dataclass(frozen=True)
class Edited(Treatment):
    """An edit of a model's weights, worked out for its folder.

    Attributes:
        made: what it replaces, and its certificate.
    """

    made: MadeEdit = dataclasses.field(compare=False, repr=False)

    @functools.cached_property
    def certificate(self) -> Certificate:
        """What was done to every head, as the file beside the edited weights says it."""
        return Certificate(self.made.document())

    def check_beside(self, others: Sequence[Treatment]) -> None:
        """See `Treatment.check_beside`."""
        for other in (one for one in others if isinstance(one, Edited)):
            shared = sorted(set(other.made.replace) & set(self.made.replace))
            if shared:
                raise ConfigError(
                    f"methods {other.method!r} and {self.method!r} both change {shared[0]}, so "
                    "they cannot act together; use one of them."
                )

    def apply(self, model: TreatedModel) -> Any:
        """See `Treatment.apply`."""
        self.check_beside(model.treatments)
        return model.treated(self, replace=self.made.replace)


@dataclasses.dataclass(frozen=True)
class Steered(Treatment):
    """What a method does to attention while a model answers.

    Attributes:
        steering: leaves float32 [1, L, N].
    """

    steering: Steering = dataclasses.field(compare=False, repr=False)

    def identity(self) -> dict[str, Any]:
        """See `Treatment.identity`; a hash of the steering tells files of heads apart."""
        return {**super().identity(), "steering": steering_hash(self.steering)}

    def check_beside(self, others: Sequence[Treatment]) -> None:
        """See `Treatment.check_beside`."""
        _check_attention([*others, self])


@dataclasses.dataclass(frozen=True)
class TwoPasses(Steered):
    """Steering whose classes of heads are read of the unsteered prompt, in a pass of their own."""

    def answer(self, model: TreatedModel, *asked: Any, **settings: Any) -> Iterator[Any]:
        """Yields answers as `VLM.answer` does.

        Args:
            model: without treatments of attention.
            asked, settings: of `VLM.answer`.
        """
        return answer_in_two_passes(model, *asked, **settings)


@dataclasses.dataclass(frozen=True)
class Decoded(Treatment):
    """How a model chooses tokens, from several views of a sample.

    Attributes:
        strategy: see `vlm_jax.decoding.strategies`; or a search, of `vlm_jax.decoding.search`.
    """

    strategy: Strategy | Search = dataclasses.field(compare=False, repr=False)

    def check_beside(self, others: Sequence[Treatment]) -> None:
        """See `Treatment.check_beside`."""
        for other in (one for one in others if isinstance(one, Decoded | Reranked)):
            raise ConfigError(
                f"methods {other.method!r} and {self.method!r} both choose tokens, so they cannot "
                "act together; use one of them."
            )
        _check_attention([*others, self])


@dataclasses.dataclass(frozen=True)
class Reranked(Treatment):
    """Answers put together of segments that are drawn, of which some are kept.

    Attributes:
        reranker: see `vlm_jax.decoding.rerankers`.
    """

    reranker: HostMethod = dataclasses.field(compare=False, repr=False)

    def check_beside(self, others: Sequence[Treatment]) -> None:
        """See `Treatment.check_beside`."""
        for other in (one for one in others if isinstance(one, Reranked | Decoded)):
            raise _two_ways(other, self)
        _check_attention([*others, self])


def decoded(name: str, settings: Mapping[str, Any]) -> Decoded | Reranked:
    """Returns the treatment of a method of decoding.

    Raises:
        ConfigError: there is no such method or setting, or a value cannot be.
    """
    found = named.read_named(name, settings)
    if isinstance(found, HostMethod):
        return Reranked(name, dict(settings), found)
    return Decoded(name, dict(settings), found)


@dataclasses.dataclass(frozen=True)
class Biased(Treatment):
    """A bias of logits at every step.

    Attributes:
        bias_v: float32 [V]; several add up.
    """

    bias_v: np.ndarray = dataclasses.field(compare=False, repr=False)


def steering_of(treatments: Sequence[Treatment]) -> Steering | None:
    """Returns what some treatments do to attention together; None if they leave it alone.

    Raises:
        ConfigError: two set the same part.
    """
    named = [(one.method, one.steering) for one in treatments if isinstance(one, Steered)]
    return merge(named) if named else None


def _check_attention(treatments: Sequence[Treatment]) -> None:
    """Refuses treatments of attention that cannot act together, or beside a method of decoding."""
    steering = steering_of(treatments)
    for one in treatments:
        if isinstance(one, Decoded):
            check_together(steering, one.method, one.strategy)
        elif isinstance(one, Reranked):
            check_together(steering, one.method, one.reranker)
            for other in (other for other in treatments if isinstance(other, TwoPasses)):
                raise _two_ways(one, other)


def _two_ways(one: Treatment, other: Treatment) -> ConfigError:
    return ConfigError(
        f"methods {one.method!r} and {other.method!r} both say how answers come about, so they "
        "cannot act together; use one of them."
    )


def strategy_of(treatments: Sequence[Treatment]) -> Strategy | Search | None:
    """Returns how some treatments choose tokens; None if by the model's own logits."""
    return next((one.strategy for one in treatments if isinstance(one, Decoded)), None)


def bias_of(treatments: Sequence[Treatment]) -> np.ndarray | None:
    """Returns what some treatments add to logits, float32 [V]; None for nothing."""
    found = [one.bias_v for one in treatments if isinstance(one, Biased)]
    return np.sum(found, axis=0) if found else None


def steering_hash(steering: Steering) -> str:
    """Returns a short hash of what a steering does: its arrays and its switches."""
    leaves, structure = jax.tree.flatten(steering)
    found = hashlib.sha256(str(structure).encode())
    for leaf in leaves:
        found.update(str(np.shape(leaf)).encode() + np.asarray(leaf, np.float32).tobytes())
    return found.hexdigest()[:16]


def _json(value: Any) -> Any:
    """A setting as a JSON value."""
    value = plain(value)
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    return value.document() if hasattr(value, "document") else str(value)
