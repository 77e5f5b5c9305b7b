"""What heads do, and where answers come from: the analyses that `config.explain` names."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_jax import checkpoint
from vlm_jax.analysis.ablation import SCOPES, Places
from vlm_jax.analysis.sources import SOURCES, SourceSupport
from vlm_jax.api import VLM, Answer
from vlm_jax.checkpoint import ModelFolder
from vlm_jax.errors import ConfigError, PromptError
from vlm_jax.evals.base import Example, Suite
from vlm_jax.evals.results import Results, protocol_hash, write_json
from vlm_jax.evals.suites import read_benchmark
from vlm_jax.explaining import ANALYSES, Subject
from vlm_jax.files import replace_file
from vlm_jax.progress import Progress
from vlm_jax.report.contributions import Support, sections
from vlm_jax.report.contributions import table as shares_table
from vlm_jax.report.page import page
from vlm_jax.settings import listed, one_of, plain, read, refuse_unknown, setting, whole
from vlm_jax.study.arms import heads_file
from vlm_jax.study.chunks import Chunks
from vlm_jax.study.fingerprint import fingerprint
from vlm_jax.study.prompts import read_requests
from vlm_jax.study.request import Request
from vlm_jax.study.runtime import generation_identity, generation_settings, load_model, provenance

PAGE, NUMBERS = "contributions.html", "contributions.json"


@dataclasses.dataclass(frozen=True)
class ContributionSettings:
    """What `config.contributions` says.

    Attributes:
        scope: where heads are gated, of `analysis.ablation.SCOPES`.
        rows: tokens in a batch, each with a backward pass through its whole sequence.
        answers: at most so many of the requests.
    """

    scope: str = setting("row", one_of, known=SCOPES)
    rows: int = setting(8, whole, low=1, high=1 << 20)
    answers: int = setting(16, whole, low=1, high=1 << 20)


CONTRIBUTIONS = "contributions"


def run(request: Request) -> None:
    """Runs the analyses of `config.explain.analysis` on `--source`; writes to `--workdir`.

    Each gives `<analysis>.json` with all numbers, `<analysis>.md`, and the tables that are printed.
    `config.explain` holds settings of single analyses besides:
    {"analysis": "spectra", "spectra": {"layers": (10, 17)}}. "contributions" is of the job alone:
    it has a page, and settings of its own in `config.contributions` (`write_contributions`).

    Raises:
        ConfigError: an analysis or a setting is unknown, or a value cannot be.
    """
    config, workdir = request.config, request.need("workdir")
    section = plain(config.get("explain", {}))
    chosen = _analyses(section)
    settings = {
        name: read(ANALYSES.find(name).settings, section.get(name, {}), f"config.explain.{name}")
        for name in dict.fromkeys((*chosen, *section))
        if name not in (CONTRIBUTIONS, "analysis")
    }
    if CONTRIBUTIONS in chosen:
        read_settings(config.contributions)
    source = checkpoint.open_folder(request.need("source"))
    load = functools.cache(lambda: load_model(request, source))
    asks = any(name == CONTRIBUTIONS or ANALYSES.find(name).asks for name in chosen)
    examples, suite = _examples(config, source.config.family) if asks else ([], None)
    heads = heads_file(config, source)
    found = heads if pathlib.Path(heads).is_file() else ""
    subject = Subject.of_folder(source, load, examples, found, suite)
    for name in chosen:
        if name == CONTRIBUTIONS:
            write_contributions(request, source, load(), examples)
            continue
        found = ANALYSES.find(name).run(subject, settings[name])
        tables = found.tables()
        about = {"kind": name, "source": source.path.name, **provenance(config)}
        write_json(workdir / f"{name}.json", {**found.document(), **about})
        replace_file(workdir / f"{name}.md", "\n".join(table.markdown() for table in tables))
        for table in tables:
            print(f"\n{table.text()}")
        print(f"Numbers: {workdir / f'{name}.json'}")


def _analyses(section: Mapping[str, Any]) -> list[str]:
    """The analyses that a config names, each once."""
    own = ANALYSES.names()
    refuse_unknown(section, ["analysis", *own], "config.explain")
    known = sorted([CONTRIBUTIONS, *own])
    given = section.get("analysis", CONTRIBUTIONS)
    words = given.split(",") if isinstance(given, str) else given
    chosen = listed("config.explain.analysis", words, each=one_of, least=1, known=known)
    return list(dict.fromkeys(chosen))


def write_contributions(
    request: Request, source: ModelFolder, model: VLM, examples: Sequence[Example]
) -> None:
    """Answers requests, or questions of one benchmark, and writes where each answer came from.

    `contributions.json` and `contributions.html` go to `--workdir`; answers of a killed run are
    kept, in `answers/`, with the support of every token by every head and source.
    """
    config, workdir = request.config, request.need("workdir")
    settings = read_settings(config.contributions)
    examples = examples[: settings.answers]
    identity = {
        "source": fingerprint(source),
        "contributions": dataclasses.asdict(settings),
        "asked": [protocol_hash(_asked(example)) for example in examples],
        "benchmarks": config.benchmarks.to_dict(),
        **generation_identity(config, model),
    }
    chunks = Chunks(workdir / "answers", identity)
    todo = [number for number in range(len(examples)) if not chunks.has(number)]
    support = SourceSupport(model.config, settings.rows)
    with Progress(len(todo), "answers", label="contributions") as progress:
        for number in todo:
            options = {"settings": generation_settings(config, model, [examples[number]])}
            found = measure(model, support, examples[number], settings, number, options)
            chunks.write(number, found)
            progress.advance()
    answers = [_read(model, example, chunks.read(n)) for n, example in enumerate(examples)]
    _write(config, workdir, settings, source.path.name, answers)


def read_settings(section: Mapping[str, Any]) -> ContributionSettings:
    """Returns the settings that a config section describes.

    Raises:
        ConfigError: a key is unknown or a value cannot be.
    """
    return read(ContributionSettings, section, "config.contributions")


def measure(
    model: VLM,
    support: SourceSupport,
    example: Example,
    settings: ContributionSettings,
    stream: int,
    options: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    """Answers one example; returns its tokens and their support [tokens, L, N, sources].

    Args:
        stream: what seeds its sampling.
        options: of `VLM.answer`.

    Raises:
        PromptError: the answer is empty, or the example cannot be read.
    """
    images, prompts = [list(example.images)], [example.prompt]
    (answer,) = model.answer(images, prompts, streams=[stream], **options)
    assert isinstance(answer, Answer)
    count = len(answer.tokens)
    if not count:
        raise PromptError(f"request {example.id}: the answer is empty, so nothing supports it.")
    batch, starts_b = model.processor.batch_answers(images, prompts, [answer.tokens])
    queries = (starts_b[0] - 1 + np.arange(count)).astype(np.int32)
    targets = np.asarray(answer.tokens, np.int32)
    places = Places(np.zeros(count, np.int32), queries, targets)
    found = support(model.params, batch, starts_b, places, settings.scope)
    return {"tokens": targets, "support": np.asarray(found, np.float32)}


def _examples(config: Any, family: str) -> tuple[Sequence[Example], Suite | None]:
    if not len(config.benchmarks):
        examples, malformed = read_requests(config.requests, config.prompt, list(config.images))
        for line, reason in malformed.items():
            raise PromptError(f"{config.requests} {line} {reason}")
        return examples, None
    if len(config.benchmarks) > 1:
        raise ConfigError(
            f"explain asks one benchmark, but config.benchmarks has "
            f"{len(config.benchmarks)}; leave one, or none to answer config.requests."
        )
    ((name, section),) = config.benchmarks.items()
    suite = read_benchmark(name, section, family)
    return list(suite.examples()), suite


def _asked(example: Example) -> dict[str, Any]:
    """What makes a request what it is; a benchmark's own pictures follow from its settings."""
    paths = [str(image) for image in example.images if isinstance(image, str | os.PathLike)]
    return {"id": str(example.id), "prompt": example.prompt, "images": paths}


def _read(model: VLM, example: Example, found: Mapping[str, np.ndarray]) -> Support:
    decode = model.processor.tokenizer.decode
    pieces = [decode([token]).strip() or "·" for token in found["tokens"].tolist()]
    return Support(str(example.id), example.prompt, pieces, SOURCES, found["support"])


def _write(
    config: Any, workdir, settings: ContributionSettings, source: str, answers: Sequence[Support]
):
    made = provenance(config)
    about = {key: made[key] for key in ("versions", "seeds", "device")}
    summary = shares_table(answers, settings.scope)
    title = f"Where the answers of {source} come from"
    plots = [plot for one in answers for plot in sections(one)]
    text = page(title, [summary.section(), *plots], Results(PAGE, {}, {}, len(answers), **about))
    replace_file(workdir / PAGE, text.encode())
    means = np.mean([one.support_mlns.mean(0, dtype=np.float64) for one in answers], axis=0)
    document = {
        "kind": "contributions",
        "by_head": {name: means[..., n].round(6).tolist() for n, name in enumerate(SOURCES)},
        "source": source,
        "scope": settings.scope,
        "sources": SOURCES,
        "answers": [
            {
                "id": one.name,
                "prompt": one.prompt,
                "tokens": one.tokens,
                "support": one.by_token.round(6).tolist(),
                "shares": {name: round(share, 6) for name, share in one.shares.items()},
            }
            for one in answers
        ],
        **made,
    }
    write_json(workdir / NUMBERS, document)
    print(summary.text())
    print(f"Plots: {workdir / PAGE}")
