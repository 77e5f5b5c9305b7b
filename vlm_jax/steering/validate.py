"""Whether a `Steering` fits a model and says something, checked on the host before compiling."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from vlm_jax.attention.steering import Steering
from vlm_jax.config import DecoderConfig
from vlm_jax.errors import ConfigError, IdentityError

_THRESHOLDS = {
    "visual_gains.perception_from": "inf for a head that is never one of perception",
    "visual_gains.reasoning_to": "-inf for a head that is never one of reasoning",
    "reallocation.threshold": "inf for a head that never fires",
}
_SWITCHES = {
    "energy_rescale.prefill": ("off", "official"),
    "visual_gains.rows": ("q", "last"),
    "visual_gains.mode": ("dynamic", "prefill_cached"),
    "reallocation.trigger_reduce": ("sample", "batch_sum"),
    "projection.zero_trace": ("skip", "running"),
    "projection.prefill": ("off", "causal", "official"),
}


def validate(steering: Steering, config: DecoderConfig, batch: int | None = None) -> None:
    """Checks a steering against the decoder that it is meant for.

    Args:
        steering: leaves [1, L, N], or [B, L, N] where every example has its own.
        config: the decoder.
        batch: number of examples B; None accepts any.

    Raises:
        ConfigError: a leaf's shape is not the model's; a value is not finite (thresholds may be
            inf); a head could be of perception and of reasoning at once; a switch is unknown; the
            steering has no part.
        IdentityError: none of its parts changes a head of any example.
    """
    leaves = dict(_leaves(steering))
    if not leaves:
        raise ConfigError("The steering has no part. Give it one, or pass None for no steering.")
    for name, leaf in leaves.items():
        _check_leaf(name, leaf, config, batch)
    for name, known in _SWITCHES.items():
        part = getattr(steering, name.split(".")[0])
        value = None if part is None else getattr(part, name.split(".")[1])
        if value is not None and value not in known:
            raise ConfigError(f"steering.{name} must be one of {known}, not {value!r}.")
    _check_order(leaves)
    if not np.any(_acts(steering, leaves)):
        raise IdentityError(
            "No example uses the steering: every head of every layer is left as it is (gains 1, "
            "strengths 0, no head listed). List heads or change a strength, or pass None for no "
            "steering."
        )


def _leaves(steering: Steering) -> Iterator[tuple[str, np.ndarray]]:
    for part_field in dataclasses.fields(steering):
        part = getattr(steering, part_field.name)
        for field in dataclasses.fields(part) if part is not None else ():
            if not field.metadata.get("static"):
                yield f"{part_field.name}.{field.name}", np.asarray(getattr(part, field.name))


def _check_leaf(name: str, leaf: np.ndarray, config: DecoderConfig, batch: int | None) -> None:
    layers, heads = config.num_layers, config.num_heads
    if leaf.ndim != 3 or leaf.shape[1:] != (layers, heads):
        raise ConfigError(
            f"steering.{name} has shape {leaf.shape}, but the model has {layers} layers of {heads} "
            f"heads: make it [1, {layers}, {heads}], or [examples, {layers}, {heads}]."
        )
    if batch is not None and leaf.shape[0] not in (1, batch):
        raise ConfigError(
            f"steering.{name} holds {leaf.shape[0]} examples, but the batch has {batch}: give one "
            "for all, or one for each."
        )
    bad = np.isnan(leaf) if name in _THRESHOLDS else ~np.isfinite(leaf)
    if bad.any():
        example, layer, head = np.argwhere(bad)[0]
        extra = f" ({_THRESHOLDS[name]})" if name in _THRESHOLDS else ""
        raise ConfigError(
            f"steering.{name} is {leaf[example, layer, head]} for layer {layer}, head {head}: it "
            f"must be a finite number{extra}."
        )


def _check_order(leaves: dict[str, np.ndarray]) -> None:
    if "visual_gains.reasoning_to" not in leaves:
        return
    low, high = np.broadcast_arrays(
        leaves["visual_gains.reasoning_to"], leaves["visual_gains.perception_from"]
    )
    if (low >= high).any():
        example, layer, head = np.argwhere(low >= high)[0]
        raise ConfigError(
            f"visual_gains.reasoning_to is {low[example, layer, head]:g} and perception_from is "
            f"{high[example, layer, head]:g} for layer {layer}, head {head}: a head could be both. "
            "Make reasoning_to smaller than perception_from."
        )


def _acts(steering: Steering, leaves: dict[str, np.ndarray]) -> list[bool]:
    """Whether each part changes any head of any example."""
    get = leaves.__getitem__
    acts = []
    if steering.energy_rescale is not None:
        acts.append((get("energy_rescale.on") > 0).any())
    if steering.logit_gains is not None:
        acts += [(get("logit_gains.image") != 1).any(), (get("logit_gains.system") != 1).any()]
    if steering.lens is not None:
        acts.append((get("lens.strength") != 0).any())
    if steering.head_gains is not None:
        acts.append((get("head_gains.gain") != 1).any())
    if steering.reallocation is not None:
        factors = (get("reallocation.image") != 1) | (get("reallocation.text") != 1)
        acts.append((factors & (get("reallocation.threshold") < np.inf)).any())
    if steering.projection is not None:
        moves = steering.projection.counts | (get("projection.beta") != 0)
        acts.append(((get("projection.on") > 0) & moves).any())
    if steering.visual_gains is not None:
        perception = get("visual_gains.perception_from") < np.inf
        reasoning = get("visual_gains.reasoning_to") > -np.inf
        acts.append((perception & (get("visual_gains.perception_gain") != 1)).any())
        acts.append((reasoning & (get("visual_gains.reasoning_gain") != 1)).any())
    return acts
