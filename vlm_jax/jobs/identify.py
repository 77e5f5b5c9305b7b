"""Finds the heads that favour hallucinated words, and those that look at images or do not.

The model captions a benchmark; the words of its captions that name objects are judged; every head
is zeroed where such a word is predicted, and heads are ranked by how much more that costs the
hallucinated words than the grounded ones. Readings of the same captions say which heads are
perception and reasoning heads, and which are attention sinks.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vlm_jax import checkpoint
from vlm_jax.analysis.ablation import SCOPES, HeadAblation, Places
from vlm_jax.analysis.effects import effect_sizes, jaccard, ranking, spearman, stability
from vlm_jax.analysis.mentions import matching_tokens, naming_tokens, token_spans
from vlm_jax.api import VLM, Answer
from vlm_jax.attention.steering import Readings
from vlm_jax.errors import AnswersError, ConfigError
from vlm_jax.evals.base import Example
from vlm_jax.evals.benchmarks import Chair
from vlm_jax.evals.results import protocol_hash, write_json
from vlm_jax.jobs.benchmarks import read_benchmark
from vlm_jax.jobs.fingerprint import HEADS, fingerprint
from vlm_jax.jobs.request import Request
from vlm_jax.jobs.runtime import generation_settings, load_model, provenance
from vlm_jax.progress import Progress
from vlm_jax.steering.calibration import Calibration, calibrate
from vlm_jax.steering.checks import number, one_of, whole
from vlm_jax.steering.functional import classifier, read_classes
from vlm_jax.steering.heads import HeadSets, shape_of

_CAPTIONS = ("hallucinated", "all")
_SUBTOKENS = ("first", "all")
_LABELS = ("offsets", "string_match")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `config.identify` says.

    Attributes:
        scopes: where heads are zeroed, of `analysis.ablation.SCOPES`; the first ranks them.
        count: heads in the head set.
        captions: which captions count, those with a "hallucinated" mention or "all".
        subtokens: whether a mention counts at its "first" token or at "all" of them.
        labels: how mentions are found among tokens, by character "offsets" or by "string_match", as
            the released code does (`mentions.matching_tokens`).
        chunk: captions between two saves.
        rows: ablated runs in a batch.
        classes: settings of functional heads by which readings are classified.
    """

    scopes: tuple[str, ...] = SCOPES
    count: int = 20
    captions: str = "hallucinated"
    subtokens: str = "first"
    labels: str = "offsets"
    chunk: int = 32
    rows: int = 64
    classes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def run(request: Request) -> None:
    """Writes `heads.json` to `--workdir`; chunks of a killed run are kept and not made again."""
    config, workdir = request.config, request.need("workdir")
    source = checkpoint.open_folder(request.need("source"))
    settings = read_settings(config.get("identify", {}), shape_of(source.config))
    classes = read_classes(source.config, **settings.classes)
    benchmark = _caption_benchmark(config.benchmarks, source.config.family)
    identity = {
        "source": fingerprint(source),
        "identify": dataclasses.asdict(settings),
        "protocol": protocol_hash(benchmark.protocol()),
        **{key: config[key] for key in ("max_new_tokens", "dtype", "seed")},
    }
    chunks = _Chunks(workdir / "chunks", identity)
    examples = list(benchmark.examples())
    parts = [examples[at : at + settings.chunk] for at in range(0, len(examples), settings.chunk)]
    todo = [number for number in range(len(parts)) if not chunks.has(number)]
    if todo:
        model = load_model(request)
        ablation = HeadAblation(model.config, settings.rows)
        captioner = {**generation_settings(config), "steering": classifier(classes)}
        total = sum(len(parts[number]) for number in todo)
        with Progress(total, "captions", label="identify") as progress:
            for number in todo:
                offset = number * settings.chunk
                work = _Chunk(model, benchmark, ablation, settings, parts[number], offset)
                chunks.write(number, work.measure(captioner))
                progress.advance(len(parts[number]))
    found = _join([chunks.read(number) for number in range(len(parts))])
    document = describe(found, settings, shape_of(source.config))
    document |= {"benchmark": benchmark.name, "source": source.path.name, "identity": identity}
    document |= provenance(config)
    write_json(workdir / HEADS, document)
    _show(document, workdir / HEADS)


def read_settings(section: Mapping[str, Any], shape: tuple[int, int]) -> Settings:
    """Returns the settings that a config section describes.

    Raises:
        ConfigError: a key is unknown or a value cannot be.
    """
    values = dict(section)
    known = [field.name for field in dataclasses.fields(Settings)]
    for key in values:
        if key not in known:
            raise ConfigError(f"config.identify has no key {key!r}; it knows {', '.join(known)}.")
    classes = dict(values.get("classes") or {})
    values |= {"classes": classes, "scopes": tuple(values.get("scopes", SCOPES))}
    settings = Settings(**values)
    if not settings.scopes:
        raise ConfigError(f"config.identify.scopes names none of {', '.join(SCOPES)}.")
    for scope in settings.scopes:
        one_of("config.identify.scopes", scope, SCOPES)
    one_of("config.identify.captions", settings.captions, _CAPTIONS)
    one_of("config.identify.subtokens", settings.subtokens, _SUBTOKENS)
    one_of("config.identify.labels", settings.labels, _LABELS)
    whole("config.identify.count", settings.count, 1, shape[0] * shape[1] // 2)
    whole("config.identify.chunk", settings.chunk, 1, 1 << 20)
    whole("config.identify.rows", settings.rows, 1, 1 << 20)
    for key, value in classes.items():
        number(f"config.identify.classes.{key}", value)
    return settings


def _caption_benchmark(sections: Mapping[str, Any], family: str) -> Chair:
    if len(sections) != 1:
        raise ConfigError(
            f"identify needs exactly one benchmark of captions, but config.benchmarks has "
            f"{len(sections)}; use --config=configs/identify.py."
        )
    name, section = next(iter(sections.items()))
    benchmark = read_benchmark(name, section, family)
    if not isinstance(benchmark, Chair):
        raise ConfigError(f"config.benchmarks.{name} asks for no captions; identify needs some.")
    return benchmark


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """Captions of a few examples, and what heads do to them.

    Attributes:
        offset: index of the first example in the benchmark.
    """

    model: VLM
    benchmark: Chair
    ablation: HeadAblation
    settings: Settings
    examples: Sequence[Example]
    offset: int

    def measure(self, captioner: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Returns arrays by name: readings of the captions and drops of their naming tokens."""
        images = [list(example.images) for example in self.examples]
        prompts = [example.prompt for example in self.examples]
        made = self.model.answer(images, prompts, **captioner)
        answers = sorted(
            (one for one in made if isinstance(one, Answer)), key=lambda one: one.index
        )
        rows = list(self._tokens(answers))
        token_m4 = np.asarray(rows, np.int32).reshape(-1, 4)
        fields = [field.name for field in dataclasses.fields(Readings)]
        readings = {
            name: np.stack([np.asarray(getattr(a.readings, name)) for a in answers])
            for name in fields
        }
        found = {"sample": self.offset + token_m4[:, 0], "hallucinated": token_m4[:, 3] > 0}
        empty = np.zeros((0, *self.ablation.shape), np.float32)
        names = [f"{kind}_{scope}" for scope in self.settings.scopes for kind in ("drop", "slope")]
        if not len(token_m4):
            return {**readings, **found, **dict.fromkeys(names, empty)}
        batch, starts = self._batch(images, prompts, answers)
        sample_m, index_m, target_m = token_m4[:, 0], token_m4[:, 1], token_m4[:, 2]
        places = Places(sample_m, starts[sample_m] + index_m - 1, target_m)
        for scope in self.settings.scopes:
            here = self.model.params, batch, places, scope
            found[f"drop_{scope}"] = self.ablation.drops(*here)
            found[f"slope_{scope}"] = self.ablation.first_order(*here)
        return {**readings, **found}

    def _tokens(self, answers: Sequence[Answer]) -> Iterator[tuple[int, int, int, int]]:
        """Yields (sample, index in the answer, id, whether hallucinated) of naming tokens."""
        for sample, (example, answer) in enumerate(zip(self.examples, answers)):
            mentions = self.benchmark.scorer.score(example.id, answer.text).mentions
            wrong = any(mention.hallucinated for mention in mentions)
            if self.settings.captions == "hallucinated" and not wrong:
                continue
            said = self.model.processor.tokenizer, answer.tokens, answer.text
            if self.settings.labels == "offsets":
                named = naming_tokens(mentions, token_spans(*said))
            else:
                named = matching_tokens(mentions, *said)
            for token in named:
                if token.first or self.settings.subtokens == "all":
                    identifier = answer.tokens[token.index]
                    yield sample, token.index, identifier, int(token.hallucinated)

    def _batch(self, images, prompts, answers: Sequence[Answer]):
        """The captions after their prompts, always as many rows so that few programs compile."""
        index = [min(i, len(answers) - 1) for i in range(self.settings.chunk)]
        return self.model.processor.batch_answers(
            [images[i] for i in index],
            [prompts[i] for i in index],
            [answers[i].tokens for i in index],
            first_sample=self.offset,
        )


class _Chunks:
    """Results of chunks as files beside one that says whose they are."""

    def __init__(self, folder: pathlib.Path, identity: Mapping[str, Any]):
        self.folder = folder
        key = folder / "run.json"
        wanted = json.loads(json.dumps(identity, sort_keys=True, default=str))
        if not key.exists():
            write_json(key, wanted)
        elif json.loads(key.read_text(encoding="utf-8")) != wanted:
            raise AnswersError(
                f"{folder} holds results of another model or other settings ({key.name} says "
                "which); delete it or choose another --workdir."
            )

    def _path(self, number: int) -> pathlib.Path:
        return self.folder / f"{number:06}.npz"

    def has(self, number: int) -> bool:
        return self._path(number).exists()

    def write(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes a chunk, whole or not at all."""
        path = self._path(number)
        temporary = path.with_name(f".{path.name}.part")
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        temporary.replace(path)

    def read(self, number: int) -> dict[str, np.ndarray]:
        with np.load(self._path(number), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}


def _join(chunks: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def describe(
    found: Mapping[str, np.ndarray], settings: Settings, shape: tuple[int, int]
) -> dict[str, Any]:
    """Returns what was found as JSON values: head sets, effects by scope, and how sure they are.

    Args:
        found: arrays of all chunks: `sample`, `hallucinated` [m], `drop_<scope>` and
            `slope_<scope>` [m, L, N], and the fields of `Readings` [answers, L, N].
        settings: of the run.
        shape: (layers, query heads).

    Raises:
        ConfigError: the captions have no hallucinated or no grounded mention.
    """
    wrong_m, sample_m = found["hallucinated"], found["sample"]
    if not wrong_m.any() or wrong_m.all():
        raise ConfigError(
            f"the captions have {wrong_m.sum()} hallucinated and {(~wrong_m).sum()} grounded "
            "tokens, but effects need both; ask for more captions (config.benchmarks)."
        )
    scopes = {}
    for scope in settings.scopes:
        drop_mln = found[f"drop_{scope}"]
        effects = effect_sizes(drop_mln, wrong_m)
        slopes = effect_sizes(found[f"slope_{scope}"], wrong_m)
        scopes[scope] = {
            "effect_size_ln": effects.size_ln.tolist(),
            "contrast_ln": effects.contrast_ln.tolist(),
            "ranking": [list(head) for head in ranking(effects.size_ln)],
            "first_order": {
                "rank_correlation_of_contrast": spearman(slopes.contrast_ln, effects.contrast_ln),
                "rank_correlation_of_effect_size": spearman(slopes.size_ln, effects.size_ln),
                "jaccard_of_top": _top_overlap(slopes.size_ln, effects.size_ln, settings.count),
            },
            "stability": {
                "count": settings.count,
                "jaccard_between_halves": stability(drop_mln, wrong_m, sample_m, settings.count),
            },
        }
    first = settings.scopes[0]
    order = ranking(np.asarray(scopes[first]["effect_size_ln"]))
    bottom = ranking(-np.asarray(scopes[first]["contrast_ln"]))
    calibration = _calibration(found)
    calibration.log()
    half = len(order) // 2
    sets = HeadSets(
        "",
        shape,
        sensitive=order[:half],
        insensitive=bottom[:half],
        count=settings.count,
        perception=calibration.perception,
        reasoning=calibration.reasoning,
        perception_ln=calibration.perception_ln,
        reasoning_ln=calibration.reasoning_ln,
        system_mass_ln=calibration.system_ln,
    )
    return {
        "kind": "head sets",
        "sets": sets.document(),
        "tokens": {"hallucinated": int(wrong_m.sum()), "grounded": int((~wrong_m).sum())},
        "captions": {"made": calibration.answers, "measured": len(np.unique(sample_m))},
        "scopes": scopes,
        "overlap_of_scopes": _scope_overlap(scopes, settings.count),
        "masses": {
            name: getattr(calibration, f"{name}_ln").round(6).tolist()
            for name in ("image", "text", "system")
        },
        "selected_share": calibration.selected,
    }


def _calibration(found: Mapping[str, np.ndarray]) -> Calibration:
    names = [field.name for field in dataclasses.fields(Readings)]
    rows = zip(*(found[name] for name in names))
    return calibrate(Readings(**dict(zip(names, row))) for row in rows)


def _top_overlap(one: np.ndarray, other: np.ndarray, count: int) -> float:
    return jaccard(ranking(one)[:count], ranking(other)[:count])


def _scope_overlap(scopes: Mapping[str, Any], count: int) -> float | None:
    tops = [[tuple(head) for head in scope["ranking"][:count]] for scope in scopes.values()]
    return jaccard(*tops) if len(tops) == 2 else None


def _show(document: Mapping[str, Any], path: pathlib.Path) -> None:
    """Prints the heads and how sure they are."""
    tokens, captions = document["tokens"], document["captions"]
    print(
        f"{captions['made']} captions, {captions['measured']} measured: "
        f"{tokens['hallucinated']} hallucinated and {tokens['grounded']} grounded tokens."
    )
    for name, scope in document["scopes"].items():
        sure, quick = scope["stability"], scope["first_order"]
        heads = scope["ranking"][: sure["count"]]
        listed = ", ".join(
            f"({layer}, {head}) {scope['effect_size_ln'][layer][head]:+.2f}"
            for layer, head in heads[:8]
        )
        shared = sure["jaccard_between_halves"]
        halves = "-" if shared is None else f"{shared:.2f}"
        print(
            f"{name}: {listed}; halves agree {halves}, rank correlation with first order "
            f"{quick['rank_correlation_of_contrast']:.2f}."
        )
    sets = document["sets"]
    print(
        f"{len(sets['perception'])} perception and {len(sets['reasoning'])} reasoning heads by "
        f"majority; {document['selected_share']:.1%} of heads selected in a mean row."
    )
    print(f"Head sets: {path}")
