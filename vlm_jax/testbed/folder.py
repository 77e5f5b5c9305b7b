"""From trained parameters to a model folder that says how it came about."""

import json
import os
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp

from vlm_jax import checkpoint
from vlm_jax.api import VLM
from vlm_jax.parallel import make_mesh
from vlm_jax.processing import Processor
from vlm_jax.testbed.architecture import get_family, model_config
from vlm_jax.testbed.companions import write_companions
from vlm_jax.testbed.measure import measure, standard_benchmarks
from vlm_jax.testbed.recipe import Recipe
from vlm_jax.testbed.state import round_params

RECIPE = "recipe.json"

Params = dict[str, jax.Array]


def measure_params(
    params: Params, recipe: Recipe, count: int, split: str = "dev"
) -> dict[str, dict[str, float]]:
    """Measures parameters as they ship: rounded, then run in float32.

    Args:
        params: of the recipe's family.
        recipe: says which scenes the model is for.
        count: scenes, see `standard_benchmarks`.
        split: "dev" or "test".
    """
    wide = {name: value.astype(jnp.float32) for name, value in round_params(params).items()}
    with tempfile.TemporaryDirectory() as folder:
        write_companions(folder, get_family(recipe.family))
        processor = Processor.from_folder(folder)
        model = VLM(model_config(recipe.family), wide, processor, make_mesh(1, 1))
        return measure(model, standard_benchmarks(recipe.family, split, count))


def save_model(
    target: str | os.PathLike[str], params: Params, recipe: Recipe, facts: dict[str, Any]
) -> None:
    """Writes a converted folder of rounded parameters, with `recipe.json` beside them.

    Args:
        target: the new folder; must not exist.
        params: of the recipe's family.
        recipe: how they were made.
        facts: JSON values stored beside the recipe: seed, losses, metrics.

    Raises:
        CheckpointError: the parameters are not finite or the target cannot be made.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_companions(folder, get_family(recipe.family))
        files: dict[str, bytes | pathlib.Path] = dict(
            checkpoint.companion_files(pathlib.Path(folder), lambda name: True)
        )
        text = json.dumps({"recipe": recipe.to_json(), **facts}, indent=1) + "\n"
        files[RECIPE] = text.encode()
        checkpoint.save(target, round_params(params), model_config(recipe.family), files)
