"""Analyses of a model, one file each: what its heads do, and what its weights say of them.

A file `<name>.py` here has `ANALYSIS`; another package adds one by an entry point `<name>` of the
group `vlm_jax.analyses`. `--job=explain` runs them on a folder, `vlm_jax.explain` on a model:

    vlm_jax.explain(vlm, "spectra").tables()[0]
    vlm_jax.explain(vlm, "masses", ["a.jpg"], ["Describe."]).document()
"""

from typing import Any

from vlm_jax.api import VLM
from vlm_jax.calls import ImagesOf, read_call
from vlm_jax.errors import ConfigError, PromptError
from vlm_jax.evals.base import Example, Suite
from vlm_jax.explaining.base import Analysis, Finding, Subject
from vlm_jax.plugins import Plugins, instance
from vlm_jax.settings import read

__all__ = ["ANALYSES", "Analysis", "Finding", "Subject", "explain"]

ANALYSES = Plugins[Analysis](
    __name__, "vlm_jax.analyses", "analysis", "ANALYSIS", check=instance(Analysis)
)


def explain(
    model: VLM,
    name: str,
    images: ImagesOf | Suite | None = None,
    prompts: Any = None,
    **settings: Any,
) -> Finding:
    """Returns what an analysis finds of a model: tables, and numbers in `document()`.

        explain(vlm, "spectra", layers=(0, 1))
        explain(vlm, "masses", "photo.jpg", "Describe.", max_new_tokens=32)

    Args:
        model: edited or not.
        name: of the analysis, one of `vlm_jax.explaining.ANALYSES.names()`.
        images, prompts: what it is asked, as for `VLM.generate`, or a benchmark
            (`vlm_jax.benchmark`) alone; analyses of weights need none.
        settings: of the analysis.

    Raises:
        ConfigError: there is no such analysis or setting, or a value cannot be.
        PromptError: it asks the model, and nothing is to be asked.
    """
    if not isinstance(model, VLM):
        raise ConfigError(f"explain needs a model of vlm_jax.load, not {type(model).__name__}.")
    analysis = ANALYSES.find(name)
    chosen = read(analysis.settings, settings, f"analysis {name!r}")
    if not analysis.asks:
        return analysis.run(Subject.of_model(model), chosen)
    if isinstance(images, Suite):
        return analysis.run(Subject.of_model(model, list(images.examples()), images), chosen)
    if prompts is None:
        raise PromptError(f"analysis {name!r} asks the model; give images and prompts.")
    call = read_call(images, prompts)
    groups = call.images or [()] * len(call.prompts)
    examples = [
        Example(number, tuple(listed), prompt)
        for number, (listed, prompt) in enumerate(zip(groups, call.prompts))
    ]
    return analysis.run(Subject.of_model(model, examples), chosen)
