"""Convert, edit, run and measure vision-language models.

  --job=convert   --source=<HF folder> --target=<folder>     HF checkpoint -> Flax, streaming
  --job=edit      --source=<folder> --target=<folder>        edit the query weights (config.edit)
  --job=generate  --source=<folder> [--workdir=<folder>]     answer config.prompt or config.requests
  --job=evaluate  --source=<folder>[,..] --workdir=<folder>  edits and attention methods measured
                                                             beside their controls, model by model
  --job=sweep     --source=<folder> --workdir=<folder>       choose a setting on dev, report on test
  --job=identify  --source=<folder> --workdir=<folder>       find heads that favour hallucination
  --job=export    --source=<folder> --target=<HF folder>     Flax -> HF checkpoint, byte for byte
  --job=score     --answers=<jsonl> --truth=<file>[,<file>]  CHAIR or POPE scores, no model needed
  --job=train     --target=<folder>                          train a testbed from its recipe

A folder is a Hugging Face checkpoint or a converted one; every job reads both. Settings come from
--config=configs/<name>.py and are changed one by one on the command line:

  python launch.py --job=edit --config=configs/edit.py --config.edit.k=2 \\
      --source=Qwen2.5-VL-7B-Instruct --target=edited

configs/base.py lists every setting. An edited folder is edited again by --config.revert=True, which
gives the original weights back, or --config.restrength=<a>, which makes the edit at strength a.

configs/fold.py[:gains|energy] makes --job=edit fold head gains or energies into the weights, and
configs/contributions.py makes --job=identify show where the tokens of answers come from.

Errors are one line on stderr and exit code 1. No job leaves a half-written folder. What was killed
goes on where it stopped, in all jobs but score. Images and prompts that cannot be read are
recorded and left out, up to config.max_failures of them.

Several processes, each with its own accelerators, share the answers of evaluate, generate and
sweep, or one replica of the model where config.mesh.model is more than a process has; in other jobs
process 0 works and the rest wait. TPU pods, SLURM, Open MPI and Kubernetes say themselves who
belongs together; elsewhere start each with

  --coordinator=<host:port of process 0> --num_processes=<n> --process_id=<0 to n - 1>
"""

import importlib
import os
import re
import sys
import types

# BLAS threads fight XLA's. Read at start-up.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pathlib

from absl import app, flags, logging
from ml_collections import config_flags

JOBS = {
    "convert": "convert.run:convert",
    "edit": "vlm_jax.jobs.edit:run",
    "evaluate": "vlm_jax.jobs.evaluate:run",
    "export": "convert.run:export",
    "generate": "vlm_jax.jobs.generate:run",
    "identify": "vlm_jax.jobs.identify:run",
    "score": "vlm_jax.jobs.score:run",
    "sweep": "vlm_jax.jobs.sweep:run",
    "train": "vlm_jax.jobs.train:run",
}
# Jobs whose work all processes share; in the others process 0 works alone.
_SHARED = ("evaluate", "generate", "sweep")
_DEFAULT_CONFIGS = {
    "edit": "edit",
    "generate": "generate",
    "evaluate": "testbed",
    "identify": "identify",
    "sweep": "sweep",
    "train": "train_llava",
}
_HERE = pathlib.Path(__file__).parent
# In an installed package; in a checkout they lie beside it.
_CONFIGS = next(p for p in (_HERE / "configs", _HERE.parent / "configs") if p.is_dir())

_JOB = flags.DEFINE_enum("job", None, sorted(JOBS), "What to do.")
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Settings: configs/<name>.py[:<argument>]; --config.<key>=<value> changes one."
)
_SOURCE = flags.DEFINE_list(
    "source", [], "Model folder to read: Hugging Face or converted; evaluate reads several."
)
_TARGET = flags.DEFINE_string("target", None, "Folder to write; must not exist.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for answers and results.")
_ANSWERS = flags.DEFINE_string("answers", None, "score: JSONL of captions or answers.")
_TRUTH = flags.DEFINE_list("truth", [], "score: object tables, COCO annotations or POPE questions.")
_BASELINE = flags.DEFINE_string("baseline", None, "score: answers to take paired differences from.")

_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "Several processes: host:port of the first."
)
_PROCESSES = flags.DEFINE_integer("num_processes", None, "Several processes: how many; 1 is alone.")
_PROCESS = flags.DEFINE_integer("process_id", None, "Several processes: which one this is, from 0.")


def _path(text: str | None) -> pathlib.Path | None:
    return None if text is None else pathlib.Path(text)


def main() -> None:
    """The command `vlm-jax`."""
    # Configs start from others, which they import as `configs.<name>` wherever these lie.
    package = types.ModuleType("configs")
    package.__path__ = [str(_CONFIGS)]
    sys.modules["configs"] = package
    app.run(_run, flags_parser=_parse)


def _run(argv: list[str]) -> None:
    """Runs the job that the flags name; a user's error becomes one line and exit code 1."""
    from vlm_jax.errors import UserError

    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # the checkpoint library reports every read
    try:
        if len(argv) > 1:
            raise UserError(f"Unexpected argument {argv[1]!r}; settings are flags (see --help).")
        if _JOB.value is None:
            raise UserError(
                f"--job is missing; it is one of {', '.join(sorted(JOBS))} (see --help)."
            )
        if _JOB.value == "score":
            _work()  # needs no JAX
        else:
            _work_together()
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno is None:
            raise
        where = f" ({error.filename})" if error.filename else ""
        sys.exit(f"error: {error.strerror}{where}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


def _work_together() -> None:
    """Runs the job in all processes, or in process 0; an error in one is an error in all."""
    from vlm_jax.parallel import processes

    processes.start(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    if not processes.primary():  # process 0 speaks for all
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    share = processes.agree if _JOB.value in _SHARED else processes.by_primary
    share(_work)


def _work() -> None:
    """Runs the job."""
    from vlm_jax.jobs.request import Request

    module, function = JOBS[_JOB.value or ""].split(":")
    request = Request(
        config=_CONFIG.value,
        source=_path(_SOURCE.value[0]) if len(_SOURCE.value) == 1 else None,
        sources=tuple(map(pathlib.Path, _SOURCE.value)) if len(_SOURCE.value) > 1 else (),
        target=_path(_TARGET.value),
        workdir=_path(_WORKDIR.value),
        answers=_path(_ANSWERS.value),
        truth=tuple(map(pathlib.Path, _TRUTH.value)),
        baseline=_path(_BASELINE.value),
    )
    getattr(importlib.import_module(module), function)(request)


def _parse(argv: list[str]) -> list[str]:
    """Parses flags, with the job's own config file where none is named."""
    if not any(argument.split("=")[0] in ("--config", "-config") for argument in argv):
        job = next((a.split("=", 1)[1] for a in argv if a.startswith("--job=")), "")
        name = _DEFAULT_CONFIGS.get(job, "base")
        argv = [argv[0], f"--config={_CONFIGS / name}.py", *argv[1:]]
    try:
        rest = flags.FLAGS(argv)
        _ = _CONFIG.value.seed  # a config file that cannot be read says so here
        return rest
    except (AttributeError, KeyError) as error:
        key = next(iter(re.findall(r"[\w.]+", str(error.args[0]))), "") if error.args else ""
        sys.exit(f"error: the config has no setting {key!r}; configs/base.py lists them all")
    except (flags.Error, OSError, TypeError, ValueError) as error:
        sys.exit(f"error: {_reason(error)}")


def _reason(error: Exception) -> str:
    """One line of what is wrong with a flag."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, OSError):
        return lines[-1]
    if lines[0].endswith("parsing config file:"):
        # What get_config() raised, at the end of the traceback that the flag library appends.
        flag = lines[0].split(": ")[0].removeprefix("flag ")
        return f"{flag}: {lines[-1].split(': ', 1)[-1]}"
    return lines[0]
