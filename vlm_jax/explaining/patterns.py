"""How alike two models attend while they read one answer: a checkpoint and its edit, or base LM."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_jax.analysis.rows import RowReader, block_cosines, block_divergences
from vlm_jax.api import VLM
from vlm_jax.base_model import is_language_model, with_language_model
from vlm_jax.batch import Batch
from vlm_jax.errors import ConfigError
from vlm_jax.explaining.base import Analysis, Finding, Subject, read_answers
from vlm_jax.loading import load
from vlm_jax.report.tables import Table
from vlm_jax.settings import setting, text, whole
from vlm_jax.steering.controls import random_heads
from vlm_jax.steering.heads import Head, shape_of
from vlm_jax.steering.named import resolve_heads


@dataclasses.dataclass(frozen=True, kw_only=True)
class PatternsSettings:
    """Settings of the analysis.

    Attributes:
        other: folder or name of the model to compare with; or folder of the language model that it
            was made of, which reads prompts without their images; "" is the model itself without
            its images, which stands for its language model where that is not at hand.
        answers: at most so many of the examples.
        max_new_tokens: of an answer.
        count: heads of each set.
        seed: of the random heads.
    """

    other: str = setting("", text)
    answers: int = setting(16, whole, low=1, high=1 << 20)
    max_new_tokens: int = setting(64, whole, low=1, high=1 << 20)
    count: int = setting(8, whole, low=1, high=1 << 12)
    seed: int = setting(0, whole, low=0, high=2**32 - 1)


@dataclasses.dataclass(frozen=True, repr=False)
class FoundPatterns(Finding):
    """How alike heads' patterns are.

    Attributes:
        other: what the model was compared with.
        sets: name -> heads.
        cosine_eh: of each answer and head, the heads of all sets in order: how alike the weights
            are that the answer's tokens give one another.
        divergence_eh: how far whole rows of the answer's tokens are apart, in nats; of the weights
            that they give one another alone where the models read different prompts.
    """

    other: str
    sets: Mapping[str, Sequence[Head]]
    cosine_eh: np.ndarray
    divergence_eh: np.ndarray

    def by_set(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Returns cosines and divergences of each set, [answers, heads]."""
        ends = np.cumsum([len(heads) for heads in self.sets.values()])[:-1]
        split = [np.split(a, ends, axis=1) for a in (self.cosine_eh, self.divergence_eh)]
        return dict(zip(self.sets, zip(*split)))

    def document(self) -> dict[str, Any]:
        """See `Finding`."""
        return {
            "other": self.other,
            "sets": {
                name: {
                    "heads": [list(head) for head in self.sets[name]],
                    "cosine": cosine.round(6).tolist(),
                    "divergence": divergence.round(6).tolist(),
                    "mean": float(cosine.mean()),
                    "mean_divergence": float(divergence.mean()),
                }
                for name, (cosine, divergence) in self.by_set().items()
            },
        }

    def tables(self) -> list[Table]:
        """See `Finding`."""
        rows = []
        spread = lambda mean_e: f"{mean_e.std(ddof=1):.3f}" if len(mean_e) > 1 else "-"
        for name, (cosine_eh, divergence_eh) in self.by_set().items():
            ends = f"{cosine_eh.mean(0).min():.3f} to {cosine_eh.mean(0).max():.3f}"
            rows.append([name, str(cosine_eh.shape[1])])
            rows[-1] += [f"{cosine_eh.mean():.3f}", spread(cosine_eh.mean(1)), ends]
            rows[-1] += [f"{divergence_eh.mean():.4f}", spread(divergence_eh.mean(1))]
        headers = ["set", "heads", "cosine", "deviation over answers", "heads from, to"]
        headers += ["JSD", "deviation over answers"]
        notes = [
            "Cosine of the weights that the answer's tokens give one another, both models reading "
            "the same answer; 1 is the same pattern up to the mass that the answer gets.",
            "JSD: Jensen-Shannon divergence of the rows of these tokens in nats, 0 to 0.693; of "
            "whole rows where both models read the same prompt.",
        ]
        return [Table(f"How alike heads attend: against {self.other}", headers, rows, notes)]


def run(subject: Subject, settings: PatternsSettings) -> FoundPatterns:
    """Has the model answer, and both models read the answers.

    Raises:
        ConfigError: there are no head sets, or the other model is of another shape.
    """
    sets = _sets(subject, settings)
    heads = tuple(head for listed in sets.values() for head in listed)
    other, sees = _other(subject, settings.other)
    shape = shape_of(subject.config)
    if shape_of(other.config) != shape:
        raise ConfigError(
            f"{settings.other} has {shape_of(other.config)} layers and heads, but the model has "
            f"{shape}: patterns are compared head by head."
        )
    first = RowReader(subject.config)
    second = RowReader(other.config) if sees else first
    cosines, divergences = [], []
    read = read_answers(subject, settings.answers, settings.max_new_tokens)
    for example, answer, batch, _ in read:
        count = len(answer.tokens)
        own, own_block = _rows(first, subject.model(), batch, count, heads)
        asked = [list(example.images)] if sees else None, [example.prompt], [answer.tokens]
        theirs = other.processor.batch_answers(*asked)[0]
        rows, block = _rows(second, other, theirs, count, heads)
        same = sees and rows.shape == own.shape
        cosines.append(block_cosines(own_block, block))
        divergences.append(block_divergences(*((own, rows) if same else (own_block, block))))
    name = settings.other or "itself without images"
    return FoundPatterns(name, sets, np.stack(cosines), np.stack(divergences))


def _other(subject: Subject, name: str) -> tuple[VLM, bool]:
    """The model to compare with, and whether it sees the images."""
    if not name:
        return subject.model(), False
    if is_language_model(pathlib.Path(name)):
        return with_language_model(subject.model(), pathlib.Path(name)), False
    return load(name, mesh=subject.model().mesh), True


def _rows(
    reader: RowReader, model: VLM, batch: Batch, count: int, heads: Sequence[Head]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows [q, h, S] of the answer's tokens, which come last, and what they give one another."""
    length = int(np.asarray(batch.lengths_b)[0])
    place_q = length - count + np.arange(count)
    rows_qhs = reader(model.params, batch, place_q, heads).weights_qhs[..., :length]
    return rows_qhs, rows_qhs[..., place_q]


def _sets(subject: Subject, settings: PatternsSettings) -> dict[str, tuple[Head, ...]]:
    if not subject.heads:
        raise ConfigError("patterns compares sets of heads; make a heads.json with --job=identify.")
    sets = resolve_heads(subject.heads, subject.config)
    sensitive = tuple(sets.sensitive[: settings.count])
    found = {
        "sensitive": sensitive,
        "insensitive": tuple(sets.insensitive[: settings.count]),
        "random, of the same layers": random_heads(sensitive, sets.shape, settings.seed),
    }
    return {name: heads for name, heads in found.items() if heads}


ANALYSIS = Analysis(
    "How alike two models' heads attend: an edited checkpoint, a base LM, or no image.",
    PatternsSettings,
    run,
    asks=True,
)
