"""Runs the arms of a comparison: one loaded model, one unedited run, each layer factored once."""

import dataclasses
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from vlm_jax import checkpoint
from vlm_jax.api import VLM
from vlm_jax.edits.qk import QKEdit
from vlm_jax.evals.base import Suite
from vlm_jax.evals.results import protocol_hash
from vlm_jax.evals.runner import Answered
from vlm_jax.evals.runner import run as run_benchmark
from vlm_jax.evals.tallies import TallyTable
from vlm_jax.progress import duration
from vlm_jax.steering.two_pass import TwoPasses
from vlm_jax.study.acted import acted, details
from vlm_jax.study.arms import UNEDITED, Arm, Planned, Setting, edit_model, plan_edits, slug
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
        generation: what besides weights and prompts makes answers what they are.
        failures: benchmark -> id of an item -> why it could not be read, in whichever arm; such
            items are left out of all arms, so that they stay paired.
    """

    tables: Mapping[str, Mapping[str, Sequence[TallyTable]]]
    sweep: Mapping[float, Mapping[str, TallyTable]]
    planned: Mapping[QKEdit, Planned]
    acted: Mapping[str, Sequence[Mapping[str, Any]]]
    compiled: Compiled
    answered: Mapping[str, Mapping[str, Sequence[Answered]]]
    generation: Mapping[str, Any]
    failures: Mapping[str, Mapping[str, str]]


class Session:
    """A loaded model and the folder it came from, for one job.

    Args:
        request: of the job; needs `source`.
    """

    def __init__(self, request: Request):
        self.source = checkpoint.open_folder(request.need("source"))
        self.settings = generation_settings(request.config)
        self.model = load_model(request)
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
        """Runs every arm on every benchmark, and the unedited model under every bias.

        Answers go to `<workdir>/<benchmark>/<arm>/answers.jsonl`; those that are there already are
        not made again.
        """
        draws = sum(max(len(arm.settings), 1) for arm in arms)
        biases = [] if say_less is None else [bias for bias in say_less.biases if bias]
        captions = () if say_less is None else say_less.benchmarks
        # Before the edits are worked out: a word that the tokenizer lacks is found in no time.
        vectors = {bias: say_less.logit_bias(self.model, bias) for bias in biases if say_less}
        planned = plan_edits(self.source, (edit for arm in arms for edit in arm.edits))
        clock = _Clock(draws * len(benchmarks) + len(biases) * len(captions))
        runs = _Runs(self, benchmarks, workdir, clock, planned)
        before = self.model.generator.compilations
        found: dict[str, dict[str, list[Answered]]] = {UNEDITED: {}}
        for name, answered in runs.draw(Setting(0), slug(UNEDITED), UNEDITED).items():
            found[UNEDITED][name] = [answered]
        compiled = {"unedited": self.model.generator.compilations - before}
        compiled |= {"edited": 0, "steered": 0}
        done: dict[str, list[Mapping[str, Any]]] = {}
        for arm in arms:
            for draw, (setting, folder) in enumerate(zip(arm.settings, arm.folders())):
                many = len(arm.settings)
                label = f"{arm.name} {draw + 1} of {many}" if arm.is_random else arm.name
                before = self.model.generator.compilations
                drawn = runs.draw(setting, folder, label)
                for name, answered in drawn.items():
                    found.setdefault(arm.name, {}).setdefault(name, []).append(answered)
                plain = setting.steering is None and setting.strategy is None
                kind = "edited" if plain else "steered"
                compiled[kind] += self.model.generator.compilations - before
                if setting.steering is not None:
                    rows = {name: answered.rows for name, answered in drawn.items()}
                    done.setdefault(arm.name, []).append(acted(setting.steering, rows))
        biased: dict[float, dict[str, Answered]] = {}
        for bias, vector in vectors.items():
            identity = {"edit": "None", "bias": bias, "bias_tokens": say_less and say_less.tokens}
            where = f"frontier/bias_{bias:+g}", f"say-less bias {bias:+g}"
            biased[bias] = {
                name: runs.answer(name, self.model, *where, identity, logit_bias=vector)
                for name in captions
            }
        everything = [*found.values(), *({n: [a] for n, a in b.items()} for b in biased.values())]
        failures = _failures(benchmarks, everything)
        tables = {
            arm: {name: [a.table(failures[name]) for a in drawn] for name, drawn in own.items()}
            for arm, own in found.items()
        }
        sweep = {
            bias: {name: answered.table(failures[name]) for name, answered in own.items()}
            for bias, own in biased.items()
        }
        if sweep:
            sweep[0.0] = {name: tables[UNEDITED][name][0] for name in captions}
        settings = [setting for arm in arms for setting in arm.settings]
        acting = {jax.tree.structure((one.steering, one.strategy)) for one in settings}
        kinds = len(acting - {jax.tree.structure((None, None))})
        sweep = dict(sorted(sweep.items()))
        programs = Compiled(**compiled, kinds=kinds)
        generation = {key: value for key, value in self.identity.items() if key != "source"}
        return Measured(tables, sweep, planned, done, programs, found, generation, failures)


def _failures(
    benchmarks: Mapping[str, Suite], runs: Sequence[Mapping[str, Sequence[Answered]]]
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
    hashes: dict[str, str] = dataclasses.field(default_factory=dict)

    def draw(self, setting: Setting, folder: str, label: str) -> dict[str, Answered]:
        """Answers every benchmark with one setting."""
        model = self.session.model
        if setting.edit is not None:
            model = edit_model(model, self.session.source, self.planned[setting.edit])
        if setting.two_passes:
            model = TwoPasses(model)
        steered: dict[str, Any] = {}
        if setting.steering is not None:
            steered = {"steering": setting.steering, "details": details}
        if setting.strategy is not None:
            steered["strategy"] = setting.strategy
        return {
            name: self.answer(name, model, folder, label, setting.identity, **steered)
            for name in self.benchmarks
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
        model: VLM | TwoPasses,
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
                **self.session.settings,
                **settings,
            )


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
