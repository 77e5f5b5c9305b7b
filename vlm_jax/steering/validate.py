"""Checks on the host, before compiling, that a `Steering` fits a model and changes something."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from vlm_jax.attention.steering import Part, Steering
from vlm_jax.config import DecoderConfig
from vlm_jax.errors import ConfigError, IdentityError

_DIMS = {"LN": "heads", "LD": "dims of the residual stream"}


def validate(steering: Steering, config: DecoderConfig, batch: int | None = None) -> None:
    """Checks a steering against the decoder that it is meant for.

    Args:
        steering: leaves [1, L, N], or [B, L, N] where every example has its own; of vectors D in
            place of N.
        config: the decoder.
        batch: number of examples B; None accepts any.

    Raises:
        ConfigError: a leaf's shape is not the model's; a value is not finite (thresholds may be
            inf); a head could be of perception and of reasoning at once; a switch is unknown; a
            part of another package has no place; the steering has no part.
        IdentityError: none of its parts changes a head of any example.
    """
    _check_places(steering)
    if not steering.parts:
        raise ConfigError("The steering has no part. Give it one, or pass None for no steering.")
    for name, part in steering.parts.items():
        for field, leaf in _leaves(part):
            _check_leaf(part, name, field, leaf, config, batch)
    for name, part in steering.parts.items():
        for field in dataclasses.fields(part):  # type: ignore[arg-type]
            words, value = field.metadata.get("words"), getattr(part, field.name)
            if words and value not in words:
                raise ConfigError(
                    f"steering.{name}.{field.name} must be one of {words}, not {value!r}."
                )
    for part in steering.parts.values():
        part.check()
    if not any(np.any(part.acts()) for part in steering.parts.values()):
        raise IdentityError(
            "No example uses the steering: every head of every layer is left as it is (gains 1, "
            "strengths 0, no head listed). List heads or change a strength, or pass None for no "
            "steering."
        )


def _check_places(steering: Steering) -> None:
    places = [field.name for field in dataclasses.fields(steering) if field.name != "others"]
    kinds = [type(part) for part in steering.others]
    for kind in kinds:
        if kind.follows not in places:
            raise ConfigError(
                f"steering.{kind.__name__} follows {kind.follows!r}, which is no part; the parts "
                f"are {', '.join(places)}."
            )
        if kinds.count(kind) > 1:
            raise ConfigError(f"steering.others has two {kind.__name__}; make one of them.")


def _leaves(part: Part) -> Iterator[tuple[str, np.ndarray]]:
    for field in dataclasses.fields(part):  # type: ignore[arg-type]
        if not field.metadata.get("static"):
            yield field.name, np.asarray(getattr(part, field.name))


def _check_leaf(
    part: Part, name: str, field: str, leaf: np.ndarray, config: DecoderConfig, batch: int | None
) -> None:
    layers = config.num_layers
    width = config.num_heads if part.dims == "LN" else config.hidden_size
    if leaf.ndim != 3 or leaf.shape[1:] != (layers, width):
        raise ConfigError(
            f"steering.{name}.{field} has shape {leaf.shape}, but the model has {layers} layers of "
            f"{width} {_DIMS[part.dims]}: make it [1, {layers}, {width}], or [examples, {layers}, "
            f"{width}]."
        )
    if batch is not None and leaf.shape[0] not in (1, batch):
        raise ConfigError(
            f"steering.{name}.{field} holds {leaf.shape[0]} examples, but the batch has {batch}: "
            "give one for all, or one for each."
        )
    endless = field in part.endless
    bad = np.isnan(leaf) if endless else ~np.isfinite(leaf)
    if bad.any():
        example, layer, place = np.argwhere(bad)[0]
        extra = f" ({part.endless[field]})" if endless else ""
        where = "head" if part.dims == "LN" else "dim"
        raise ConfigError(
            f"steering.{name}.{field} is {leaf[example, layer, place]} for layer {layer}, {where} "
            f"{place}: it must be a finite number{extra}."
        )
