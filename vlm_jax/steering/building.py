"""Parts of a steering as several methods build them: where heads are on, at which strengths."""

from typing import Any, Literal

import numpy as np

from vlm_jax.attention.steering import EnergyRescale, Projection, Reallocation
from vlm_jax.config import VLMConfig
from vlm_jax.errors import ConfigError
from vlm_jax.settings import number, one_of
from vlm_jax.steering.controls import CONTROLS, choose_heads
from vlm_jax.steering.heads import mask_of
from vlm_jax.steering.layers import layer_range, scaled_layers
from vlm_jax.steering.named import resolve_heads

ZERO_TRACE = ("skip", "running")
PREFILL = ("off", "causal", "official")
QK_RESCALE = ("off", "logit", "weight")


def in_layers(name: str, given: Any, released: tuple[int, int], layers: int, width: int):
    """Returns a mask, bool [L, N], that is True at all heads of a range of layers.

    Args:
        name: of the setting, for errors.
        given: its first and last layer, both included; None: the released range, scaled.
        released: first and last layer that the authors name, of a model of 32.
        layers, width: L and N of the model.

    Raises:
        ConfigError: `given` is no such range.
    """
    usual = given is None
    chosen = scaled_layers(*released, layers) if usual else layer_range(name, given, layers)
    return np.broadcast_to(np.isin(np.arange(layers), list(chosen))[:, None], (layers, width))


def listed(config: VLMConfig, heads: Any, count: int | None, control: str, seed: int):
    """Returns a mask, bool [L, N], that is True at the heads that a method or its control acts on.

    Args:
        config: of the model.
        heads: what a method's setting `heads` takes, see `resolve_heads`.
        count: so many of them, the strongest first; None: as many as the set says.
        control: a word of `CONTROLS`; "" for the method itself.
        seed: of a random control.

    Raises:
        ConfigError: a value is wrong, or the control is not possible with these heads.
    """
    one_of("control", control, CONTROLS)
    sets = resolve_heads(heads, config)
    return mask_of(choose_heads(sets, count, control, seed), sets.shape)


def energy_rescale(
    on_ln: np.ndarray, qk_rescale: Any, prefill: Literal["off", "official"] = "off"
) -> EnergyRescale | None:
    """Returns the rescale of a method's setting `qk_rescale`; None where it is off.

    Raises:
        ConfigError: `qk_rescale` is 'weight', which is an edit.
    """
    if one_of("qk_rescale", qk_rescale, QK_RESCALE) == "off":
        return None
    if qk_rescale == "weight":
        raise ConfigError(
            "qk_rescale='weight' is an edit of weights: make the folder by --job=fold "
            "--config=configs/fold.py, and steer that with qk_rescale='off'."
        )
    return EnergyRescale(leaf(on_ln), leaf(np.ones(on_ln.shape)), prefill=prefill)


def reallocation(
    on_ln: np.ndarray, threshold: float, image: float, text: float, **switches: Any
) -> Reallocation:
    """Returns a reallocation that acts at the heads of a mask, and is the identity elsewhere.

    Args:
        on_ln: the mask, bool [L, N].
        threshold: mass on text from which on a row is reallocated; elsewhere infinity.
        image, text: factors of the weights on image and text; elsewhere 1.
        switches: static switches of `Reallocation`.
    """
    return Reallocation(
        leaf(np.where(on_ln, image, 1)),
        leaf(np.where(on_ln, text, 1)),
        leaf(np.where(on_ln, threshold, np.inf)),
        **switches,
    )


def projection(on_ln: np.ndarray, shrinkage: Any, zero_trace: Any, prefill: Any) -> Projection:
    """Returns a projection that acts at the heads of a mask, bool [L, N].

    Args:
        on_ln: the mask.
        shrinkage: beta, from 0 to 1; 0 elsewhere.
        zero_trace, prefill: words of `ZERO_TRACE` and `PREFILL`.

    Raises:
        ConfigError: a value is out of range.
    """
    beta = number("shrinkage", shrinkage, 0, 1)
    one_of("zero_trace", zero_trace, ZERO_TRACE)
    one_of("prefill", prefill, PREFILL)
    return Projection(
        leaf(on_ln), leaf(np.where(on_ln, beta, 0)), zero_trace=zero_trace, prefill=prefill
    )


def leaf(values_ln: np.ndarray) -> np.ndarray:
    """Returns values [L, N] as a part's leaf: float32 [1, L, N], the same for all examples."""
    return np.asarray(values_ln, np.float32)[None]
