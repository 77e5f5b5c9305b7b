"""Runs the arms of a comparison: one loaded model, one unedited run, each layer factored once."""

import dataclasses
import pathlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from vlm_jax.api import VLM
from vlm_jax.checkpoint import ModelFolder
from vlm_jax.decoding import DecodeSettings
from vlm_jax.edits.qk import QKEdit
from vlm_jax.errors import PromptError
from vlm_jax.evals.base import Suite
from vlm_jax.evals.results import protocol_hash
from vlm_jax.evals.runner import Answered
from vlm_jax.evals.runner import run as run_benchmark
from vlm_jax.evals.tallies import TallyTable
from vlm_jax.files import slug
from vlm_jax.progress import duration
from vlm_jax.study.acted import acted, details
from vlm_jax.study.arms import Arm, Draw, Planned, plan_edits
from vlm_jax.study.fingerprint import fingerprint, picture
from vlm_jax.study.request import Request
from vlm_jax.study.runtime import generation_identity, generation_settings, load_model, share
from vlm_jax.study.say_less import SayLess


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Programs that a comparison compiled.

    Attributes:
        unedited: for the model as it is.
        edited: for edited weights besides: none, unless part of the answers was there already, so
            that batches differ.
        steered: for attention methods besides.
        kinds: of attention methods with programs of their own, which settings do not change.
    """

    unedited: int
    edited: int
    steered: int
    kinds: int

    def __str__(self) -> str:
        text = f"Programs compiled: {self.unedited}; for edited models {self.edited} more"
        kinds = f"{self.kinds} kind{'s' if self.kinds > 1 else ''} of steering"
        return f"{text}; for {kinds} {self.steered} more." if self.kinds else f"{text}."


@dataclasses.dataclass(frozen=True)
class Measured:
    """Tallies of a comparison.

    Attributes:
        tables: arm -> benchmark -> a table a draw; the unedited arm first.
        sweep: bias -> caption benchmark -> table; empty without a frontier.
        planned: what every edit is, in low-rank form, and its sizes.
        acted: arm -> what its steering did, one a draw; steered arms alone.
        compiled: programs.
        answered: arm -> benchmark -> what each draw's answers say.
        generation: what besides weights and prompts makes answers what they are: settings of
            decoding, dtype, template and pixels; no seed.
        failures: benchmark -> id of an item -> why it could not be read, in whichever arm; such
            items are left out of all arms, so that they stay paired.
        prompts: benchmark -> the whole prompt of its first item.
    """

    tables: Mapping[str, Mapping[str, Sequence[TallyTable]]]
    sweep: Mapping[float, Mapping[str, TallyTable]]
    planned: Mapping[QKEdit, Planned]
    acted: Mapping[str, Sequence[Mapping[str, Any]]]
    compiled: Compiled
    answered: Mapping[str, Mapping[str, Sequence[Answered]]]
    generation: Mapping[str, Any]
    failures: Mapping[str, Mapping[str, str]]
    prompts: Mapping[str, str]


class Session:
    """A loaded model and the folder it came from, for one job.

    Args:
        request: of the job.
        source: the folder, open.
    """

    def __init__(self, request: Request, source: ModelFolder):
        self.request, self.source = request, source
        self.config = request.config
        self.model = load_model(request, source)
        # Arms that leave an image's rows alone read it once for all.
        self.model.keep_prefixes(int(request.config.prefix_cache_mb * 2**20))
        self.max_failures, self.share = request.config.max_failures, share(request.config)
        self.identity = {
            "source": fingerprint(self.source),
            **generation_identity(request.config, self.model),
        }

    def measure(
        self,
        benchmarks: Mapping[str, Suite],
        arms: Sequence[Arm],
        workdir: pathlib.Path,
        say_less: SayLess | None = None,
    ) -> Measured:
        """Runs every arm on every benchmark, the source as it is first, and the say-less arms.

        Answers go to `<workdir>/<benchmark>/<arm>/answers.jsonl`; those that are there already are
        not made again.
        """
        # Before the edits are worked out: a word that the tokenizer lacks is found in no time.
        biased = {} if say_less is None else say_less.arms(self.model)
        planned = plan_edits(self.source, (edit for arm in arms for edit in arm.edits))
        every = [*arms, *biased.values()]
        names = lambda arm: benchmarks if arm.benchmarks is None else arm.benchmarks
        clock = _Clock(sum(len(arm.draws) * len(names(arm)) for arm in every))
        asked = [example for suite in benchmarks.values() for example in suite.examples()]
        settings = generation_settings(self.config, self.model, asked)
        runs = _Runs(self, benchmarks, workdir, clock, planned, settings)
        found: dict[str, dict[str, list[Answered]]] = {}
        done: dict[str, list[Mapping[str, Any]]] = {}
        compiled: dict[str, int] = {"unedited": 0, "edited": 0, "steered": 0}
        for arm in every:
            for number, (draw, folder) in enumerate(zip(arm.draws, arm.folders())):
                many = f" {number + 1} of {len(arm.draws)}" if arm.is_random else ""
                before = self.model.generator.compilations
                drawn = runs.draw(draw, names(arm), folder, f"{arm.name}{many}")
                for name, answered in drawn.items():
                    found.setdefault(arm.name, {}).setdefault(name, []).append(answered)
                compiled[_kind(draw)] += self.model.generator.compilations - before
                if draw.steering is not None:
                    rows = {name: answered.rows for name, answered in drawn.items()}
                    done.setdefault(arm.name, []).append(acted(draw.steering, rows))
        failures = _failures(benchmarks, found.values())
        tables = {
            arm: {name: [a.table(failures[name]) for a in drawn] for name, drawn in own.items()}
            for arm, own in found.items()
        }
        sweep = {
            bias: {name: drawn[0] for name, drawn in tables.pop(arm.name).items()}
            for bias, arm in biased.items()
        }
        if say_less is not None:
            sweep[0.0] = {name: tables[arms[0].name][name][0] for name in say_less.benchmarks}
        acting = {jax.tree.structure((d.steering, d.strategy)) for arm in arms for d in arm.draws}
        kinds = len(acting - {jax.tree.structure((None, None))})
        programs = Compiled(**compiled, kinds=kinds)
        apart = ("source", "seed")  # arms and seeds are what is compared
        generation = {key: value for key, value in self.identity.items() if key not in apart}
        generation |= self.model.processor.identity
        sweep = dict(sorted(sweep.items()))
        prompts = {name: self._first_prompt(suite, settings) for name, suite in benchmarks.items()}
        return Measured(
            tables, sweep, planned, done, programs, found, generation, failures, prompts
        )

    def _first_prompt(self, suite: Suite, settings: DecodeSettings) -> str:
        """What the model reads of a benchmark's first item; "" where the template refuses it."""
        first = next(iter(suite.examples()))
        count = len(first.images)
        try:
            return self.model.processor.template(first.prompt, count, settings.system)
        except PromptError:
            return ""


def _kind(draw: Draw) -> str:
    """What `Compiled` calls the programs of a draw."""
    if draw.steering is not None or draw.strategy is not None or draw.reranked:
        return "steered"
    return "unedited" if draw.edit is None else "edited"


def _failures(
    benchmarks: Mapping[str, Suite], runs: Iterable[Mapping[str, Sequence[Answered]]]
) -> dict[str, dict[str, str]]:
    """Benchmark -> id -> reason, of items that failed in any run."""
    failures: dict[str, dict[str, str]] = {name: {} for name in benchmarks}
    for found in runs:
        for name, drawn in found.items():
            for answered in drawn:
                failures[name].update(answered.failures)
    return failures


@dataclasses.dataclass(frozen=True)
class _Runs:
    """Runs of one comparison."""

    session: Session
    benchmarks: Mapping[str, Suite]
    workdir: pathlib.Path
    clock: "_Clock"
    planned: Mapping[QKEdit, Planned]
    settings: DecodeSettings
    hashes: dict[str, str] = dataclasses.field(default_factory=dict)

    def draw(
        self, draw: Draw, names: Iterable[str], folder: str, label: str
    ) -> dict[str, Answered]:
        """Answers some benchmarks with one draw of an arm."""
        model = draw.apply(self.session.model, self.planned)
        steered = {} if draw.steering is None else {"details": details}
        return {
            name: self.answer(name, model, folder, label, draw.identity, **steered)
            for name in names
        }

    def pictures(self, name: str) -> str:
        """A hash of the images of a benchmark."""
        if name not in self.hashes:
            images = {}
            for example in self.benchmarks[name].examples():
                for image in example.images:
                    key = str(image) if isinstance(image, str | pathlib.Path) else id(image)
                    images.setdefault(key, image)
            found = [picture(image) for image in images.values()]
            self.hashes[name] = protocol_hash({"pictures": found})
        return self.hashes[name]

    def path(self, name: str, folder: str) -> pathlib.Path:
        """Where the answers to a benchmark are."""
        return self.workdir / slug(name) / folder / "answers.jsonl"

    def answer(
        self,
        name: str,
        model: VLM,
        folder: str,
        label: str,
        identity: dict,
        **settings: Any,
    ) -> Answered:
        """Answers a benchmark, or reads the answers that are there."""
        with self.clock:
            return run_benchmark(
                model,
                self.benchmarks[name],
                self.path(name, folder),
                identity={
                    **self.session.identity,
                    "pictures": self.pictures(name),
                    **identity,
                },
                label=f"{self.clock} {name}, {label}",
                max_failures=self.session.max_failures,
                share=self.session.share,
                settings=self.settings,
                **settings,
            )


class _Clock:
    """Counts runs and says how long the rest may take, from the runs that took time at all."""

    _RESUMED_SECONDS = 0.5
    _LONG_SECONDS = 60.0  # beside which compiling takes little

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
        known = self._seconds[1:] or [s for s in self._seconds if s > self._LONG_SECONDS]
        left = sum(known) / len(known) * (self.total - self.begun + 1) if known else None
        rest = "" if left is None or self.begun == self.total else f", {duration(left)} left"
        return f"[{self.begun} of {self.total}{rest}]"
