"""Measures a model, and edits of it, on benchmarks: paired intervals against the unedited one."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from vlm_jax import checkpoint
from vlm_jax.api import VLM
from vlm_jax.errors import ConfigError
from vlm_jax.evals.base import Benchmark
from vlm_jax.evals.results import Results, metric_table, protocol_hash, write_json
from vlm_jax.evals.runner import run as run_benchmark
from vlm_jax.evals.statistics import bootstrap_all, paired_bootstrap
from vlm_jax.evals.tallies import TallyTable
from vlm_jax.jobs.benchmarks import read_benchmark
from vlm_jax.jobs.edit import CERTIFICATE, edited_layers, read_edit
from vlm_jax.jobs.request import Request
from vlm_jax.jobs.runtime import generation_settings, load_model, provenance
from vlm_jax.steering.qk import QKEdit

UNEDITED = "unedited"


@dataclasses.dataclass(frozen=True)
class Arm:
    """One row of the comparison: the source as it is (no edit), or an edit of it."""

    name: str
    edit: QKEdit | None = None


def run(request: Request) -> None:
    """Evaluates `--source` and the config's arms on the config's benchmarks.

    Writes to `--workdir` a folder `<benchmark>/<arm>` each with `answers.jsonl` and `results.json`,
    and those of the first benchmark and arm at the top as well; prints a table a benchmark.
    """
    config, workdir = request.config, request.need("workdir")
    benchmarks = {
        name: read_benchmark(name, section) for name, section in config.benchmarks.items()
    }
    if not benchmarks:
        raise ConfigError(
            "config.benchmarks is empty; use --config=configs/testbed.py, configs/chair.py or "
            "configs/pope.py."
        )
    arms = read_arms(config.arms, config.edit, config.seed)
    source = checkpoint.open_folder(request.need("source"))
    model = load_model(request)
    settings = generation_settings(config)
    identity = {
        "source": fingerprint(source),
        **{key: config[key] for key in ("max_new_tokens", "temperature", "top_k", "top_p", "seed")},
        "dtype": str(next(iter(model.params.values())).dtype),
    }
    results: dict[str, dict[str, Results]] = {name: {} for name in benchmarks}
    tables: dict[str, TallyTable] = {}
    for arm in arms:
        edited = model if arm.edit is None else edit_model(model, source, arm.edit)
        for name, benchmark in benchmarks.items():
            folder = workdir / name / _slug(arm.name)
            table = run_benchmark(
                edited,
                benchmark,
                folder / "answers.jsonl",
                identity={**identity, "edit": repr(arm.edit)},
                label=f"{name}, {arm.name}",
                **settings,
            )
            baseline = tables.setdefault(name, table)
            entry = summarise(request, benchmark, table, baseline, arm)
            entry.write(folder / "results.json")
            results[name][arm.name] = entry
    _publish(workdir, results)
    for name, entries in results.items():
        print(f"\n{name} ({next(iter(entries.values())).n} images)")
        print(metric_table(list(entries.items())))
    print(f"\n* the paired 95 % interval excludes 0. Results: {workdir / 'results.json'}")


def read_arms(arms: Mapping[str, Any], edit: Mapping[str, Any], seed: int) -> list[Arm]:
    """Returns the unedited arm and the config's: each is `config.edit` with some keys changed."""
    listed = [Arm(UNEDITED)]
    for name, changes in arms.items():
        if name == UNEDITED:
            raise ConfigError(f"config.arms.{UNEDITED} is always there; name the arm otherwise.")
        listed.append(Arm(name, read_edit({**dict(edit), **dict(changes)}, seed=seed)))
    return listed


def edit_model(model: VLM, source: checkpoint.ModelFolder, spec: QKEdit) -> VLM:
    """Returns the model with the weights that an edited folder would hold; compiles nothing."""
    params = dict(model.params)
    for layer in edited_layers(source, spec):
        for name, array in layer.arrays.items():
            path = f"decoder/layers/{layer.layer}/{name}"
            old = params[path]
            # Rounded to the stored dtype first: what is measured is what an edited folder holds.
            params[path] = jax.device_put(array.astype(old.dtype), old.sharding)
    return model.with_params(params)


def summarise(
    request: Request, benchmark: Benchmark, table: TallyTable, baseline: TallyTable, arm: Arm
) -> Results:
    """Returns an arm's metrics with intervals, and its paired differences from the baseline."""
    config = request.config
    totals = table.totals()
    statistics = benchmark.metrics(totals)
    options = {"draws": config.bootstrap_draws, "seed": config.seed}
    differences = {}
    if table is not baseline:
        differences = paired_bootstrap(statistics, table, baseline.take(table.ids), **options)
    found = provenance(config)
    return Results(
        benchmark=benchmark.name,
        metrics=bootstrap_all(statistics, table, **options),
        counts=totals,
        n=len(table.ids),
        differences=differences,
        units=benchmark.units,
        config={**found["config"], "source": str(request.source), "arm": arm.name},
        versions=found["versions"],
        seeds={**found["seeds"], "bootstrap": config.seed},
        device=found["device"],
        protocol=protocol_hash(benchmark.protocol()),
    )


def fingerprint(source: checkpoint.ModelFolder) -> str:
    """Returns a short hash of what a folder holds: names, shapes, sizes and modification times."""
    files = sorted(path for path in source.path.rglob("*") if path.is_file())
    stats = [
        [str(path.relative_to(source.path)), path.stat().st_size, path.stat().st_mtime_ns]
        for path in files
    ]
    return protocol_hash({"files": stats, "edited": (source.path / CERTIFICATE).exists()})


def _publish(workdir: pathlib.Path, results: Mapping[str, Mapping[str, Results]]) -> None:
    """Writes the top `results.json` (first benchmark and arm, then all) and `answers.jsonl`."""
    first = next(iter(results))
    arm, entry = next(iter(results[first].items()))
    all_arms = {
        name: {arm: result.document() for arm, result in entries.items()}
        for name, entries in results.items()
    }
    write_json(workdir / "results.json", {**entry.document(), "arm": arm, "all": all_arms})
    answers = (workdir / first / _slug(arm) / "answers.jsonl").read_bytes()
    (workdir / "answers.jsonl").write_bytes(answers)


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
