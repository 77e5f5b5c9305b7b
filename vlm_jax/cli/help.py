"""What `--help` prints: what there is to do, with what, and on which models."""

import shutil
import textwrap
from collections.abc import Mapping

from ml_collections import ConfigDict

from vlm_jax import __version__, hub
from vlm_jax.cli import configs, listing

_INTRODUCTION = """\
Training-free mitigation of hallucination in vision-language models, in JAX.

  vlm-jax JOB MODEL [--target FOLDER] [--workdir FOLDER]      (--job JOB --source MODEL)
          [--config CONFIG] [--config.SETTING VALUE ...]

  vlm-jax edit llava-0 --target=edited --config.edit.k=2
  vlm-jax generate edited --config.images=photo.jpg
  vlm-jax verify llava-0 edited
  vlm-jax score --answers=captions.jsonl --truth=instances_val2014.json
"""
_NOTES = """\
A model is a folder (of the Hugging Face hub's form, or a converted one; every job reads both), a
hub name such as Qwen/Qwen2.5-VL-7B-Instruct, or one that ships with the package ({shipped}).

Errors are one line on stderr and exit code 1. No job leaves a half-written folder. What was killed
goes on where it stopped, in all jobs but score. Images and prompts that cannot be read are recorded
and left out, up to config.max_failures of them.

Several processes, each with its own accelerators, share the answers of {shared}, or one replica of
the model where config.mesh.model is more than a process has; in other jobs process 0 works and the
rest wait. TPU pods, SLURM, Open MPI and Kubernetes say themselves who belongs together; elsewhere
give each --coordinator, --num_processes and --process_id.
"""


def show(flags: Mapping[str, str], config: ConfigDict | None = None) -> None:
    """Prints the help; with a config, every setting of it and its value too."""
    print(f"vlm_jax {__version__}. {_INTRODUCTION}", flush=True)
    jobs = listing.jobs()
    _print("Jobs (--job)", {name: job.line for name, job in jobs.items()})
    _print("Configs (--config)", listing.config_lines())
    _print("Flags", {f"--{name}": line for name, line in flags.items()})
    if config is None:
        print("Settings (--config.<setting>): --helpfull lists them.\n")
    else:
        print(f"Settings ({configs.FOLDER / 'base.py'} says what they mean):")
        print("\n".join(f"  --{name}={value!r}" for name, value in configs.settings(config)) + "\n")
    shared = [name for name, job in jobs.items() if job.shared]
    notes = _NOTES.format(shipped=", ".join(hub.shipped()), shared=", ".join(shared))
    for paragraph in notes.split("\n\n"):
        print(textwrap.fill(" ".join(paragraph.split()), _width()) + "\n", flush=True)
    # These take a moment: what lists them imports JAX.
    for title, lines in (
        ("Methods (vlm.apply; `method` of an arm in config.arms)", listing.methods),
        ("Families (read off a folder's config.json)", listing.families),
        ("Benchmarks (kind of one in config.benchmarks)", listing.benchmarks),
        ("Analyses (config.explain.analysis)", listing.analyses),
    ):
        _print(title, lines())


def _print(title: str, lines: Mapping[str, str]) -> None:
    """A title, and under it names with their lines beside them, within the terminal's width."""
    width = _width()
    room = min(max(map(len, lines), default=0) + 4, 28)
    print(f"{title}:")
    for name, line in lines.items():
        shown = textwrap.wrap(line, max(width - room, 20)) or [""]
        if len(name) + 4 > room:
            print(f"  {name}")
        else:
            print(f"  {name:{room - 2}}{shown.pop(0)}")
        for more in shown:
            print(f"{'':{room}}{more}")
    print(flush=True)


def _width() -> int:
    return min(shutil.get_terminal_size((100, 24)).columns, 120)
