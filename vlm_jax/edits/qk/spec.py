"""What an edit is: one frozen description that a config can hold and a certificate can record."""

from __future__ import annotations

import dataclasses
import numbers
from typing import Any

from vlm_jax.errors import ConfigError, EditError
from vlm_jax.settings import check_fields, listed, number, one_of, optional, setting, switch, whole

METHODS = ("plain", "symmetric", "antisymmetric", "alignment")
CHANNELS = ("symmetric", "antisymmetric")
ALIGNMENT_CLASSES = ("content", "attract", "repel", "directional")
MAP_BACKS = ("projection", "pinv")
BIAS_MODES = ("weights", "operator", "augmented")
CONTROLS = {
    "": "the edit itself",
    "R1": "as many modes, drawn at random below the selected ones, at the same strength",
    "R2": "suppression of a random frame of the query space",
    "R3": "left-scrambled: same singular values of the change and same ||dW||, random query side",
    "R4": "suppression of random modes with the energy of the selected ones",
    "R5": "same singular values of the change, both sides random",
    "C1": "uniform temperature that removes the same energy",
    "C2": "the sign flipped: amplification instead of suppression",
    "C3": "the weakest modes instead of the strongest",
    "C4": "as many layers, taken from the first one on (same as C4-early)",
    "C4-early": "as many layers, taken from the first one on",
    "C4-late": "as many layers, taken up to the last one",
    "C5": "strength zero through the whole pipeline",
    "C6": "half of the heads, drawn at random",
}
DEFAULT_MODES = 4
DEFAULT_CHANNEL_RCOND = 1e-2


def _share(name: str, value: Any) -> float:
    """Returns a number above 0, at most 1."""
    if not number(name, value, low=0, high=1):
        raise ConfigError(f"{name} must be above 0, at most 1, not {value!r}.")
    return float(value)


def _positive(name: str, value: Any) -> float:
    """Returns a number above 0."""
    if not number(name, value, low=0):
        raise ConfigError(f"{name} must be above 0, not {value!r}.")
    return float(value)


def _ridge(name: str, value: Any) -> float:
    """Returns a number from 0, below 1."""
    if number(name, value, low=0, high=1) == 1:
        raise ConfigError(f"{name} must be below 1, not {value!r}.")
    return float(value)


def _band(name: str, value: Any) -> tuple[int, int] | tuple[float, float]:
    """Returns (first, last) as layer indices if both are integers, else as relative depths."""
    first, last = listed(name, value, each=number, least=2, most=2)
    if _is_int(value[0]) != _is_int(value[1]):
        raise ConfigError(
            f"{name}={tuple(value)!r} mixes a layer index and a relative depth; "
            "use two integers (layers) or two floats (depths)."
        )
    if first < 0 or first > last:
        raise ConfigError(f"{name}={tuple(value)!r} must have 0 <= first <= last.")
    if _is_int(value[0]):
        return int(value[0]), whole(name, value[1])
    if last > 1:
        raise ConfigError(f"{name}={tuple(value)!r} are relative depths and must lie in [0, 1].")
    return first, last


def _heads(name: str, value: Any) -> str | tuple[int | tuple[int, int], ...]:
    """Returns a word, or head indices and (layer, head) pairs."""
    if isinstance(value, str):
        return one_of(name, value, ("all", "concentrated"))
    if not listed(name, value, each=_head):
        raise ConfigError(f"{name}=() selects no head; use 'all' or name at least one.")
    return listed(name, value, each=_head)


def _head(name: str, value: Any) -> int | tuple[int, int]:
    try:
        if _is_int(value):
            return whole(name, value, low=0)
        layer, head = listed(name, value, each=whole, least=2, most=2, low=0)
    except ConfigError:
        raise ConfigError(
            f"{name} holds {value!r}; use head indices or (layer, head) pairs, counted from 0."
        ) from None
    return layer, head


@dataclasses.dataclass(frozen=True, kw_only=True)
class QKEdit:
    """One edit of the query weights.

    Attributes:
        method: `plain` suppresses the strongest modes of the product; `symmetric` and
            `antisymmetric` those of one channel, by least squares with keys fixed; `alignment` the
            strongest modes of one alignment class, exactly.
        k: number of modes a head (4 if neither `k` nor `energy` is given). Even for
            `antisymmetric`, whose modes come in pairs.
        energy: instead of `k`, the smallest number of modes whose share of the squared spectrum
            reaches this, in (0, 1].
        per_head: with `energy`, whether every head has its own number or a layer shares the one its
            mean energy asks for.
        strength: `a` in s -> (1 - a) s; 1 removes, 0 changes nothing, negative amplifies; at most
            1.
        soft: instead of a flat strength, scale it by alpha x / (1 + alpha x) with x = (s_m / s_1)^2
            and this alpha > 0.
        band: (first, last), inclusive: layer indices if integers; if floats, relative depths layer
            / layers, compared after rounding to two decimals.
        heads: `all`, `concentrated` (heads whose energy share of the selected modes is at least the
            layer's median), or a tuple of head indices or of (layer, head) pairs.
        bias: `weights` leaves query biases alone; `operator` passes them through the same head
            operator; `augmented` makes biases part of the product, as the weights of a constant
            input.
        fold_norm: whether the gain of the input norm is part of the product.
        rope_avg: whether the product averages the rotary rotation over the given offsets instead of
            taking offset 0.
        map_back: `projection` takes the target's directions from the queries; `pinv` is the literal
            (M' K^+)^T. The two agree where keys have full rank; elsewhere `pinv` also deletes what
            queries hold beside the keys, which does not act at offset 0 but does once positions
            turn it.
        rcond: ridge of the least-squares map-back relative to the largest singular value of the
            keys (0.01 for channels).
        alignment_min: c0, the |u.v| at which a mode counts as aligned, in [0, 1].
        alignment_class: `content` |c| >= c0, `attract` c >= c0, `repel` c <= -c0, `directional` |c|
            < c0.
        positive_only: in the symmetric channel, whether only positive eigenvalues (mutual
            attraction) are candidates.
        control: a word of `CONTROLS`; empty for the edit itself.
        seed: of the random controls; head n of layer l draws from (seed, l, n) whatever the number
            of devices.

    Raises:
        ConfigError: a field is outside its range.
        EditError: two fields contradict each other.
    """

    method: str = setting("plain", one_of, known=METHODS)
    k: int | None = setting(None, optional, each=whole, low=1)
    energy: float | None = setting(None, optional, each=_share)
    per_head: bool = setting(True, switch)
    strength: float = setting(0.5, number, high=1)
    soft: float | None = setting(None, optional, each=_positive)
    band: tuple[float, float] | tuple[int, int] = setting((0.36, 0.61), _band)
    heads: str | tuple = setting("all", _heads)
    bias: str = setting("weights", one_of, known=BIAS_MODES)
    fold_norm: bool = setting(False, switch)
    rope_avg: bool = setting(False, switch)
    map_back: str = setting("projection", one_of, known=MAP_BACKS)
    rcond: float | None = setting(None, optional, each=_ridge)
    alignment_min: float = setting(0.5, number, low=0, high=1)
    alignment_class: str = setting("content", one_of, known=ALIGNMENT_CLASSES)
    positive_only: bool = setting(False, switch)
    control: str = setting("", one_of, known=tuple(CONTROLS))
    seed: int = setting(0, whole, low=0)

    def __post_init__(self):
        check_fields(self)
        if self.k is not None and self.energy is not None:
            raise EditError(
                f"k={self.k} and energy={self.energy} both say how many modes to edit; give one of "
                "them."
            )
        if self.method == "antisymmetric" and self.energy is None and self.modes % 2:
            raise EditError(
                f"k={self.k} is odd, but antisymmetric modes come in pairs of equal strength; use "
                "an even k."
            )
        if self.soft is not None and self.control in ("R1", "R2", "R4", "C3"):
            raise EditError(
                f"control={self.control} replaces the modes that soft={self.soft} weights; "
                "use R3, R5 or a C control with a soft filter."
            )
        if self.control == "R2" and self.method in CHANNELS:
            raise EditError(
                f"control=R2 suppresses a frame of the query space and has no {self.method} form; "
                "use R1, R3, R4 or R5."
            )

    @property
    def modes(self) -> int:
        """The number of modes asked for when it is not set by energy."""
        return DEFAULT_MODES if self.k is None else self.k

    @property
    def joint(self) -> bool:
        """Whether the edit lives in the joint space of queries and keys (the two channels do)."""
        return self.method in CHANNELS

    @property
    def realised_strength(self) -> float:
        """The strength after the control had its say: C2 flips it, C5 makes it zero."""
        if self.control == "C5":
            return 0.0
        return -self.strength if self.control == "C2" else self.strength

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """The layers that a model of `num_layers` layers has edited, in order.

        Raises:
            EditError: the band leaves the model, holds no layer, or C4 has no room beside it.
        """
        first, last = self.band
        if _is_int(first):
            if last >= num_layers:
                raise EditError(
                    f"band={self.band} ends at layer {last}, but the model has layers 0 to "
                    f"{num_layers - 1}."
                )
            chosen = tuple(range(int(first), int(last) + 1))
        else:
            chosen = tuple(
                n for n in range(num_layers) if first <= round(n / num_layers, 2) <= last
            )
            if not chosen:
                raise EditError(
                    f"band={self.band} holds none of the {num_layers} layers; widen it or name "
                    "layer indices."
                )
        if self.control in ("C4", "C4-early"):
            return _apart(tuple(range(len(chosen))), chosen, num_layers)
        if self.control == "C4-late":
            return _apart(tuple(range(num_layers - len(chosen), num_layers)), chosen, num_layers)
        return chosen

    def check_layer(self, layer: int, head_dim: int, query_bias: bool) -> None:
        """Checks what can be checked of a layer before its weights are read.

        Raises:
            EditError: `k` is above the rank that `head_dim` allows, or a bias is missing.
        """
        rank = 2 * head_dim if self.joint else head_dim
        if self.energy is None and self.modes > rank:
            raise EditError(
                f"k={self.modes} is above the rank of a head's query-key product, at most {rank} "
                f"in {'its channels in ' if self.joint else ''}this model; lower k."
            )
        if self.bias != "weights" and not query_bias:
            raise EditError(
                f"layer {layer} has no query bias, which bias={self.bias!r} needs; use "
                "bias='weights'."
            )

    def heads_of(self, layer: int, num_heads: int) -> tuple[int, ...] | None:
        """The heads named for a layer, or None where spectra decide (`concentrated`).

        Raises:
            EditError: a named head is not in the model.
        """
        if self.heads == "concentrated":
            return None
        if self.heads == "all":
            return tuple(range(num_heads))
        everywhere = {h for h in self.heads if isinstance(h, int)}
        here = {h[1] for h in self.heads if isinstance(h, tuple) and h[0] == layer}
        named = sorted(everywhere | here)
        if named and named[-1] >= num_heads:
            raise EditError(
                f"heads names head {named[-1]}, but layer {layer} has heads 0 to {num_heads - 1}."
            )
        return tuple(named)

    def check_heads(self, layers: tuple[int, ...]) -> None:
        """Checks that named heads lie in the edited layers.

        Raises:
            EditError: a (layer, head) pair names another layer, so that it would not be edited.
        """
        if isinstance(self.heads, str):
            return
        for entry in self.heads:
            if isinstance(entry, tuple) and entry[0] not in layers:
                raise EditError(
                    f"heads names head {entry[1]} of layer {entry[0]}, but the edit touches layers "
                    f"{layers[0]} to {layers[-1]}; widen band or leave the head out."
                )


def _apart(control: tuple[int, ...], band: tuple[int, ...], num_layers: int) -> tuple[int, ...]:
    shared = sorted(set(control) & set(band))
    if shared:
        raise EditError(
            f"control C4 needs {len(band)} layers outside the band {band[0]}-{band[-1]}, but of "
            f"layers {control[0]}-{control[-1]} "
            f"of {num_layers} it would share {len(shared)}; narrow the band or take the other end "
            "(C4-early, C4-late)."
        )
    return control


def _is_int(value) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
