"""Steering as data: what to do to the heads and the attention masses of every layer.

A `Steering` is a pytree of float32 arrays, [b, L, N] with b = 1 (the same for every example) or the
batch size (each example its own), and a few static switches. Parts that are None compile to
nothing. All values are traced: a sweep compiles once.

Order within one call, for query row i with logits s and weights a = softmax(s):

0. `EnergyRescale`: s *= a factor of the head, by its energy against that of the layer's other heads
   (decode rows, or whole prompts).
1. `LogitGains`: s *= gain of the key's kind (rows after the last image token).
2. `Lens`: s += strength * mean over heads of |s|, on image keys (decode rows).
3. softmax; masses on system, image and text keys are read here.
4. `Reallocation`: a *= factor of the key's kind, if the row's text mass reaches a threshold (decode
   rows).
5. `Projection`: zero trace, Frobenius rescale, shrinkage to the mean.
6. `HeadGains`, `VisualGains`: the head's output *= gain. Steps 4 and 5 are homogeneous in a, so
   gains commute with them.

Decode rows are the last prompt row, which predicts the first token, and every generated row. The
shares of image and text are meaningless in a row without image keys: `LogitGains`, `Lens`,
`Reallocation` and `VisualGains` leave such rows alone (text-only samples, and rows before the
image).
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Values = Any  # float32 [b, L, N], or [b, N] once a layer is picked


_static = {"static": True}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EnergyRescale:
    """Brings the logits of heads with `on` > 0 towards the mean energy of the layer's heads.

    With E_n the sum of squared logits of head n, s *= clip(sqrt(target * mean_n E / (E_n + 1e-8)),
    0.8, 1.25), the mean over all heads of the layer (`air_qk_rescale` of the released AIR*, where
    it is off by default and `target` is 1).

    Attributes:
        prefill: "off": each decode row by its own logits on the keys that it sees. "official": all
            rows of a prompt by one factor, of all its rows and keys, later ones included, as the
            released AIR* does (for replication only).
    """

    on: Values
    target: Values
    prefill: Literal["off", "official"] = dataclasses.field(default="off", metadata=_static)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LogitGains:
    """Factors on the logits of image and system keys; 1 is the identity.

    Modality rebalance of AIR* (released code of arXiv 2603.24058).
    """

    image: Values
    system: Values


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lens:
    """Strength of the cross-head shift on image keys; 0 is the identity (AIR*)."""

    strength: Values


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HeadGains:
    """Factors on head outputs, at all rows; 1 is the identity."""

    gain: Values


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VisualGains:
    """Gains by the visual attention ratio of the same call (arXiv 2510.10285).

    A head whose mass on image keys is at least `perception_from` gets `perception_gain`; one whose
    mass is at most `reasoning_to` gets `reasoning_gain`. Heads outside a class's layers have the
    thresholds inf and -inf.

    Attributes:
        rows: the ratio at prefill is the mean over text rows after the last image token ("q") or
            that of the last row ("last"); at decode it is the current row's. The gains of prefill
            act on all its rows.
        mode: "dynamic" classifies at every call; "prefill_cached" keeps the prefill's gains.
    """

    perception_from: Values
    perception_gain: Values
    reasoning_to: Values
    reasoning_gain: Values
    rows: Literal["q", "last"] = dataclasses.field(default="q", metadata=_static)
    mode: Literal["dynamic", "prefill_cached"] = dataclasses.field(
        default="dynamic", metadata=_static
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reallocation:
    """Factors on the masses of image and text keys in rows that lean on text.

    A row fires in head n when its text mass is at least `threshold` (inf for heads that are not
    listed). AIR: image 3.5, text 0.1, threshold 0.3. AD-HH: image 1, text 0, threshold 0.5.

    Attributes:
        renormalise: divide by the row's new sum; a row of which nothing is left stays as it was.
        text_includes_system: count and scale system keys as text.
        trigger_reduce: "batch_sum" adds text masses over the batch before the comparison, as the
            released AIR* does, for replication only.
    """

    image: Values
    text: Values
    threshold: Values
    renormalise: bool = dataclasses.field(default=False, metadata=_static)
    text_includes_system: bool = dataclasses.field(default=False, metadata=_static)
    trigger_reduce: Literal["sample", "batch_sum"] = dataclasses.field(
        default="sample", metadata=_static
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Projection:
    """Zero trace, Frobenius rescale and shrinkage to the mean by `beta`, in heads with `on` > 0.

    With A the n x n map of the rows read so far (n real keys), as steps 1 to 4 left them: zero
    trace is A - tr(A)/n I, the rescale multiplies by ||A|| / ||A - tr(A)/n I|| (see
    `frobenius_scale`), and shrinkage is (1 - beta) A + beta mean(A). A row that shrinks only does
    so to its own mean over the keys it sees; beta 0 is then the identity. Zero trace has none.

    Attributes:
        zero_trace: at decode rows, "skip" shrinks only; "running" takes the last row of the
            projected map of all rows up to it, each frozen as it was when it was read.
        prefill: rows before the last prompt row: "off" leaves them; "causal" treats each as
            "running" would, with the map of the rows up to it; "official" projects all prompt rows,
            the last one too, with the map of the whole prompt and puts beta mean(A) on later keys
            also (as the released AIR* does, for replication only).
    """

    on: Values
    beta: Values
    zero_trace: Literal["skip", "running"] = dataclasses.field(default="skip", metadata=_static)
    prefill: Literal["off", "causal", "official"] = dataclasses.field(
        default="off", metadata=_static
    )

    @property
    def counts(self) -> bool:
        """Whether traces and norms of the rows read so far are needed."""
        return self.zero_trace == "running" or self.prefill != "off"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Steering:
    """Everything that is done to attention; see the module for the order."""

    energy_rescale: EnergyRescale | None = None
    logit_gains: LogitGains | None = None
    lens: Lens | None = None
    reallocation: Reallocation | None = None
    projection: Projection | None = None
    head_gains: HeadGains | None = None
    visual_gains: VisualGains | None = None

    def layer(self, index: int) -> "Steering":
        """Returns the part of one layer: leaves [b, N]."""
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[:, index], self)

    @property
    def on_prefix(self) -> "Steering | None":
        """The parts that act up to a prompt's last image token, or count rows there; None: none do.

        Head gains, visual gains, projections that count rows, and an energy rescale of whole
        prompts. Logit gains act on text rows after the image only; lens, reallocation, and rescales
        and projections of decode rows alone on the last row of a prompt and the generated ones.
        """
        projection = self.projection
        if projection is not None and not projection.counts:
            projection = None
        energy = self.energy_rescale
        if energy is not None and energy.prefill == "off":
            energy = None
        acting = Steering(
            energy_rescale=energy,
            projection=projection,
            head_gains=self.head_gains,
            visual_gains=self.visual_gains,
        )
        return acting if jax.tree.leaves(acting) else None

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
        if self.visual_gains is not None:
            return "Visual gains act on all rows of a prompt, by a ratio of its later rows"
        if self.projection is not None and self.projection.prefill == "official":
            return "A projection with prefill='official' puts later keys into all rows of a prompt"
        if self.energy_rescale is not None and self.energy_rescale.prefill == "official":
            return "An energy rescale with prefill='official' acts on all rows by later ones"
        if self.reallocation is not None and self.reallocation.trigger_reduce == "batch_sum":
            return "A reallocation with trigger_reduce='batch_sum' depends on who is in the batch"
        return None

    @property
    def touches_row(self) -> bool:
        """Whether decode rows need more than the weights of plain attention."""
        return any((self.energy_rescale, self.lens, self.reallocation, self.projection))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """What the queries of a prefill are; None stands for decode rows.

    Attributes:
        after_image_bt: text rows after the sample's last image token.
        real_bt: rows that are not padding.
        last_b: index of the last prompt row; None where prompts go on in another call.
    """

    after_image_bt: Bool[Array, "B T"]
    real_bt: Bool[Array, "B T"]
    last_b: Int[Array, " B"] | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moments:
    """Trace, squares and sums of the attention rows of a head so far; float32 [B, N]."""

    trace_bn: Float[Array, "B N"]
    squares_bn: Float[Array, "B N"]
    sums_bn: Float[Array, "B N"]

    def __add__(self, other: "Moments") -> "Moments":
        return jax.tree.map(jnp.add, self, other)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What steering remembers of a layer from call to call.

    Attributes:
        moments: of the rows so far, where a projection counts them.
        gain_bn, perception_bn, reasoning_bn: the prefill's visual gains and classes in mode
            "prefill_cached".
    """

    moments: Moments | None = None
    gain_bn: Float[Array, "B N"] | None = None
    perception_bn: Bool[Array, "B N"] | None = None
    reasoning_bn: Bool[Array, "B N"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Readings:
    """What happened in a layer's decode row; float32 [B, N].

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


def visual_gain(
    part: VisualGains,
    ratio_bn: Float[Array, "B N"],
    known_b: Bool[Array, " B"] | None = None,
) -> tuple[Array, Bool[Array, "B N"], Bool[Array, "B N"]]:
    """Returns each head's gain, and which are perception and reasoning heads.

    Args:
        part: of this layer.
        ratio_bn: visual attention ratio.
        known_b: samples that have one (None: all); in the others no head is of a class.
    """
    known_b1 = True if known_b is None else known_b[:, None]
    perception = (ratio_bn >= part.perception_from) & known_b1
    reasoning = (ratio_bn <= part.reasoning_to) & known_b1
    return class_gain(part, perception, reasoning), perception, reasoning


def class_gain(
    part: VisualGains, perception_bn: Bool[Array, "B N"], reasoning_bn: Bool[Array, "B N"]
) -> Float[Array, "B N"]:
    """Returns the gain of each head's class; 1 for heads of none."""
    gain = jnp.where(reasoning_bn, part.reasoning_gain, 1.0)
    return jnp.where(perception_bn, part.perception_gain, gain)


EPSILON = 1e-8
"""Added to what both rescales divide by, as in the released AIR*."""

ENERGY_FACTORS = 0.8, 1.25
"""Limits of the energy rescale, as in the released AIR*."""


def energy_factors(part: EnergyRescale, energy_bn: Float[Array, "B N"]) -> Float[Array, "B N"]:
    """Returns the factor on each head's logits, exactly 1 where the part is off.

    Args:
        part: of this layer.
        energy_bn: sum of squared logits of each head.
    """
    wanted = part.target * jnp.mean(energy_bn, axis=1, keepdims=True)
    factor = jnp.clip(jnp.sqrt(wanted / (energy_bn + EPSILON)), *ENERGY_FACTORS)
    return jnp.where(part.on > 0, factor, 1.0)


LARGEST_SCALE = 8.0
"""Limit of the Frobenius rescale. The map of a prompt's first few rows is nearly diagonal, the
first row's is: all that zero trace leaves of it is rounding, which must not be blown up. Maps of
whole prompts are far from it (about 1.01 to 1.1)."""


def frobenius_scale(squares: Array, trace: Array, count: Array) -> Array:
    """Returns sqrt(||A||^2 / ||A - tr(A)/n I||^2), at most `LARGEST_SCALE`.

    Args:
        squares: ||A||^2.
        trace: tr(A).
        count: n.
    """
    rest = jnp.maximum(squares - trace * trace / count, 0.0)
    return jnp.minimum(jnp.sqrt(squares / (rest + EPSILON)), LARGEST_SCALE)
