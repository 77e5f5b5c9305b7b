"""AIR, AIR* and AD-HH: less attention on text, where a head leans on it too much.

AIR as its paper states it (arXiv 2603.24058): in listed heads, decode rows whose mass on text
reaches a threshold have their weights on the image multiplied and those on text damped, and every
decode row is shrunk towards its mean. AIR* is what the released code runs: gains on logits, a
cross-head lens, AD-HH in listed heads, and a projection in all heads of a range of layers. AD-HH
removes text from rows that lean on it.

The query-key energy rescale (`qk_rescale`) is off by default, as it is in the release. "logit" is
the release's form, on logits. The paper rescales the weights of the query-key product by their
spectral energy, by a formula that is not public; `steering.energy` has a reading of it as an edit
of weights.
"""

from typing import Any, Literal

import numpy as np

from vlm_jax.attention.steering import (
    EnergyRescale,
    Lens,
    LogitGains,
    Projection,
    Reallocation,
    Steering,
)
from vlm_jax.config import VLMConfig
from vlm_jax.errors import ConfigError
from vlm_jax.settings import number, one_of, switch
from vlm_jax.steering.controls import CONTROLS, choose_heads
from vlm_jax.steering.heads import mask_of, resolve_heads, shape_of

MODULES = ("full", "reallocation", "projection")
ZERO_TRACE = ("skip", "running")
PREFILL = ("off", "causal", "official")
QK_RESCALE = ("off", "logit", "weight")
_MAX_GAIN = 1000.0
_RELEASED_LAYERS = 32  # of the model that the released layer ranges are for
_REBALANCE_LAYERS = (9, 14)
_PROJECTION_LAYERS = (5, 17)


def air(
    config: VLMConfig,
    *,
    heads: Any = (),
    count: int | None = None,
    modules: str = "full",
    text_threshold: float = 0.3,
    visual_gain: float = 3.5,
    text_gain: float = 0.1,
    shrinkage: float = 0.3,
    zero_trace: str = "skip",
    prefill: str = "off",
    renormalise: bool = False,
    text_includes_system: bool = False,
    qk_rescale: str = "off",
    control: str = "",
    seed: int = 0,
) -> Steering:
    """AIR as its paper states it, in decode rows of listed heads.

    Args:
        config: the model.
        heads: which heads; see `resolve_heads`.
        count: how many of them; by default what their source says.
        modules: "full", "reallocation" (the paper's R-only) or "projection" (P-only).
        text_threshold: mass on text from which a row is reallocated (tau_text).
        visual_gain: factor on weights on the image (lambda).
        text_gain: factor on weights on text (gamma).
        shrinkage: how far a row moves to its mean (beta).
        zero_trace, prefill: see `Projection`.
        renormalise, text_includes_system: see `Reallocation`.
        qk_rescale: "logit" brings listed heads to the mean energy of their layer, in decode rows;
            see `EnergyRescale`.
        control: a word of `CONTROLS`.
        seed: of random heads.

    Raises:
        ConfigError: a setting is out of range, or of a module that is left out.
    """
    one_of("modules", modules, MODULES)
    on_ln = _listed(config, heads, count, control, seed)
    reallocation = projection = None
    unused = {
        "projection": {"renormalise": renormalise, "text_includes_system": text_includes_system},
        "reallocation": {"zero_trace": zero_trace != "skip", "prefill": prefill != "off"},
    }
    for name, asked in unused.get(modules, {}).items():
        if asked is True:
            raise ConfigError(
                f"{name} is of a module that modules={modules!r} leaves out; leave one of them out."
            )
    if modules != "projection":
        reallocation = _reallocation(
            on_ln,
            number("text_threshold", text_threshold, 0, 1),
            number("visual_gain", visual_gain, 0, _MAX_GAIN),
            number("text_gain", text_gain, 0, _MAX_GAIN),
            renormalise=switch("renormalise", renormalise),
            text_includes_system=switch("text_includes_system", text_includes_system),
        )
    if modules != "reallocation":
        projection = _projection(on_ln, shrinkage, zero_trace, prefill)
    return Steering(
        energy_rescale=_energy_rescale(on_ln, qk_rescale),
        reallocation=reallocation,
        projection=projection,
    )


def adhh(
    config: VLMConfig,
    *,
    heads: Any = (),
    count: int | None = None,
    threshold: float = 0.4,
    control: str = "",
    seed: int = 0,
) -> Steering:
    """AD-HH: text weights become 0 in decode rows whose mass on text reaches a threshold.

    Args:
        config: the model.
        heads, count, control, seed: as for `air`.
        threshold: 0.4 in its own demo, 0.5 where AIR's authors compare with it.

    Raises:
        ConfigError: a setting is out of range.
    """
    on_ln = _listed(config, heads, count, control, seed)
    threshold = number("threshold", threshold, 0, 1)
    return Steering(reallocation=_reallocation(on_ln, threshold, 1.0, 0.0))


def air_star(
    config: VLMConfig,
    *,
    heads: Any = (),
    count: int | None = None,
    faithful: bool = False,
    threshold: float = 0.4,
    shrinkage: float = 0.1,
    image_gain: float = 1.08,
    system_gain: float = 0.97,
    lens: float = 0.28,
    rebalance_layers: tuple[int, int] | None = None,
    projection_layers: tuple[int, int] | None = None,
    zero_trace: str = "skip",
    prefill: str | None = None,
    qk_rescale: str = "off",
    control: str = "",
    seed: int = 0,
) -> Steering:
    """AIR*: the released code's defaults.

    Args:
        config: the model.
        heads, count, control, seed: as for `air`; they concern the AD-HH part alone, as the other
            parts act on all heads of their layers.
        faithful: whether prompts are projected (and rescaled) with later rows included and the
            trigger sums over the batch, as released; otherwise rows see what came before them and
            each example triggers for itself.
        threshold: mass on text from which a row's text weights become 0; the release's command line
            says 0.5 where its script and its README say 0.4.
        shrinkage: beta.
        image_gain, system_gain: factors on logits in `rebalance_layers` (g, d).
        lens: strength of the cross-head lens in `projection_layers` (alpha).
        rebalance_layers, projection_layers: first and last layer; by default 9 to 14 and 5 to 17
            of 32, and the same relative depths of other models.
        zero_trace, prefill: see `Projection`; `prefill` is "causal", or "official" if faithful.
        qk_rescale: "logit" brings all heads of `projection_layers` to the mean energy of their
            layer; see `EnergyRescale`, whose `prefill` is "off", or "official" if faithful.

    Raises:
        ConfigError: a setting is out of range, or `prefill` contradicts `faithful`.
    """
    layers, width = shape_of(config)
    on_ln = _listed(config, heads, count, control, seed)
    if switch("faithful", faithful) and prefill not in (None, "official"):
        raise ConfigError(
            f"faithful=True projects prompts as released, so prefill={prefill!r} cannot be; leave "
            "one of them out."
        )
    middle_ln = _in_layers("rebalance_layers", rebalance_layers, _REBALANCE_LAYERS, layers, width)
    wide_ln = _in_layers("projection_layers", projection_layers, _PROJECTION_LAYERS, layers, width)
    image, system = number("image_gain", image_gain, 0), number("system_gain", system_gain, 0)
    return Steering(
        energy_rescale=_energy_rescale(wide_ln, qk_rescale, "official" if faithful else "off"),
        logit_gains=LogitGains(
            _leaf(np.where(middle_ln, image, 1)), _leaf(np.where(middle_ln, system, 1))
        ),
        lens=Lens(_leaf(np.where(wide_ln, number("lens", lens), 0))),
        reallocation=_reallocation(
            on_ln,
            number("threshold", threshold, 0, 1),
            1.0,
            0.0,
            trigger_reduce="batch_sum" if faithful else "sample",
        ),
        projection=_projection(
            wide_ln, shrinkage, zero_trace, prefill or ("official" if faithful else "causal")
        ),
    )


def scaled_layers(first: int, last: int, layers: int, of: int = _RELEASED_LAYERS) -> range:
    """Returns the layers at the relative depths of layers `first` to `last` of `of`, at least one.

    Ends are half-open and rounded: 5 to 17 of 32 is [5 / 32, 18 / 32).
    """
    start = min(round(first * layers / of), layers - 1)
    return range(start, max(round((last + 1) * layers / of), start + 1))


def layer_range(name: str, given: Any, layers: int) -> range:
    """Returns the layers from a first to a last one, both included.

    Raises:
        ConfigError: it is no such pair of a model of so many layers.
    """
    pair = tuple(given)
    whole = len(pair) == 2 and all(isinstance(i, int | np.integer) for i in pair)
    if not whole or not 0 <= pair[0] <= pair[1] < layers:
        raise ConfigError(
            f"{name} must be the first and last of the layers 0 to {layers - 1}, not {given!r}."
        )
    return range(pair[0], pair[1] + 1)


def _in_layers(name: str, given: Any, released: tuple[int, int], layers: int, width: int):
    """Bool [L, N], True in a range of layers."""
    usual = given is None
    chosen = scaled_layers(*released, layers) if usual else layer_range(name, given, layers)
    return np.broadcast_to(np.isin(np.arange(layers), list(chosen))[:, None], (layers, width))


def _listed(config: VLMConfig, heads: Any, count: int | None, control: str, seed: int):
    """Bool [L, N], True in the heads that a method or its control acts on."""
    one_of("control", control, CONTROLS)
    sets = resolve_heads(heads, config)
    return mask_of(choose_heads(sets, count, control, seed), sets.shape)


def _energy_rescale(
    on_ln: np.ndarray, qk_rescale: Any, prefill: Literal["off", "official"] = "off"
) -> EnergyRescale | None:
    if one_of("qk_rescale", qk_rescale, QK_RESCALE) == "off":
        return None
    if qk_rescale == "weight":
        raise ConfigError(
            "qk_rescale='weight' is an edit of weights: make the folder by --job=fold "
            "--config=configs/fold.py, and steer that with qk_rescale='off'."
        )
    return EnergyRescale(_leaf(on_ln), _leaf(np.ones(on_ln.shape)), prefill=prefill)


def _reallocation(
    on_ln: np.ndarray, threshold: float, image: float, text: float, **switches: Any
) -> Reallocation:
    return Reallocation(
        _leaf(np.where(on_ln, image, 1)),
        _leaf(np.where(on_ln, text, 1)),
        _leaf(np.where(on_ln, threshold, np.inf)),
        **switches,
    )


def _projection(on_ln: np.ndarray, shrinkage: Any, zero_trace: Any, prefill: Any) -> Projection:
    beta = number("shrinkage", shrinkage, 0, 1)
    one_of("zero_trace", zero_trace, ZERO_TRACE)
    one_of("prefill", prefill, PREFILL)
    return Projection(
        _leaf(on_ln), _leaf(np.where(on_ln, beta, 0)), zero_trace=zero_trace, prefill=prefill
    )


def _leaf(values_ln: np.ndarray) -> np.ndarray:
    return np.asarray(values_ln, np.float32)[None]
