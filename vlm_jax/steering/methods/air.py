"""AIR: less attention on text, and more on the image, where a head leans on text too much.

AIR as its paper states it (arXiv 2603.24058): in listed heads, decode rows whose mass on text
reaches a threshold have their weights on the image multiplied and those on text damped, and every
decode row is shrunk towards its mean.

The query-key energy rescale (`qk_rescale`) is off by default, as it is in the release. "logit" is
the release's form, on logits. The paper rescales the weights of the query-key product by their
spectral energy, by a formula that is not public; `edits.energy_rescale` has a reading of it.
"""

from typing import Any

from vlm_jax.attention.steering import Steering
from vlm_jax.config import VLMConfig
from vlm_jax.errors import ConfigError
from vlm_jax.settings import number, one_of, switch
from vlm_jax.steering import building

MODULES = ("full", "reallocation", "projection")
_MAX_GAIN = 1000.0


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
        heads: which heads: "all", "identified" (the folder's heads.json), a file that the job
            identify wrote, the name of a published list, or (layer, head) pairs.
        count: how many of the list's first heads; by default what the list says, or all.
        modules: "full", "reallocation" (the paper's R-only) or "projection" (P-only).
        text_threshold: mass on text from which a row is reallocated (tau_text).
        visual_gain: factor on weights on the image (lambda).
        text_gain: factor on weights on text (gamma).
        shrinkage: how far a row moves to its mean (beta).
        zero_trace: "skip" shrinks decode rows only; "running" also takes off the trace of the map
            of all rows so far and restores its norm; see `Projection`.
        prefill: rows of the prompt before its last: "off" leaves them, "causal" projects each with
            the rows up to it, "official" all with the whole prompt, as the released AIR* does.
        renormalise: whether a reallocated row is divided by its new sum.
        text_includes_system: whether tokens before the image count and are damped as text.
        qk_rescale: "logit" brings listed heads to the mean energy of their layer, in decode rows;
            see `EnergyRescale`. "off" does not.
        control: acts on other heads instead: "random" ones of the same layers, "other" (the least
            sensitive), "inert" (the smallest effect), "all", or "no_sinks" (the same without
            attention sinks).
        seed: of random heads.

    Raises:
        ConfigError: a setting is out of range, or of a module that is left out.
    """
    one_of("modules", modules, MODULES)
    on_ln = building.listed(config, heads, count, control, seed)
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
        reallocation = building.reallocation(
            on_ln,
            number("text_threshold", text_threshold, 0, 1),
            number("visual_gain", visual_gain, 0, _MAX_GAIN),
            number("text_gain", text_gain, 0, _MAX_GAIN),
            renormalise=switch("renormalise", renormalise),
            text_includes_system=switch("text_includes_system", text_includes_system),
        )
    if modules != "reallocation":
        projection = building.projection(on_ln, shrinkage, zero_trace, prefill)
    return Steering(
        energy_rescale=building.energy_rescale(on_ln, qk_rescale),
        reallocation=reallocation,
        projection=projection,
    )
