"""Steering as data: arrays of what to change in every layer's heads and attention masses.

A `Steering` is a pytree of float32 arrays, [b, L, N] with b = 1 (the same for every example) or the
batch size (each example its own), and a few static switches. Parts that are None compile to
nothing. All values are traced: a sweep compiles once. A part is a file of `attention/parts`, or one
of another package, which says behind which of these it acts.

Order within one call, for query row i with logits s and weights a = softmax(s); it is the order of
the fields:

0. `EnergyRescale`: s *= a factor of the head, by its energy against that of the layer's other heads
   (decode rows, or whole prompts).
1. `LogitGains`: s *= gain of the key's kind (rows after the last image token).
2. `Lens`: s += strength * mean over heads of |s|, `ImageBoost`: s += strength * |s|, on image keys
   (decode rows).
3. softmax; masses on system, image and text keys are read here.
4. `Reallocation`: a *= factor of the key's kind, if the row's text mass reaches a threshold (decode
   rows).
5. `Projection`: zero trace, Frobenius rescale, shrinkage to the mean.
6. `VisualGains`, `HeadGains`, `Registers`: the head's output *= gain. Steps 4 and 5 are homogeneous
   in a, so gains commute with them.
7. `Vectors`: added to what the layer left in the residual stream.

Decode rows are the last prompt row, which predicts the first token, and every generated row. The
shares of image and text are meaningless in a row without image keys: `LogitGains`, `Lens`,
`ImageBoost`, `Reallocation` and `VisualGains` leave such rows alone (text-only samples, and rows
before the image).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vlm_jax.attention.parts.base import Part, Rows, State
from vlm_jax.attention.parts.energy_rescale import EnergyRescale
from vlm_jax.attention.parts.head_gains import HeadGains
from vlm_jax.attention.parts.image_boost import ImageBoost
from vlm_jax.attention.parts.lens import Lens
from vlm_jax.attention.parts.logit_gains import LogitGains
from vlm_jax.attention.parts.projection import Projection
from vlm_jax.attention.parts.reallocation import Reallocation
from vlm_jax.attention.parts.registers import Registers
from vlm_jax.attention.parts.vectors import Vectors
from vlm_jax.attention.parts.visual_gains import VisualGains

__all__ = [
    "EnergyRescale", "HeadGains", "ImageBoost", "Lens", "LogitGains", "Part", "Projection",
    "Readings", "Reallocation", "Registers", "Rows", "State", "Steering", "Vectors", "VisualGains",
]  # fmt: skip


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Steering:
    """All changes of attention in a call; the module says in which order they act.

    Attributes:
        others: parts of other packages, at most one of a class; each acts behind the part that
            `Part.follows` names.
    """

    energy_rescale: EnergyRescale | None = None
    logit_gains: LogitGains | None = None
    lens: Lens | None = None
    image_boost: ImageBoost | None = None
    reallocation: Reallocation | None = None
    projection: Projection | None = None
    visual_gains: VisualGains | None = None
    head_gains: HeadGains | None = None
    registers: Registers | None = None
    vectors: Vectors | None = None
    others: tuple[Part, ...] = ()

    @classmethod
    def of(cls, parts: Mapping[str, Part]) -> "Steering":
        """Returns the steering that has these `parts`."""
        own = {name: part for name, part in parts.items() if name in cls.__dataclass_fields__}
        named: dict[str, Any] = own
        return cls(**named, others=tuple(part for name, part in parts.items() if name not in own))

    @property
    def parts(self) -> dict[str, Part]:
        """The parts that are there, by name, in their order; others by the name of their class."""
        found = {}
        for name, part in vars(self).items():
            if name == "others":
                continue
            if part is not None:
                found[name] = part
            found |= {type(one).__name__: one for one in self.others if one.follows == name}
        return found

    def layer(self, index: int) -> "Steering":
        """Returns the part of one layer: leaves [b, N]."""
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[:, index], self)

    @property
    def on_prefix(self) -> "Steering | None":
        """The parts that act up to a prompt's last image token, or count rows there; None: none do.

        Others act on text rows after the image, or on the last row of a prompt and the generated
        ones.
        """
        acting = {name: part for name, part in self.parts.items() if part.on_prefix}
        return Steering.of(acting) if acting else None

    @property
    def keeps_prefix(self) -> bool:
        """True if this steering changes no row up to the last image of a prompt.

        A prefix that was read without steering can then be reused.
        """
        return self.on_prefix is None

    @property
    def shares_prefix(self) -> bool:
        """Whether prompts may be read in two calls, the first up to the last image token.

        The first call is then steered too, unless this `keeps_prefix`.
        """
        return self._needs_whole_prompts() is None

    def check_shares_prefix(self) -> None:
        """Raises ValueError, with the reason, unless `shares_prefix`."""
        reason = self._needs_whole_prompts()
        if reason is not None:
            raise ValueError(f"{reason}. Prompts cannot share a prefix then: read them whole.")

    def _needs_whole_prompts(self) -> str | None:
        """Returns why prompts must be read at once, if they must."""
        reasons = [part.whole_prompts for part in self.parts.values()]
        return next((reason for reason in reasons if reason is not None), None)

    @property
    def touches_row(self) -> bool:
        """Whether decode rows need more than the weights of plain attention."""
        return any(part.touches_row for part in self.parts.values())

    @property
    def flags(self) -> tuple[str, ...]:
        """What its parts report of heads, by the names of `Readings` without their dims."""
        return tuple(flag for part in self.parts.values() for flag in part.flags)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Readings:
    """Readings of a layer's decode row: masses, and which heads were acted on; float32 [B, N].

    Devices that share the heads keep these apart until the host has them.

    Attributes:
        image_bn, text_bn, system_bn: masses before reallocation.
        fired_bn: 1 where the row was reallocated.
        perception_bn, reasoning_bn: 1 where a head has the gain of the class in this call.
    """

    image_bn: Float[Array, "B N"]
    text_bn: Float[Array, "B N"]
    system_bn: Float[Array, "B N"]
    fired_bn: Float[Array, "B N"]
    perception_bn: Float[Array, "B N"]
    reasoning_bn: Float[Array, "B N"]

    @classmethod
    def none(cls, rows: int, heads: int) -> "Readings":
        """Returns zeros, where there is no decode row."""
        return cls(*[jnp.zeros((rows, heads), jnp.float32)] * 6)

    @classmethod
    def of(cls, masses: tuple[Array, Array, Array], flags: Mapping[str, Array]) -> "Readings":
        """Returns masses on image, text and system, with flags that are 0 where nobody set them."""
        fields = [field.name.removesuffix("_bn") for field in dataclasses.fields(cls)[3:]]
        none = jnp.zeros_like(masses[0], jnp.float32)
        return cls(*masses, *(jnp.asarray(flags.get(n, none)).astype(jnp.float32) for n in fields))
