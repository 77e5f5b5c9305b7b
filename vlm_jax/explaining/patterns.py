"""How alike two models attend while they read one answer: a checkpoint and its edit, or base LM."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_jax.analysis.rows import RowReader, block_cosines
from vlm_jax.api import VLM
from vlm_jax.batch import Batch
from vlm_jax.errors import ConfigError
from vlm_jax.explaining.base import Analysis, Subject, read_answers
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
        other: folder or name of the model to compare with; "" is the model without its images,
            which stands for the base language model where there is none.
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


@dataclasses.dataclass(frozen=True)
class FoundPatterns:
    """Cosines of heads' patterns.

    Attributes:
        other: what the model was compared with.
        sets: name -> heads.
        cosine_eh: of each answer and head, the heads of all sets in order.
    """

    other: str
    sets: Mapping[str, Sequence[Head]]
    cosine_eh: np.ndarray

    def by_set(self) -> dict[str, np.ndarray]:
        """Returns the cosines of each set, [answers, heads]."""
        ends = np.cumsum([len(heads) for heads in self.sets.values()])[:-1]
        return dict(zip(self.sets, np.split(self.cosine_eh, ends, axis=1)))

    def document(self) -> dict[str, Any]:
        """See `Finding`."""
        return {
            "other": self.other,
            "sets": {
                name: {
                    "heads": [list(head) for head in self.sets[name]],
                    "cosine": values.round(6).tolist(),
                    "mean": float(values.mean()),
                }
                for name, values in self.by_set().items()
            },
        }

    def tables(self) -> list[Table]:
        """See `Finding`."""
        rows = []
        for name, values_eh in self.by_set().items():
            mean_e = values_eh.mean(1)
            spread = f"{mean_e.std(ddof=1):.3f}" if len(mean_e) > 1 else "-"
            ends = f"{values_eh.mean(0).min():.3f} to {values_eh.mean(0).max():.3f}"
            rows.append([name, str(values_eh.shape[1]), f"{mean_e.mean():.3f}", spread, ends])
        headers = ["set", "heads", "cosine", "deviation over answers", "heads from, to"]
        note = (
            "Cosine of the weights that the answer's tokens give one another, both models reading "
            "the same answer; 1 is the same pattern up to the mass that the answer gets."
        )
        return [Table(f"How alike heads attend: against {self.other}", headers, rows, [note])]


def run(subject: Subject, settings: PatternsSettings) -> FoundPatterns:
    """Has the model answer, and both models read the answers.

    Raises:
        ConfigError: there are no head sets, or the other model is of another shape.
    """
    sets = _sets(subject, settings)
    heads = tuple(head for listed in sets.values() for head in listed)
    other = load(settings.other, mesh=subject.model().mesh) if settings.other else None
    shape = shape_of(subject.config)
    if other is not None and shape_of(other.config) != shape:
        raise ConfigError(
            f"{settings.other} has {shape_of(other.config)} layers and heads, but the model has "
            f"{shape}: patterns are compared head by head."
        )
    first = RowReader(subject.config)
    second = first if other is None else RowReader(other.config)
    found = []
    read = read_answers(subject, settings.answers, settings.max_new_tokens)
    for example, answer, batch, _ in read:
        own = _block(first, subject.model(), batch, len(answer.tokens), heads)
        model = other or subject.model()
        images = [list(example.images)] if other is not None else None
        asked = images, [example.prompt], [answer.tokens]
        theirs = model.processor.batch_answers(*asked)[0]
        found.append(block_cosines(own, _block(second, model, theirs, len(answer.tokens), heads)))
    name = settings.other or "itself without images"
    return FoundPatterns(name, sets, np.stack(found))


def _block(
    reader: RowReader, model: VLM, batch: Batch, count: int, heads: Sequence[Head]
) -> np.ndarray:
    """The weights [q, h, q] that the answer's tokens, which come last, give one another."""
    place_q = int(np.asarray(batch.lengths_b)[0]) - count + np.arange(count)
    return reader(model.params, batch, place_q, heads).weights_qhs[..., place_q]


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
