"""Trains a testbed model: three stages, one jitted step each, resumable at any checkpoint."""

import contextlib
import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax
import PIL.Image
from flax import nnx

from vlm_jax import models
from vlm_jax.errors import ConfigError
from vlm_jax.processing import Processor
from vlm_jax.testbed import state
from vlm_jax.testbed.architecture import get_family, model_config
from vlm_jax.testbed.companions import write_companions
from vlm_jax.testbed.packing import Prefix
from vlm_jax.testbed.recipe import Recipe, StageRecipe
from vlm_jax.testbed.stages import LanguageStage, Stage, TextStage, VisionStage, label_head

Params = dict[str, jax.Array]
Report = Callable[[str, int, int, float], None]
"""Called as (stage, steps done, steps of the stage, mean loss since the last call)."""

_STATE = "training.safetensors"


@dataclasses.dataclass(frozen=True)
class Trained:
    """What training gives.

    Attributes:
        params: float32 parameters of the model.
        losses: mean loss of the last reported steps of each stage.
        cpu_seconds: processor time of this process since training began or was resumed.
    """

    params: Params
    losses: dict[str, float]
    cpu_seconds: float


def _optimiser(recipe: StageRecipe) -> optax.GradientTransformation:
    rate = optax.warmup_cosine_decay_schedule(
        0.0,
        recipe.learning_rate,
        min(recipe.warmup, recipe.steps - 1),
        recipe.steps,
        recipe.learning_rate / 30,
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(rate, b2=recipe.b2, weight_decay=recipe.weight_decay),
    )


def _step(stage: Stage, graphdef: nnx.GraphDef, optimiser: optax.GradientTransformation):
    """Returns the jitted (trained, frozen, moments, data) -> (trained, moments, loss)."""

    def step(trained: Params, frozen: Params, moments: Any, data: Any):
        loss = lambda values: stage.loss(graphdef, {**frozen, **values}, data)
        value, gradients = jax.value_and_grad(loss)(trained)
        updates, moments = optimiser.update(gradients, moments, trained)
        return optax.apply_updates(trained, updates), moments, value

    return jax.jit(step, donate_argnums=(0, 2))


@contextlib.contextmanager
def _processor(family: str) -> Iterator[Processor]:
    with tempfile.TemporaryDirectory() as folder:
        write_companions(folder, get_family(family))
        yield Processor.from_folder(folder)


def make_stages(recipe: Recipe, seed: int, processor: Processor) -> list[Stage]:
    """Returns the stages of a run in order."""
    family = get_family(recipe.family)
    blank = PIL.Image.new("RGB", (family.image_size, family.image_size))
    prefix = Prefix.read(processor, family, blank)
    return [
        VisionStage(recipe, seed),
        TextStage(recipe, seed, processor, prefix),
        LanguageStage(recipe, seed, processor, prefix),
    ]


def _resume(path: pathlib.Path, run: dict[str, Any]) -> tuple[int, int]:
    """Returns (stage, step) that the state at `path` stands before; (0, 0) without one."""
    if not path.exists():
        return 0, 0
    place = state.read_place(path)
    if place["run"] != run:
        raise ConfigError(
            f"{path} belongs to another recipe or seed; choose another workdir or remove it."
        )
    return place["stage"], place["step"]


def train(
    recipe: Recipe,
    seed: int,
    workdir: str | pathlib.Path,
    report: Report | None = None,
    report_every: int = 50,
) -> Trained:
    """Trains a model, or goes on with a run that was stopped.

    A run that was killed and resumed ends in the same weights as an undisturbed one, bit for bit
    on the same machine.

    Args:
        recipe: what to do.
        seed: of initial weights and training scenes, non-negative.
        workdir: an existing folder for the state; resumes from the state in it.
        report: told about progress every `report_every` steps.

    Raises:
        ConfigError: the state in `workdir` is of another run.
        CheckpointError: the state in `workdir` is damaged.
    """
    began = time.process_time()
    if seed < 0:
        raise ConfigError(f"seed must be 0 or more, not {seed}.")
    path = pathlib.Path(workdir) / _STATE
    run = {"recipe": _jsonable(recipe.to_json()), "seed": seed}
    first_stage, first_step = _resume(path, run)
    graphdef, _ = models.abstract(model_config(recipe.family))
    if path.exists():
        params = state.read_params(path)
    else:
        params = models.init(model_config(recipe.family), seed)
        params |= label_head(model_config(recipe.family).vision.hidden_size)
    losses: dict[str, float] = {}
    with _processor(recipe.family) as processor:
        stages = make_stages(recipe, seed, processor)
        for index, stage in enumerate(stages[first_stage:], first_stage):
            start = first_step if index == first_stage else 0
            save = lambda params, moments, step, index=index: state.write_state(
                path, params, moments, {"run": run, "stage": index, "step": step}
            )
            optimiser = _optimiser(stage.recipe)
            trained = {k: v for k, v in params.items() if k.startswith(stage.prefixes)}
            moments = optimiser.init(trained)
            if start:
                moments = state.read_optimiser(path, moments)
            params, losses[stage.name] = _run_stage(
                stage,
                _step(stage, graphdef, optimiser),
                params,
                moments,
                range(start, stage.recipe.steps),
                lambda step: step % recipe.checkpoint_every == 0,
                save,
                report,
                report_every,
            )
            save(params, {}, 0, index + 1)
    params = {k: v for k, v in params.items() if not k.startswith("labels/")}
    return Trained(params, losses, time.process_time() - began)


def _run_stage(
    stage, step_fn, params, moments, steps, is_due, save, report, report_every
) -> tuple[Params, float]:
    """Takes the given steps; returns all parameters and the last reported loss."""
    trained = {k: v for k, v in params.items() if k.startswith(stage.prefixes)}
    frozen = {k: v for k, v in params.items() if k not in trained}
    pending: list[jax.Array] = []
    last = float("nan")
    for step in steps:
        trained, moments, loss = step_fn(trained, frozen, moments, stage.data(step))
        pending.append(loss)
        done = step + 1
        if done % report_every == 0 or done == stage.recipe.steps:
            last = float(np.mean(jax.device_get(pending)))
            pending = []
            if not np.isfinite(last):
                raise FloatingPointError(
                    f"the loss of stage {stage.name} is {last} at step {done}; lower its "
                    "learning_rate."
                )
            if report is not None:
                report(stage.name, done, stage.recipe.steps, last)
        if done < stage.recipe.steps and is_due(done):
            save({**frozen, **trained}, moments, done)
    return {**frozen, **trained}, last


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    return [_jsonable(item) for item in value] if isinstance(value, tuple) else value
