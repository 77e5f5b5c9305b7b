"""Where heads look while an answer is written: masses, imbalance, entropy and row variance."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_jax.analysis.ablation import Places
from vlm_jax.analysis.effects import spearman
from vlm_jax.analysis.erasure import TokenErasure
from vlm_jax.analysis.rows import (
    KINDS,
    AttentionRows,
    RowReader,
    dominance,
    imbalance,
    leaned_on,
)
from vlm_jax.errors import ConfigError
from vlm_jax.explaining.base import Analysis, Finding, Subject, read_answers
from vlm_jax.report.tables import Table
from vlm_jax.settings import listed, one_of, setting, whole
from vlm_jax.steering.heads import Head, HeadSets, check_heads, mask_of, shape_of
from vlm_jax.steering.named import IDENTIFIED, resolve_heads
from vlm_jax.study.looking import token_regions

CONTRIBUTIONS = {
    "value": "||W_O v|| of the token, what a unit of attention there adds",
    "uniform": "the same for every token",
    "erasure": "by how much the answer's log-probabilities change where no row sees it, so that a "
    "token which changes nothing has a TAI without bound",
}
_TOP = 8  # tokens of a table


@dataclasses.dataclass(frozen=True, kw_only=True)
class MassesSettings:
    """Settings of the analysis.

    Attributes:
        answers: at most so many of the examples.
        max_new_tokens: of an answer.
        heads: whose rows are looked at one by one, for the imbalance of tokens and for maps; a head
            set's sensitive heads, or (layer, head) pairs; () is none.
        count: how many of a set.
        contribution: a word of `CONTRIBUTIONS`, the information that the imbalance compares with.
            No open source defines it. "erasure" reads the sequence once more for each of its
            tokens.
        maps: steps of an answer whose rows of these heads are kept whole, beside what part of the
            picture each image token covers; () keeps none.
    """

    answers: int = setting(16, whole, low=1, high=1 << 20)
    max_new_tokens: int = setting(64, whole, low=1, high=1 << 20)
    heads: Any = ()
    count: int = setting(4, whole, low=1, high=1 << 12)
    contribution: str = setting("value", one_of, known=CONTRIBUTIONS)
    maps: tuple[int, ...] = setting((), listed, each=whole, low=0)


@dataclasses.dataclass(frozen=True)
class ReadAnswer:
    """One answer, read again.

    Attributes:
        name: of the example.
        prompt: what was asked.
        pieces: every place of the sequence as text, the prompt's first.
        tokens: how many of them are the answer.
        rows: of the steps that chose the answer's tokens.
        imbalance_hs: of the heads that were asked for, see `analysis.rows.imbalance`.
        regions: place of an image token -> its box, see `study.looking.token_regions`.
    """

    name: str
    prompt: str
    pieces: Sequence[str]
    tokens: int
    rows: AttentionRows
    imbalance_hs: np.ndarray
    regions: Mapping[int, Sequence[float]] | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class FoundMasses(Finding):
    """What heads looked at.

    Attributes:
        answers: one an example.
        heads: whose rows were looked at one by one.
        sets: heads of the model that are known to be sensitive or not; None if nothing is known.
        settings: of the analysis.
    """

    answers: Sequence[ReadAnswer]
    heads: Sequence[Head]
    sets: HeadSets | None
    settings: MassesSettings

    @property
    def masses_qlnc(self) -> np.ndarray:
        """Of the rows of all answers."""
        return np.concatenate([one.rows.masses_qlnc for one in self.answers])

    @property
    def order(self) -> float:
        """Rank correlation of entropy and row variance over all rows and heads."""
        entropy, variance = (
            np.concatenate([getattr(one.rows, name).ravel() for one in self.answers])
            for name in ("entropy_qln", "variance_qln")
        )
        return spearman(entropy, variance)

    def document(self) -> dict[str, Any]:
        """See `Finding`."""
        return {
            "heads": [list(head) for head in self.heads],
            "contribution": self.settings.contribution,
            "mai": _finite(dominance(self.masses_qlnc)),
            "entropy_variance_rank_correlation": self.order,
            "answers": [self._of(one) for one in self.answers],
        }

    def _of(self, one: ReadAnswer) -> dict[str, Any]:
        rows = one.rows
        masses = {n: rows.masses_qlnc[..., i].round(5).tolist() for i, n in enumerate(KINDS)}
        steps = [step for step in self.settings.maps if step < one.tokens]
        return {
            "id": one.name,
            "prompt": one.prompt,
            "tokens": list(one.pieces[-one.tokens :]),
            "sequence": list(one.pieces),
            "masses": masses,
            "mai": _finite(dominance(rows.masses_qlnc)),
            "entropy": rows.entropy_qln.round(5).tolist(),
            "variance": [[[float(f"{v:.6g}") for v in n] for n in ln] for ln in rows.variance_qln],
            "tai": _finite(one.imbalance_hs),
            "maps": {str(step): rows.weights_qhs[step].round(6).tolist() for step in steps},
            "regions": None if one.regions is None else _boxes(one.regions),
        }

    def tables(self) -> list[Table]:
        """See `Finding`."""
        return [self._by_layer(), *([self._by_token()] if self.heads else [])]

    def _by_layer(self) -> Table:
        masses_qlnc = self.masses_qlnc
        layers, width = masses_qlnc.shape[1:3]
        all_of = lambda layer: mask_of([(layer, head) for head in range(width)], (layers, width))
        masks = {f"layer {layer}": all_of(layer) for layer in range(layers)}
        for name in ("sensitive", "insensitive"):
            named = getattr(self.sets, name, ())[: getattr(self.sets, "count", None)]
            if named:
                masks[f"{name} heads"] = mask_of(named, (layers, width))
        entropy, variance = (
            np.concatenate([getattr(one.rows, name) for one in self.answers])
            for name in ("entropy_qln", "variance_qln")
        )
        rows = []
        for name, on_ln in masks.items():
            mean_c = masses_qlnc[:, on_ln].mean((0, 1))
            ratio = mean_c[KINDS.index("text")] / max(mean_c[KINDS.index("image")], 1e-12)
            cells = [f"{100 * mass:.1f} %" for mass in mean_c]
            cells += [f"{ratio:.3g}" if mean_c[KINDS.index("image")] else "-"]
            cells += [f"{entropy[:, on_ln].mean():.3g}", f"{variance[:, on_ln].mean():.3g}"]
            rows.append([name, *cells])
        return Table(
            "Where heads look while they write, means over steps",
            ["heads", *KINDS, "text / image", "entropy", "row variance"],
            rows,
            [
                "text is what stands behind the image, the answer so far included; system is what "
                "stands before it. Their ratio is MAI.",
                f"Entropy and row variance fall in opposite order only by tendency: their rank "
                f"correlation is {self.order:.2f} here.",
            ],
        )

    def _by_token(self) -> Table:
        rows = []
        for one in self.answers:
            mean_s = one.imbalance_hs[:, :-1].mean(0)  # no step saw the last token
            order = np.argsort(-mean_s)[:_TOP]
            rows += [
                [f"{one.name}: {one.pieces[place]!r}", str(place), f"{mean_s[place]:.3g}"]
                for place in order
            ]
        about = CONTRIBUTIONS[self.settings.contribution]
        return Table(
            "Tokens that draw more attention than they give information (TAI)",
            ["token", "place", "TAI"],
            rows,
            [
                f"Mean over {len(self.heads)} heads. Information of a token: {about}; the paper "
                "does not define it."
            ],
        )


def run(subject: Subject, settings: MassesSettings) -> FoundMasses:
    """Has the model answer, and reads its answers again.

    Raises:
        ConfigError: heads are named that are not there, or the model is steered.
        PromptError: an answer is empty, or an example cannot be read.
    """
    sets = resolve_heads(subject.heads, subject.config) if subject.heads else None
    heads = _heads(subject, settings, sets)
    if settings.maps and not heads:
        raise ConfigError("maps keeps rows of the heads that are named; name some by heads.")
    reader = RowReader(subject.config)
    erases = settings.contribution == "erasure" and heads
    erasure = TokenErasure(subject.config) if erases else None
    found = []
    read = read_answers(subject, settings.answers, settings.max_new_tokens)
    for example, answer, batch, query_q in read:
        model = subject.model()
        rows = reader(model.params, batch, query_q, heads)
        length = int(np.asarray(batch.lengths_b)[0])
        ids = np.asarray(batch.tokens_bt)[0, :length].tolist()
        rows = dataclasses.replace(
            rows,
            weights_qhs=rows.weights_qhs[..., :length],
            value_norms_hs=rows.value_norms_hs[..., :length],
        )
        information = rows.value_norms_hs
        if settings.contribution == "uniform":
            information = np.ones(information.shape)
        elif erasure is not None:
            targets = np.asarray(answer.tokens, np.int32)
            places = Places(np.zeros_like(targets), query_q.astype(np.int32), targets)
            information = leaned_on(erasure(model.params, batch, places), query_q)
            information = np.broadcast_to(information, rows.value_norms_hs.shape)
        found.append(
            ReadAnswer(
                str(example.id),
                example.prompt,
                [model.processor.tokenizer.decode([token]) for token in ids],
                len(answer.tokens),
                rows,
                imbalance(rows.weights_qhs, information, query_q),
                token_regions(model.processor, example.images, batch) if settings.maps else None,
            )
        )
    return FoundMasses(found, heads, sets, settings)


def _heads(subject: Subject, settings: MassesSettings, sets: HeadSets | None) -> tuple[Head, ...]:
    given = settings.heads
    if isinstance(given, tuple | list) and len(given) == 1 and isinstance(given[0], str):
        (given,) = given  # as `heads=identified` on the command line is read
    if isinstance(given, str) and given:
        named = sets if given == IDENTIFIED else resolve_heads(given, subject.config)
        if named is None:
            raise ConfigError(
                f"heads={IDENTIFIED!r} needs the model's heads.json; make it with --job=identify, "
                "or list (layer, head) pairs."
            )
        return tuple(named.sensitive[: settings.count])
    return check_heads("heads", given or (), shape_of(subject.config))


def _boxes(regions: Mapping[int, Sequence[float]]) -> dict[str, Any]:
    return {str(place): _finite(np.asarray(box)) for place, box in regions.items()}


def _finite(values: np.ndarray) -> Any:
    """JSON numbers of few digits; null for what is none."""
    if np.ndim(values):
        return [_finite(value) for value in values]
    return float(f"{float(values):.6g}") if np.isfinite(values) else None


ANALYSIS = Analysis(
    "Masses on image, text and system prompt of every step and head; MAI, TAI, entropy.",
    MassesSettings,
    run,
    asks=True,
)
