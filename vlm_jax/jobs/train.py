"""Trains a testbed model from a recipe and a seed, resuming a run that was stopped."""

import pathlib

from vlm_jax import checkpoint, hub
from vlm_jax.errors import CheckpointError, ConfigError
from vlm_jax.files import alone_in
from vlm_jax.progress import Progress
from vlm_jax.study.request import Request
from vlm_jax.study.runtime import enable_compile_cache, provenance
from vlm_jax.testbed.folder import measure_params, save_model
from vlm_jax.testbed.recipe import Recipe
from vlm_jax.testbed.train import steps_left, train


def run(request: Request) -> None:
    """Trains the config's recipe with the config's seed into `--target`, a converted folder.

    The state of the run is kept in `--workdir`, by default `<target>.training`: the same command
    goes on from there after a kill. `--job=export` makes a Hugging Face folder of the result.

    Raises:
        ConfigError: the config has no recipe, or a wrong one.
        CheckpointError: the target exists.
        UserError: another run trains in the folder of the state, or it cannot be written.
    """
    config, target = request.config, request.need("target")
    if "recipe" not in config:
        raise ConfigError("The config has no recipe; use --config=configs/train_llava.py.")
    if target.exists():
        raise CheckpointError(f"{target} exists already; remove it or name another target.")
    recipe = Recipe.from_mapping(config.recipe, "config.recipe")
    tower = checkpoint.open_folder(hub.resolve(recipe.tower)) if recipe.tower else None
    enable_compile_cache(config.compile_cache)
    workdir = request.workdir or target.with_name(target.name + ".training")
    with alone_in(workdir):
        _train(request, recipe, tower, target, workdir)


def _train(
    request: Request,
    recipe: Recipe,
    tower: checkpoint.ModelFolder | None,
    target: pathlib.Path,
    workdir: pathlib.Path,
) -> None:
    config = request.config
    with Progress(steps_left(recipe, config.seed, workdir), "steps", "training") as progress:

        def report(stage: str, done: int, taken: int, loss: float) -> None:
            progress.label = f"training {stage}, loss {loss:.3f}"
            progress.advance(taken)

        trained = train(recipe, config.seed, workdir, report, 20, tower)
    metrics = measure_params(trained.params, recipe, config.measure) if config.measure else {}
    facts = {
        "seed": config.seed,
        "losses": trained.losses,
        "cpu_seconds": round(trained.cpu_seconds),
        "measured": {"split": "dev", "scenes": config.measure, "metrics": metrics},
        "versions": provenance(config)["versions"],
    }
    save_model(target, trained.params, recipe, facts)
    for name, values in metrics.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in values.items()))
    print(f"Trained model: {target} ({trained.cpu_seconds:.0f} CPU seconds); state: {workdir}")
