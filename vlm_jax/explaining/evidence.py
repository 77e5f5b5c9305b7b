"""Attention evidence: whether the image is looked at where an answer names what is there."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from vlm_jax.analysis.evidence import area_interval
from vlm_jax.analysis.mentions import naming_tokens, token_spans
from vlm_jax.analysis.rows import KINDS, RowReader
from vlm_jax.errors import ConfigError
from vlm_jax.evals.statistics import Interval
from vlm_jax.evals.suites.chair import Chair
from vlm_jax.explaining.base import Analysis, Finding, Subject, read_answers
from vlm_jax.report.tables import Table
from vlm_jax.settings import setting, whole
from vlm_jax.steering.heads import mask_of, shape_of
from vlm_jax.steering.named import resolve_heads


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvidenceSettings:
    """Settings of the analysis.

    Attributes:
        answers: at most so many of the examples.
        max_new_tokens: of an answer.
        draws, seed: of the resamples over answers behind intervals.
    """

    answers: int = setting(100, whole, low=1, high=1 << 20)
    max_new_tokens: int = setting(128, whole, low=1, high=1 << 20)
    draws: int = setting(2000, whole, low=1, high=100_000)
    seed: int = setting(0, whole, low=0, high=2**32 - 1)


@dataclasses.dataclass(frozen=True, repr=False)
class FoundEvidence(Finding):
    """Object words of answers, and the mass on the image where each was named.

    Attributes:
        words: each as (example, word).
        grounded_m: whether its object is in the image.
        answer_m: which answer it is of.
        image_mln: the mass of each head at the step that chose its first token.
        sets: name -> heads whose mean mass is the evidence, bool [L, N].
        settings: of the analysis.
    """

    words: list[tuple[str, str]]
    grounded_m: np.ndarray
    answer_m: np.ndarray
    image_mln: np.ndarray
    sets: Mapping[str, np.ndarray]
    settings: EvidenceSettings

    def evidence(self) -> dict[str, np.ndarray]:
        """Returns the evidence of each word by each set of heads."""
        return {name: self.image_mln[:, on].mean(1) for name, on in self.sets.items()}

    def areas(self) -> dict[str, Interval]:
        """Returns the area under the ROC curve of each set of heads."""
        options = {"draws": self.settings.draws, "seed": self.settings.seed}
        labels = self.grounded_m, self.answer_m
        return {
            name: area_interval(values_m, *labels, **options)
            for name, values_m in self.evidence().items()
        }

    def document(self) -> dict[str, Any]:
        """See `Finding`."""
        evidence = self.evidence()
        return {
            "areas": {
                name: {"area": _plain(one.value), "low": _plain(one.low), "high": _plain(one.high)}
                for name, one in self.areas().items()
            },
            "sets": {name: np.argwhere(on).tolist() for name, on in self.sets.items()},
            "words": [
                {
                    "id": example,
                    "word": word,
                    "grounded": bool(self.grounded_m[n]),
                    "evidence": {name: round(float(v[n]), 6) for name, v in evidence.items()},
                }
                for n, (example, word) in enumerate(self.words)
            ],
        }

    def tables(self) -> list[Table]:
        """See `Finding`."""
        rows = []
        right, wrong = self.grounded_m, ~self.grounded_m
        evidence = self.evidence()
        for name, one in self.areas().items():
            mean = lambda on, values=evidence[name]: f"{100 * values[on].mean():.1f} %"
            ends = "-" if np.isnan(one.low) else f"[{one.low:.3f}, {one.high:.3f}]"
            shown = [mean(on) if on.any() else "-" for on in (right, wrong)]
            rows.append([name, *shown, f"{one.value:.3f}", ends])
        note = (
            f"{right.sum()} grounded and {wrong.sum()} hallucinated words. The area is the chance "
            "that a grounded word has more mass on the image than a hallucinated one; 0.5 tells "
            "nothing. Intervals resample answers."
        )
        headers = ["heads", "grounded", "hallucinated", "area", "95 % interval"]
        return [Table("Mass on the image where objects are named", headers, rows, [note])]


def run(subject: Subject, settings: EvidenceSettings) -> FoundEvidence:
    """Has the model caption, judges its object words, and reads the steps that named them.

    Raises:
        ConfigError: the examples are of no caption benchmark, or no answer names an object.
    """
    suite = subject.suite
    if not isinstance(suite, Chair):
        raise ConfigError(
            "evidence needs a benchmark of captions, whose object words it judges; give one in "
            "config.benchmarks, such as {'captions': {'kind': 'testbed_chair'}}."
        )
    reader = RowReader(subject.config)
    words, grounded, owners, masses = [], [], [], []
    read = read_answers(subject, settings.answers, settings.max_new_tokens)
    for number, (example, answer, batch, query_q) in enumerate(read):
        model = subject.model()
        mentions = suite.scorer.score(example.id, answer.text).mentions
        spans = token_spans(model.processor.tokenizer, answer.tokens, answer.text)
        named = [one for one in naming_tokens(mentions, spans) if one.first]
        if not named:
            continue
        chosen = np.array([query_q[one.index] for one in named])
        image = reader(model.params, batch, chosen).masses_qlnc[..., KINDS.index("image")]
        for one in named:
            start, end = spans[one.index]
            words.append((str(example.id), answer.text[start:end].strip()))
        grounded += [not one.hallucinated for one in named]
        owners += [number] * len(named)
        masses.append(image)
    if not words:
        raise ConfigError("no answer names an object of the benchmark, so there is no evidence.")
    return FoundEvidence(
        words,
        np.array(grounded),
        np.array(owners),
        np.concatenate(masses),
        _sets(subject),
        settings,
    )


def _sets(subject: Subject) -> dict[str, np.ndarray]:
    shape = shape_of(subject.config)
    found = {"all heads": np.ones(shape, bool)}
    if subject.heads:
        sets = resolve_heads(subject.heads, subject.config)
        for name in ("sensitive", "insensitive"):
            heads = getattr(sets, name)[: sets.count]
            found |= {f"{name} heads": mask_of(heads, shape)} if heads else {}
    return found


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


ANALYSIS = Analysis(
    "Mass on the image where objects are named, and how well it tells grounded words (AUC).",
    EvidenceSettings,
    run,
    asks=True,
)
