"""Trains a testbed model: stage by stage, one jitted step each, resumable at any checkpoint."""

import contextlib
import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import PIL.Image
from flax import nnx

from vlm_jax import checkpoint, models
from vlm_jax.errors import ConfigError
from vlm_jax.processing import Processor
from vlm_jax.testbed import smollm2, state
from vlm_jax.testbed.align import align
from vlm_jax.testbed.architecture import get_family, model_config
from vlm_jax.testbed.companions import write_companions
from vlm_jax.testbed.packing import PackedPrefix
from vlm_jax.testbed.recipe import Recipe, StageRecipe
from vlm_jax.testbed.stages import (
    LanguageStage,
    Stage,
    TextStage,
    VisionStage,
    label_head,
)

Params = dict[str, jax.Array]
Report = Callable[[str, int, int, float], None]
"""Called as (stage, steps done of the stage, steps since the last call, their mean loss)."""

_STATE = "training.safetensors"


@dataclasses.dataclass(frozen=True)
class Trained:
    """What training gives.

    Attributes:
        params: float32 parameters of the model; of a run that had ended before, as they ship.
        losses: mean loss of the last reported steps of each stage.
        cpu_seconds: processor time of the run, without what a kill undid.
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
    prefix = PackedPrefix.read(processor, family, blank)
    stages: list[Stage] = []
    if recipe.vision is not None:
        stages.append(VisionStage(recipe, seed))
    if recipe.text is not None:
        stages.append(TextStage(recipe, seed, processor, prefix))
    return [*stages, LanguageStage(recipe, seed, processor, prefix)]


def given_params(recipe: Recipe, tower: checkpoint.ModelFolder | None) -> Params:
    """Returns the parameters that a run takes as they are: a tower, a released decoder.

    Raises:
        CheckpointError: the package that has the decoder is not there.
    """
    given: Params = {}
    if tower is not None:
        paths = [path for path in tower.tensors if path.startswith("vision/")]
        given |= {path: jnp.asarray(tower.read(path), jnp.float32) for path in paths}
    if get_family(recipe.family).released:
        given |= smollm2.decoder_params()
    return given


class _Run:
    """Where a run stands and what it remembers, in memory and in its state file.

    Attributes:
        stage, step: the next step to take.
        losses: mean loss of the last reported steps of each stage.

    Raises:
        ConfigError: the state file is of another run.
        CheckpointError: the state file is damaged.
    """

    def __init__(self, recipe: Recipe, seed: int, workdir: str | pathlib.Path):
        self.path = pathlib.Path(workdir) / _STATE
        self.recipe, self.seed = recipe, seed
        self.identity = {"recipe": _jsonable(recipe.to_json()), "seed": seed}
        self.stage, self.step, self.losses = 0, 0, {}
        self._before, self._began = 0.0, time.process_time()
        if not self.path.exists():
            return
        place = state.read_place(self.path)
        if place["run"] != self.identity:
            raise ConfigError(
                f"{self.path} belongs to another recipe or seed; choose another workdir or remove "
                "it."
            )
        self.stage, self.step = place["stage"], place["step"]
        self.losses, self._before = place["losses"], place["cpu_seconds"]

    def params(self) -> Params:
        """Returns the parameters to go on from, labels included; some are given by others."""
        if self.path.exists():
            return state.read_params(self.path)
        config = model_config(self.recipe.family)
        if get_family(self.recipe.family).released:  # one layer stands for a decoder that is given
            shallow = dataclasses.replace(config.decoder, num_layers=1)
            config = dataclasses.replace(config, decoder=shallow)
        params = models.init(config, self.seed)
        if self.recipe.vision is not None:
            params |= label_head(config.vision.hidden_size)
        return params

    @property
    def cpu_seconds(self) -> float:
        """Processor time so far, that of the processes before this one included."""
        return self._before + time.process_time() - self._began

    def save(self, params: Params, moments: Any, stage: int, step: int) -> None:
        """Writes the state from which to go on with a step."""
        place = {
            "run": self.identity,
            "stage": stage,
            "step": step,
            "losses": self.losses,
            "cpu_seconds": self.cpu_seconds,
        }
        state.write_state(self.path, params, moments, place)


def steps_left(recipe: Recipe, seed: int, workdir: str | pathlib.Path) -> int:
    """Returns how many steps `train` would take, given what is in `workdir`."""
    run = _Run(recipe, seed, workdir)
    return sum(stage.steps for stage in recipe.stages[run.stage :]) - run.step


def train(
    recipe: Recipe,
    seed: int,
    workdir: str | pathlib.Path,
    report: Report | None = None,
    report_every: int = 50,
    tower: checkpoint.ModelFolder | None = None,
) -> Trained:
    """Trains a model, or goes on with a run that was stopped.

    A run that was killed and resumed ends in the same weights as an undisturbed one, bit for bit
    on the same machine.

    Args:
        recipe: what to do.
        seed: of initial weights and training scenes, non-negative.
        workdir: an existing folder for the state; resumes from the state in it.
        report: told about progress every `report_every` steps and at the end of a stage.
        tower: the model that `recipe.tower` names.

    Raises:
        ConfigError: the state in `workdir` is of another run, or training diverged.
        CheckpointError: the state in `workdir` is damaged.
    """
    if seed < 0:
        raise ConfigError(f"seed must be 0 or more, not {seed}.")
    run = _Run(recipe, seed, workdir)
    graphdef, _ = models.abstract(model_config(recipe.family))
    given = given_params(recipe, tower)
    params = run.params() | given
    own = lambda params: {k: v for k, v in params.items() if k not in given}
    with _processor(recipe.family) as processor:
        if recipe.align_scenes and not run.path.exists():
            params |= align(recipe, seed, params, processor.tokenizer)
        stages = make_stages(recipe, seed, processor)
        for index in range(run.stage, len(stages)):
            stage, start = stages[index], run.step if index == run.stage else 0
            optimiser = _optimiser(stage.recipe)
            trained = {k: v for k, v in params.items() if k.startswith(stage.prefixes)}
            frozen = {k: v for k, v in params.items() if k not in trained}
            moments = optimiser.init(trained)
            if start:
                moments = state.read_optimiser(run.path, moments)
            step_fn = _step(stage, graphdef, optimiser)
            losses = _Losses(stage, report, report_every)
            for step in range(start, stage.recipe.steps):
                trained, moments, loss = step_fn(trained, frozen, moments, stage.data(step))
                losses.add(step + 1, loss)
                done = step + 1
                if done < stage.recipe.steps and done % recipe.checkpoint_every == 0:
                    run.save(own({**frozen, **trained}), moments, index, done)
            params = {**frozen, **trained}
            run.losses[stage.name] = losses.mean
            ends = index + 1 == len(stages)
            run.save(own(state.round_params(params) if ends else params), {}, index + 1, 0)
    params = {k: v for k, v in params.items() if not k.startswith("labels/")}
    return Trained(params, run.losses, run.cpu_seconds)


class _Losses:
    """Collects a stage's losses on the device and looks at them now and then.

    Raises:
        ConfigError: they are not finite.
    """

    def __init__(self, stage: Stage, report: Report | None, every: int):
        self.stage, self.report, self.every = stage, report, every
        self.mean = float("nan")
        self._pending: list[jax.Array] = []

    def add(self, done: int, loss: jax.Array) -> None:
        """Takes the loss of the `done`-th step.

        Raises:
            ConfigError: the loss is not finite.
        """
        self._pending.append(loss)
        if done % self.every and done < self.stage.recipe.steps:
            return
        self.mean, taken = float(np.mean(jax.device_get(self._pending))), len(self._pending)
        self._pending = []
        if not np.isfinite(self.mean):
            raise ConfigError(
                f"training diverged: the loss of stage {self.stage.name} is {self.mean} at step "
                f"{done}; lower recipe.{self.stage.name}.learning_rate."
            )
        if self.report is not None:
            self.report(self.stage.name, done, taken, self.mean)


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    return [_jsonable(item) for item in value] if isinstance(value, tuple) else value
