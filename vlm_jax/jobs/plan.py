"""Compiles what jobs would run for TPUs or GPUs that are not there, and says what fits."""

import os
import pathlib
from typing import Any

import jax
import msgspec

from vlm_jax.decoding import DecodeSettings
from vlm_jax.errors import AnswersError
from vlm_jax.evals.answer_log import difference
from vlm_jax.evals.results import write_json
from vlm_jax.foreign import read_json
from vlm_jax.made import made
from vlm_jax.planning import HardwarePlan, Planner, PlanSettings
from vlm_jax.planning.compiled import CompiledProgram
from vlm_jax.progress import Progress
from vlm_jax.settings import plain, read
from vlm_jax.study.request import Request
from vlm_jax.study.runtime import MeshSettings

PLAN = "plan.json"


class _SavedPlan(msgspec.Struct):
    """What is read again of a plan that was made before."""

    identity: dict[str, Any]
    programs: dict[str, CompiledProgram]


def run(request: Request) -> None:
    """Prints the plan; with `--workdir` it is kept there, program by program.

    The source is a folder that needs to hold nothing but `config.json`, or a hub name.

    Raises:
        ConfigError: the topology is unknown, or what compiles for it is not installed.
    """
    config = request.config
    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")  # an accelerator that is there is left alone
    asked = read(MeshSettings, config.mesh, "config.mesh")
    settings = read(PlanSettings, config.plan, "config.plan")
    named = bool(settings.topology) or "mesh.model" in request.changed
    planner = Planner.of(
        request.need("source"),
        settings,
        DecodeSettings.of_config(config),
        data=asked.data,
        model=asked.model if named else None,
        dtype=config.dtype,
        method=plain(config.get("method", None)),
    )
    path = None if request.workdir is None else request.workdir / PLAN
    known = {} if path is None else _known(path, planner.identity)
    left = [name for name in planner.settings.programs if name not in known]
    with Progress(len(left), "programs", label=f"plan {planner.devices.name}") as progress:

        def keep(name: str, plan: HardwarePlan) -> None:
            progress.advance()
            if path is not None:
                write_json(path, {**plan.document(), "made": made()})

        plan = planner.run(known, keep)
    if path is not None:
        write_json(path, {**plan.document(), "made": made()})
    print(plan)
    if path is not None:
        print(f"Plan: {path}")


def _known(path: pathlib.Path, identity: dict[str, Any]) -> dict[str, CompiledProgram]:
    """Returns the programs of a plan of the same that was stopped, or asked for others.

    Raises:
        AnswersError: the file is a plan of something else.
    """
    if not path.exists():
        return {}
    saved = read_json(path, _SavedPlan, error=AnswersError)
    wanted = msgspec.json.decode(msgspec.json.encode(identity))
    if saved.identity != wanted:
        raise AnswersError(
            f"{path} is a plan of something else: {difference(saved.identity, wanted)}. Delete it "
            "or choose another --workdir."
        )
    return saved.programs
