"""Finds the heads that favour hallucinated words, and those that look at images or do not.

The model captions a benchmark; the words of its captions that name objects are judged; every head
is zeroed where such a word is predicted, and heads are ranked by how much more that costs the
hallucinated words than the grounded ones. Readings of the same captions say which heads are
perception and reasoning heads, and which are attention sinks.

As a control, `mean_ablation` puts every head's mean in its place where zero stood: the mean of what
it gives at the rows that predict all measured tokens, hallucinated and grounded ones alike. That
needs all captions, so it is a second round over the chunks of the first.

With `config.identify.pairs` it finds vectors of the residual stream in place of heads, see
`vlm_jax.study.vectors`.
"""

import dataclasses
import io
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vlm_jax import checkpoint
from vlm_jax.analysis.ablation import SCOPES, HeadAblation, Places
from vlm_jax.analysis.directions import HOW
from vlm_jax.analysis.findings import describe, show
from vlm_jax.analysis.mentions import matching_tokens, naming_tokens, token_spans
from vlm_jax.api import VLM, Answer
from vlm_jax.attention.steering import Readings
from vlm_jax.batch import Batch
from vlm_jax.errors import ConfigError
from vlm_jax.evals.base import Example
from vlm_jax.evals.results import protocol_hash, write_json
from vlm_jax.evals.runner import FailureGuard, why_not
from vlm_jax.evals.suites import read_benchmark
from vlm_jax.evals.suites.chair import Chair
from vlm_jax.files import replace_file
from vlm_jax.progress import Progress
from vlm_jax.settings import listed, number, one_of, read, setting, switch, text, whole
from vlm_jax.steering.classes import Classes, classifier, read_classes
from vlm_jax.steering.heads import shape_of
from vlm_jax.study.chunks import Chunks
from vlm_jax.study.fingerprint import HEADS, fingerprint
from vlm_jax.study.request import Request
from vlm_jax.study.runtime import generation_settings, load_model, provenance
from vlm_jax.study.vectors import find_vectors, read_pairs

VECTORS = "vectors.npy"
_CAPTIONS = ("hallucinated", "all")
_SUBTOKENS = ("first", "all")
_LABELS = ("offsets", "string_match")
_CHUNKS = 2  # the form of their files


def _thresholds(name: str, value: Any) -> dict[str, Any]:
    found = dict(value or {})
    for key, one in found.items():
        number(f"{name}.{key}", one)
    return found


@dataclasses.dataclass(frozen=True)
class IdentifySettings:
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
        mean_ablation: whether heads are ablated to their mean too, for comparison with zero; needs
            scope "row".
        classes: settings of functional heads by which readings are classified.
        pairs: file of pairs of answers, to find vectors in place of heads.
        vectors: how, by the "mean" of the differences or by their first "component".
    """

    scopes: tuple[str, ...] = setting(SCOPES, listed, each=one_of, known=SCOPES, least=1)
    count: int = setting(20, whole, low=1)
    captions: str = setting("hallucinated", one_of, known=_CAPTIONS)
    subtokens: str = setting("first", one_of, known=_SUBTOKENS)
    labels: str = setting("offsets", one_of, known=_LABELS)
    chunk: int = setting(32, whole, low=1, high=1 << 20)
    rows: int = setting(64, whole, low=1, high=1 << 20)
    mean_ablation: bool = setting(False, switch)
    classes: Mapping[str, Any] = setting({}, _thresholds)
    pairs: str = setting("", text)
    vectors: str = setting("mean", one_of, known=HOW)


def run(request: Request) -> None:
    """Writes `heads.json` to `--workdir`; chunks of a killed run are kept and not made again.

    With `config.identify.pairs` it writes `vectors.npy`.

    Raises:
        ConfigError: `config.contributions` is set, which the job explain reads.
    """
    if request.config.get("contributions"):
        raise ConfigError("config.contributions is of another job: say --job=explain.")
    config, workdir = request.config, request.need("workdir")
    source = checkpoint.open_folder(request.need("source"))
    settings = read_settings(config.get("identify", {}), shape_of(source.config))
    if settings.pairs:
        _find_vectors(request, source, settings)
        return
    classes = read_classes(source.config, **settings.classes)
    benchmark = _caption_benchmark(config.benchmarks, source.config.family)
    identity = {
        "source": fingerprint(source),
        "identify": dataclasses.asdict(settings),
        "chunks": _CHUNKS,
        "protocol": protocol_hash(benchmark.protocol()),
        **{key: config[key] for key in ("max_new_tokens", "dtype", "seed")},
    }
    chunks = Chunks(workdir / "chunks", identity)
    means = Chunks(workdir / "chunks", identity, "mean") if settings.mean_ablation else None
    numbers = _measure(request, source, settings, classes, benchmark, chunks, means)
    found = chunks.join(numbers)
    failures = {**benchmark.malformed, **_failures(found)}
    if means is not None:
        found |= means.join(numbers)
    document = describe(found, settings.scopes, settings.count, shape_of(source.config))
    document |= {"benchmark": benchmark.name, "source": source.path.name, "identity": identity}
    document |= provenance(config)
    document["failures"] = failures
    write_json(workdir / HEADS, document)
    show(document)
    for identifier, reason in failures.items():
        print(f"left out: {identifier}: {reason}")
    print(f"Head sets: {workdir / HEADS}")


def _measure(
    request: Request,
    source: Any,
    settings: IdentifySettings,
    classes: Classes,
    benchmark: Chair,
    chunks: Chunks,
    means: Chunks | None,
) -> range:
    """Makes the chunks that are missing; returns the numbers of all.

    Args:
        request: of the job.
        source: its model folder.
        settings, classes, benchmark: what is measured.
        chunks: captions, readings and drops.
        means: drops of the second round, None without `mean_ablation`.

    Raises:
        UserError: more examples fail than `config.max_failures`.
    """
    examples = list(benchmark.examples())
    parts = [examples[at : at + settings.chunk] for at in range(0, len(examples), settings.chunk)]
    numbers = range(len(parts))
    missing = lambda kept: [] if kept is None else [n for n in numbers if not kept.has(n)]
    todo, todo_means = missing(chunks), missing(means)
    guard = FailureGuard.of(request.config.max_failures, len(examples), benchmark.malformed)
    for done in sorted(set(numbers) - set(todo)):
        guard.add(_failures(chunks.read(done)))
    if not todo and not todo_means:
        return numbers
    model = load_model(request, source)
    ablation = HeadAblation(model.config, settings.rows)
    asked = generation_settings(request.config, model, examples)
    captioner = {"settings": asked, "steering": classifier(classes)}
    work = lambda n: _Chunk(model, benchmark, ablation, settings, parts[n], n * settings.chunk)

    def measure(number: int) -> dict[str, np.ndarray]:
        found = work(number).measure(captioner)
        guard.add(_failures(found))
        return found

    _run_round(chunks, todo, parts, measure)
    if means is not None:
        mean_lnh = _mean_outputs([chunks.read(number) for number in numbers])
        again = lambda n: work(n).measure_means(chunks.read(n), mean_lnh)
        _run_round(means, todo_means, parts, again)
    return numbers


def _find_vectors(request: Request, source: Any, settings: IdentifySettings) -> None:
    path, workdir = pathlib.Path(settings.pairs), request.need("workdir")
    pairs = read_pairs(path)
    vectors_ld = find_vectors(
        load_model(request, source), pairs, settings.vectors, path.resolve().parent
    )
    content = io.BytesIO()
    np.save(content, vectors_ld)
    workdir.mkdir(parents=True, exist_ok=True)
    replace_file(workdir / VECTORS, content.getvalue())
    print(f"Vectors of {len(pairs)} pairs: {workdir / VECTORS}")


def _failures(found: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Id of an example that could not be read -> why, of a chunk or of several."""
    return dict(zip(found["failed"].tolist(), found["reason"].tolist()))


def _run_round(
    chunks: Chunks,
    todo: Sequence[int],
    parts: Sequence[Sequence[Example]],
    measure: Callable[[int], Mapping[str, np.ndarray]],
) -> None:
    """Measures the chunks that are missing, each written when it is done."""
    label = f"identify {chunks.kind}".strip()
    with Progress(sum(len(parts[number]) for number in todo), "captions", label=label) as progress:
        for number in todo:
            chunks.write(number, measure(number))
            progress.advance(len(parts[number]))


def read_settings(section: Mapping[str, Any], shape: tuple[int, int]) -> IdentifySettings:
    """Returns the settings that a config section describes.

    Raises:
        ConfigError: a key is unknown or a value cannot be.
    """
    settings = read(IdentifySettings, section, "config.identify")
    if settings.mean_ablation and "row" not in settings.scopes:
        raise ConfigError(
            "config.identify.mean_ablation is compared with zero ablation in scope 'row', which "
            "config.identify.scopes does not name; add it."
        )
    whole("config.identify.count", settings.count, 1, shape[0] * shape[1] // 2)
    return settings


def _caption_benchmark(sections: Mapping[str, Any], family: str) -> Chair:
    if len(sections) != 1:
        raise ConfigError(
            "identify needs exactly one benchmark of captions, but config.benchmarks has "
            f"{', '.join(sections) or 'none'}; take --config=identify, or --config=chair_identify "
            "for images of your own, as they are."
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
    settings: IdentifySettings
    examples: Sequence[Example]
    offset: int

    def measure(self, captioner: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Returns arrays by name: readings of the captions and drops of their naming tokens.

        `failed` and `reason` say which examples could not be read; they are left out of the others.
        """
        images = [list(example.images) for example in self.examples]
        prompts = [example.prompt for example in self.examples]
        made = list(self.model.answer(images, prompts, on_error="yield", **captioner))
        made.sort(key=lambda one: one.index)
        answers = [one for one in made if isinstance(one, Answer)]
        why = {str(self.examples[one.index].id): why_not(one) for one in made}
        failed = {name: reason for name, reason in why.items() if reason is not None}
        found = self._without(failed)._measured(answers)
        texts = lambda values: np.array(list(values), "U")
        return {**found, "failed": texts(failed), "reason": texts(failed.values())}

    def _without(self, failed: Collection[Any]) -> "_Chunk":
        """The chunk without some examples, by id."""
        left = [example for example in self.examples if str(example.id) not in failed]
        return dataclasses.replace(self, examples=left)

    def _measured(self, answers: Sequence[Answer]) -> dict[str, np.ndarray]:
        """What `measure` returns of examples that were all answered."""
        rows = list(self._tokens(answers))
        token_m4 = np.asarray(rows, np.int32).reshape(-1, 4)
        fields = [field.name for field in dataclasses.fields(Readings)]
        readings = {
            name: np.array([np.asarray(getattr(a.readings, name)) for a in answers])
            if answers
            else self._nothing
            for name in fields
        }
        found = {"sample": self.offset + token_m4[:, 0], "hallucinated": token_m4[:, 3] > 0}
        if self.settings.mean_ablation:
            found |= self._said(answers, token_m4)
        if not len(token_m4):
            names = [f"{k}_{scope}" for scope in self.settings.scopes for k in ("drop", "slope")]
            return {**readings, **found, **dict.fromkeys(names, self._nothing)}
        batch, places = self._asked([answer.tokens for answer in answers], token_m4[:, :3])
        for scope in self.settings.scopes:
            here = self.model.params, batch, places, scope
            found[f"drop_{scope}"] = self.ablation.drops(*here)
            found[f"slope_{scope}"] = self.ablation.first_order(*here)
        if self.settings.mean_ablation:
            outputs = self.ablation.outputs(self.model.params, batch, places)
            found["output_sum"] = outputs.sum(0, dtype=np.float64)[None]
        return {**readings, **found}

    def measure_means(
        self, first: Mapping[str, np.ndarray], mean_lnh: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Returns drops of the same tokens where each head becomes its mean.

        Args:
            first: what `measure` found.
            mean_lnh: each head's mean output, [L, N, H].
        """
        if not len(first["sample"]):
            return {"drop_mean": self._nothing}
        tokens = _apart(first["tokens"], first["lengths"])
        sample_m = first["sample"] - self.offset
        token_m3 = np.stack([sample_m, first["index"], first["target"]], axis=1)
        batch, places = self._without(_failures(first))._asked(tokens, token_m3)
        drops = self.ablation.drops(self.model.params, batch, places, "row", mean_lnh)
        return {"drop_mean": drops}

    @property
    def _nothing(self) -> np.ndarray:
        """The drops of no token."""
        return np.zeros((0, *self.ablation.shape), np.float32)

    def _said(self, answers: Sequence[Answer], token_m4: np.ndarray) -> dict[str, np.ndarray]:
        """What a second round needs of the captions, and no head's output yet."""
        tokens = [token for answer in answers for token in answer.tokens]
        width = self.model.config.decoder.row_dim
        return {
            "index": token_m4[:, 1],
            "target": token_m4[:, 2],
            "tokens": np.array(tokens, np.int32),
            "lengths": np.array([len(answer.tokens) for answer in answers], np.int32),
            "output_sum": np.zeros((1, *self.ablation.shape, width)),
        }

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

    def _asked(
        self, answers: Sequence[Sequence[int]], token_m3: np.ndarray
    ) -> tuple[Batch, Places]:
        """The captions after their prompts, and where (sample, index, id) tokens are in them.

        Always as many rows, so that few programs compile.
        """
        rows = [min(i, len(answers) - 1) for i in range(self.settings.chunk)]
        batch, starts = self.model.processor.batch_answers(
            [list(self.examples[i].images) for i in rows],
            [self.examples[i].prompt for i in rows],
            [answers[i] for i in rows],
            first_sample=self.offset,
        )
        sample_m, index_m, target_m = token_m3.T
        return batch, Places(sample_m, starts[sample_m] + index_m - 1, target_m)


def _apart(tokens: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    """Returns captions that lie one behind the other as a list each."""
    return [row.tolist() for row in np.split(tokens, np.cumsum(lengths)[:-1])]


def _mean_outputs(chunks: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
    """Each head's mean output over the rows that predict all measured tokens, float32 [L, N, H]."""
    total = np.sum([chunk["output_sum"][0] for chunk in chunks], axis=0)
    count = sum(len(chunk["sample"]) for chunk in chunks)
    return (total / max(count, 1)).astype(np.float32)
