"""Functional heads: gains for heads that look at the image, and for heads that do not.

A head is a perception head where its visual attention ratio is high in the shallow layers, and a
reasoning head where it is low from some layer on. Lu et al., arXiv 2510.10285 (also CVPR 2026).
Layers count from 0 and both bounds belong to the range. There is no renormalisation.
"""

import dataclasses
from typing import Any

import numpy as np

from vlm_jax.attention.steering import HeadGains, Steering, VisualGains
from vlm_jax.config import VLMConfig
from vlm_jax.errors import ConfigError
from vlm_jax.settings import number, one_of, whole
from vlm_jax.steering.building import leaf
from vlm_jax.steering.controls import CLASS_CONTROLS, layer_order, shuffled, sink_mask
from vlm_jax.steering.heads import HeadSets, mask_of, shape_of
from vlm_jax.steering.named import resolve_heads
from vlm_jax.steering.presets import FUNCTIONAL, FunctionalPreset

MODES = ("dynamic", "prefill_cached", "dataset_static")
ROWS = ("q", "last")
_MAX_GAIN = 100.0
_FIELDS = (
    "reasoning_first_layer",
    "reasoning_to",
    "reasoning_gain",
    "perception_last_layer",
    "perception_from",
    "perception_gain",
)


@dataclasses.dataclass(frozen=True)
class Classes(FunctionalPreset):
    """How heads are classified, and the gains of the classes.

    Attributes:
        neutral_gain: of all other heads.
    """

    neutral_gain: float = 1.0

    def in_layers(self) -> tuple[np.ndarray, np.ndarray]:
        """Bool [L, 1] each: layers that may hold perception heads, and reasoning heads."""
        layer_l = np.arange(self.shape[0])[:, None]
        return layer_l <= self.perception_last_layer, layer_l >= self.reasoning_first_layer


def read_classes(config: VLMConfig, preset: str = "", **given: Any) -> Classes:
    """Returns a classification: a preset's, with some fields changed.

    Without a preset the thresholds and gains are Ocean-R1's, and its layer bounds at the same
    relative depths.

    Raises:
        ConfigError: the preset is unknown or of a model of another shape, thresholds are out of
            order, a layer is out of range or a gain is not finite.
    """
    shape = shape_of(config)
    published = FUNCTIONAL[one_of("preset", preset, FUNCTIONAL) if preset else "ocean-r1"]
    if preset and published.shape != shape:
        raise ConfigError(
            f"preset {preset!r} is of a model with {published.shape[0]} layers of "
            f"{published.shape[1]} heads, but this one has {shape[0]} of {shape[1]}; give "
            f"{', '.join(_FIELDS)} instead."
        )
    values = {name: getattr(published, name) for name in _FIELDS}
    for name in ("reasoning_first_layer", "perception_last_layer"):
        values[name] = min(round(values[name] * shape[0] / published.shape[0]), shape[0] - 1)
    values |= {name: value for name, value in given.items() if value is not None}
    for name in ("reasoning_first_layer", "perception_last_layer"):
        values[name] = whole(name, values[name], 0, shape[0] - 1)
    for name in ("reasoning_to", "perception_from"):
        values[name] = number(name, values[name], 0, 1)
    for name in ("reasoning_gain", "perception_gain"):
        values[name] = number(name, values[name], 0, _MAX_GAIN)
    if values["reasoning_to"] >= values["perception_from"]:
        raise ConfigError(
            f"reasoning_to={values['reasoning_to']} must be below "
            f"perception_from={values['perception_from']}, so that no head is in both classes."
        )
    return Classes(shape, **values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """Which heads are of which class, and where that is read: what all methods with classes ask.

    Attributes:
        preset: of a published model, whose thresholds, layers and gains are taken; "" is Ocean-R1's
            at the same relative depths.
        reasoning_first_layer: first layer that may hold reasoning heads (l_reas).
        reasoning_to: mass on images up to which a head is one (tau_reas).
        perception_last_layer: last layer that may hold perception heads (l_perc).
        perception_from: mass on images from which a head is one (tau_perc).
        rows: whose attention is read in a prompt: "q", the mean over text rows after the last image
            token, or "last", the last row; then each row's own.
        mode: "dynamic" classifies at every call, "prefill_cached" in the prompt only,
            "dataset_static" takes the classes of `heads`.
        passes: 1 reads each layer on the stream that shallower gains have changed; 2 reads classes
            from an unsteered pass over the prompt, and gains hold for the whole answer
            (`two_pass`).
        heads: where the classes of a calibration set are (`resolve_heads`); used by the static
            mode and by the controls "random" and "no_sinks" alone. "random" is static always.
        control: "random" takes as many heads of the same layers, "other" exchanges the gains of the
            classes, "all" gives every head their mean, "no_sinks" leaves attention sinks out.
        seed: of random heads.

    Raises:
        ConfigError: a word is unknown, or two passes are asked of gains that read no attention.
    """

    preset: str = ""
    reasoning_first_layer: int | None = None
    reasoning_to: float | None = None
    perception_last_layer: int | None = None
    perception_from: float | None = None
    rows: str = "q"
    mode: str = "dynamic"
    passes: int = 1
    heads: Any = None
    control: str = ""
    seed: int = 0

    def __post_init__(self):
        one_of("mode", self.mode, MODES)
        one_of("rows", self.rows, ROWS)
        one_of("control", self.control, CLASS_CONTROLS)
        if whole("passes", self.passes, 1, 2) == 2 and self.mode != "dynamic":
            raise ConfigError(
                f"passes=2 reads classes from the prompt, so mode={self.mode!r} has no meaning; "
                "leave one of them out."
            )

    def classes(self, config: VLMConfig, **gains: float | None) -> Classes:
        """Its thresholds and layers, with some gains."""
        given = {name: getattr(self, name) for name in _FIELDS if hasattr(self, name)}
        return read_classes(config, self.preset, **given, **gains)

    def steering(self, config: VLMConfig, classes: Classes) -> Steering:
        """The steering of a classification."""
        sets = _calibrated(config, self)
        return steer_classes(
            classes,
            rows=self.rows,
            mode=self.mode,
            sets=sets,
            control=self.control,
            seed=self.seed,
        )


def steer_classes(
    classes: Classes,
    *,
    rows: Any = "q",
    mode: Any = "dynamic",
    sets: HeadSets | None = None,
    control: str = "",
    seed: int = 0,
) -> Steering:
    """Returns the steering of a classification; see `functional_heads`."""
    perception, reasoning = classes.perception_gain, classes.reasoning_gain
    if control == "other":
        classes = dataclasses.replace(classes, perception_gain=reasoning, reasoning_gain=perception)
    if control == "all":
        return _gains(np.full(classes.shape, (perception + reasoning) / 2))
    if mode == "dataset_static":
        assert sets is not None
        gain_ln = static_gains(classes, sets)
        if control == "no_sinks":
            gain_ln = np.where(sink_mask(sets), classes.neutral_gain, gain_ln)
        return _gains(shuffled(gain_ln, seed) if control == "random" else gain_ln)
    if control == "random":
        assert sets is not None
        return _gains(matched_gains(classes, sets, seed))
    allowed_ln = np.ones(classes.shape, bool)
    if control == "no_sinks":
        assert sets is not None
        allowed_ln = ~sink_mask(sets)
    gains = _visual_gains(classes, allowed_ln, rows, mode)
    if classes.neutral_gain == 1:
        return Steering(visual_gains=gains)
    neutral = leaf(np.full(classes.shape, classes.neutral_gain))
    return Steering(visual_gains=gains, head_gains=HeadGains(neutral))


def classifier(classes: Classes, rows: Any = "q") -> Steering:
    """Returns a steering that changes nothing and reads which heads are in which class."""
    unit = dataclasses.replace(classes, perception_gain=1.0, reasoning_gain=1.0, neutral_gain=1.0)
    return Steering(visual_gains=_visual_gains(unit, np.ones(classes.shape, bool), rows, "dynamic"))


def static_gains(classes: Classes, sets: HeadSets) -> np.ndarray:
    """Gains [L, N] of the classes that a calibration set found.

    Raises:
        ConfigError: it found none, or a head is in both.
    """
    perception, reasoning = (mask_of(h, sets.shape) for h in (sets.perception, sets.reasoning))
    if not (perception.any() or reasoning.any()):
        raise ConfigError(
            f"heads {sets.name!r} name no perception and no reasoning heads; use a file of "
            "--job=identify whose thresholds select some."
        )
    if (perception & reasoning).any():
        raise ConfigError(f"heads {sets.name!r} name a head both perception and reasoning.")
    gain_ln = np.full(sets.shape, classes.neutral_gain)
    gain_ln[perception], gain_ln[reasoning] = classes.perception_gain, classes.reasoning_gain
    return gain_ln


def matched_gains(classes: Classes, sets: HeadSets, seed: int) -> np.ndarray:
    """Gains [L, N] of random heads, in every layer as many of each class as a mean decode row has.

    The file that the head sets are from must have been made with the thresholds of `classes`.

    Raises:
        ConfigError: the head sets do not say how often heads are in a class, or hardly any are.
    """
    if sets.perception_ln is None or sets.reasoning_ln is None:
        raise ConfigError(
            f"control='random' needs how often each head is in which class, which {sets.name!r} "
            "does not say; use a file of --job=identify as heads."
        )
    layers, width = sets.shape
    gain_ln = np.full(sets.shape, classes.neutral_gain)
    for layer in range(layers):
        shares = sets.perception_ln[layer].sum(), sets.reasoning_ln[layer].sum()
        first, second = (min(round(float(share)), width) for share in shares)
        order = layer_order(seed, layer, width)
        gain_ln[layer, order[:first]] = classes.perception_gain
        gain_ln[layer, order[first : first + second]] = classes.reasoning_gain
    if np.all(gain_ln == classes.neutral_gain):
        raise ConfigError(
            f"control='random': by {sets.name!r} no layer has one perception or reasoning head in "
            "a mean row, so there is nothing to match."
        )
    return gain_ln


def _calibrated(config: VLMConfig, chosen: Selection) -> HeadSets | None:
    if chosen.heads is not None:
        return resolve_heads(chosen.heads, config)
    static = chosen.mode == "dataset_static"
    if static or chosen.control in ("random", "no_sinks"):
        needs = f"mode={chosen.mode!r}" if static else f"control={chosen.control!r}"
        raise ConfigError(
            f"{needs} needs heads: a file of --job=identify that says which heads are in which "
            "class on a calibration set."
        )
    return None


def _visual_gains(classes: Classes, allowed_ln: np.ndarray, rows: Any, mode: Any) -> VisualGains:
    shallow, deep = classes.in_layers()
    neutral = classes.neutral_gain
    if neutral == 0 and (classes.perception_gain or classes.reasoning_gain):
        raise ConfigError("beta=0 on all other heads needs mode='dataset_static'.")
    relative = lambda gain: leaf(np.full(classes.shape, gain / neutral if neutral else 1.0))
    return VisualGains(
        leaf(np.where(shallow & allowed_ln, classes.perception_from, np.inf)),
        relative(classes.perception_gain),
        leaf(np.where(deep & allowed_ln, classes.reasoning_to, -np.inf)),
        relative(classes.reasoning_gain),
        rows=rows,
        mode=mode,
    )


def _gains(gain_ln: np.ndarray) -> Steering:
    return Steering(head_gains=HeadGains(leaf(gain_ln)))
