"""Runs the arms of a comparison: one loaded model, one unedited run, each layer factored once."""

import dataclasses
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_jax import checkpoint
from vlm_jax.api import VLM
from vlm_jax.evals.base import Benchmark
from vlm_jax.evals.results import protocol_hash
from vlm_jax.evals.runner import run as run_benchmark
from vlm_jax.evals.tallies import TallyTable
from vlm_jax.jobs.arms import UNEDITED, Arm, Planned, edit_model, plan_edits, slug
from vlm_jax.jobs.request import Request
from vlm_jax.jobs.runtime import generation_settings, load_model
from vlm_jax.jobs.say_less import SayLess
from vlm_jax.progress import duration
from vlm_jax.steering.qk import QKEdit


@dataclasses.dataclass(frozen=True)
class Measured:
    """Tallies of a comparison.

    Attributes:
        tables: arm -> benchmark -> a table a draw; the unedited arm first.
        sweep: bias -> caption benchmark -> table; empty without a frontier.
        planned: what every edit is, in low-rank form, and its sizes.
        compiled: programs that the unedited model compiled.
        recompiled: programs that the edited ones compiled besides: none, unless part of the answers
            was there already, so that batches differ.
    """

    tables: Mapping[str, Mapping[str, Sequence[TallyTable]]]
    sweep: Mapping[float, Mapping[str, TallyTable]]
    planned: Mapping[QKEdit, Planned]
    compiled: int
    recompiled: int


class Session:
    """A loaded model and the folder it came from, for one job.

    Args:
        request: of the job; needs `source`.
    """

    def __init__(self, request: Request):
        self.source = checkpoint.open_folder(request.need("source"))
        self.model = load_model(request)
        self.settings = generation_settings(request.config)
        named = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")
        self.identity = {
            "source": fingerprint(self.source),
            **{key: request.config[key] for key in named},
            "dtype": str(next(iter(self.model.params.values())).dtype),
        }

    def measure(
        self,
        benchmarks: Mapping[str, Benchmark],
        arms: Sequence[Arm],
        workdir: pathlib.Path,
        say_less: SayLess | None = None,
    ) -> Measured:
        """Runs every arm on every benchmark, and the unedited model under every bias.

        Answers go to `<workdir>/<benchmark>/<arm>/answers.jsonl`; those that are there already are
        not made again.
        """
        draws = sum(max(len(arm.edits), 1) for arm in arms)
        biases = [] if say_less is None else [bias for bias in say_less.biases if bias]
        captions = () if say_less is None else say_less.benchmarks
        planned = plan_edits(self.source, (edit for arm in arms for edit in arm.edits))
        clock = _Clock(draws * len(benchmarks) + len(biases) * len(captions))
        runs = _Runs(self, benchmarks, workdir, clock)
        vectors = {bias: say_less.logit_bias(self.model, bias) for bias in biases if say_less}
        before = self.model.generator.compilations
        tables: dict[str, dict[str, list[TallyTable]]] = {UNEDITED: {}}
        for name in benchmarks:
            table = runs.answer(name, self.model, slug(UNEDITED), UNEDITED, {"edit": "None"})
            tables[UNEDITED][name] = [table]
        compiled = self.model.generator.compilations
        for arm in arms:
            for draw, (edit, folder) in enumerate(zip(arm.edits, arm.folders())):
                model = edit_model(self.model, self.source, planned[edit])
                label = f"{arm.name} {draw + 1} of {len(arm.edits)}" if arm.is_random else arm.name
                for name in benchmarks:
                    table = runs.answer(name, model, folder, label, {"edit": repr(edit)})
                    tables.setdefault(arm.name, {}).setdefault(name, []).append(table)
        recompiled = self.model.generator.compilations - compiled
        sweep = {}
        for bias, vector in vectors.items():
            identity = {"edit": "None", "bias": bias, "bias_tokens": say_less and say_less.tokens}
            where = f"frontier/bias_{bias:+g}", f"say-less bias {bias:+g}"
            sweep[bias] = {
                name: runs.answer(name, self.model, *where, identity, logit_bias=vector)
                for name in captions
            }
        if sweep:
            sweep[0.0] = {name: tables[UNEDITED][name][0] for name in captions}
        return Measured(tables, dict(sorted(sweep.items())), planned, compiled - before, recompiled)


@dataclasses.dataclass(frozen=True)
class _Runs:
    """Runs of one comparison."""

    session: Session
    benchmarks: Mapping[str, Benchmark]
    workdir: pathlib.Path
    clock: "_Clock"

    def answer(
        self, name: str, model: VLM, folder: str, label: str, identity: dict, **settings: Any
    ) -> TallyTable:
        """Answers a benchmark, or reads the answers that are there."""
        with self.clock:
            return run_benchmark(
                model,
                self.benchmarks[name],
                self.workdir / slug(name) / folder / "answers.jsonl",
                identity={**self.session.identity, **identity},
                label=f"{self.clock} {name}, {label}",
                **self.session.settings,
                **settings,
            )


def fingerprint(source: checkpoint.ModelFolder) -> str:
    """Returns a short hash of what a folder holds: names, shapes, sizes and modification times."""
    files = sorted(path for path in source.path.rglob("*") if path.is_file())
    stats = [
        [str(path.relative_to(source.path)), path.stat().st_size, path.stat().st_mtime_ns]
        for path in files
    ]
    return protocol_hash({"files": stats})


class _Clock:
    """Counts runs and says how long the rest may take, from the runs that took time at all."""

    _RESUMED_SECONDS = 0.5

    def __init__(self, total: int):
        self.total, self.begun = total, 0
        self._seconds: list[float] = []
        self._start = 0.0

    def __enter__(self) -> None:
        self.begun += 1
        self._start = time.monotonic()

    def __exit__(self, *error: object) -> None:
        seconds = time.monotonic() - self._start
        if seconds > self._RESUMED_SECONDS:
            self._seconds.append(seconds)

    def __str__(self) -> str:
        # The first run compiles; later ones say more about the rest.
        known = self._seconds[1:] or self._seconds
        left = sum(known) / len(known) * (self.total - self.begun + 1) if known else None
        rest = "" if left is None else f", {duration(left)} left"
        return f"[{self.begun} of {self.total}{rest}]"
