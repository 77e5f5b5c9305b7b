"""Minimal editing: what answers take from sets of heads, and what policies A to D should do."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from vlm_jax.analysis.ablation import SCOPES, HeadAblation, Places
from vlm_jax.analysis.contribution import Contributions, contributions
from vlm_jax.analysis.editing import Utilities
from vlm_jax.analysis.effects import spearman
from vlm_jax.errors import ConfigError
from vlm_jax.evals.statistics import Interval, percentile_interval
from vlm_jax.explaining.base import Analysis, Finding, Subject, read_answers
from vlm_jax.report.tables import Table
from vlm_jax.settings import number, one_of, setting, switch, whole
from vlm_jax.steering.heads import HeadSets, mask_of
from vlm_jax.steering.methods.policy import POLICIES
from vlm_jax.steering.named import resolve_heads

_SETS = {"classes": ("perception", "reasoning"), "sensitivity": ("insensitive", "sensitive")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditingSettings:
    """Settings of the analysis.

    Attributes:
        answers: at most so many of the examples.
        max_new_tokens: of an answer.
        sets: which heads are enhanced and which attenuated: "classes", perception and reasoning
            heads; or "sensitivity", those that favour grounded words and those that favour
            hallucinated ones.
        alpha, beta: their gains.
        scope: gates at the "row" that predicts a token, or at "all" rows as the paper has it.
        ablate: whether heads are zeroed too, to compare first order with the truth.
        rows: tokens in a batch.
        draws, seed: of the resamples over answers behind intervals.
    """

    answers: int = setting(16, whole, low=1, high=1 << 20)
    max_new_tokens: int = setting(64, whole, low=1, high=1 << 20)
    sets: str = setting("sensitivity", one_of, known=_SETS)
    alpha: float = setting(1.2, number, low=1, high=100)
    beta: float = setting(0.8, number, low=0, high=1)
    scope: str = setting("row", one_of, known=SCOPES)
    ablate: bool = setting(True, switch)
    rows: int = setting(8, whole, low=1, high=1 << 20)
    draws: int = setting(2000, whole, low=1, high=100_000)
    seed: int = setting(0, whole, low=0, high=2**32 - 1)


@dataclasses.dataclass(frozen=True, repr=False)
class FoundEditing(Finding):
    """Utilities of sets and changes by policies.

    Attributes:
        maps: contributions of heads to the tokens of all answers.
        answer_m: which answer each token is of.
        drops_mln: by how much each token's probability falls without each head; None: not asked.
        masks: "enhanced", "attenuated" and "unlisted" heads, bool [L, N].
        names: what the first two are.
        settings: of the analysis.
    """

    maps: Contributions
    answer_m: np.ndarray
    drops_mln: np.ndarray | None
    masks: Mapping[str, np.ndarray]
    names: tuple[str, str]
    settings: EditingSettings

    @property
    def utilities(self) -> Utilities:
        """What tokens take from heads."""
        return Utilities(-self.maps.signed_mln)

    def values(self) -> dict[str, np.ndarray]:
        """Returns U of each set and Delta of each policy, a token each."""
        sets = self.masks["enhanced"], self.masks["attenuated"]
        changes = self.utilities.changes(*sets, self.settings.alpha, self.settings.beta)
        found = {f"U({name})": self.utilities.of(mask) for name, mask in self.masks.items()}
        return found | {f"Delta_{policy}": values for policy, values in changes.items()}

    def interval(self, values_m: np.ndarray) -> Interval:
        """Returns the mean over tokens, with an interval over answers."""
        answers = np.unique(self.answer_m)
        sums = np.array([values_m[self.answer_m == one].sum() for one in answers])
        counts = np.array([(self.answer_m == one).sum() for one in answers])
        rng = np.random.default_rng(self.settings.seed)
        drawn = rng.integers(len(answers), size=(self.settings.draws, len(answers)))
        samples = sums[drawn].sum(1) / counts[drawn].sum(1)
        return percentile_interval(values_m.mean(), samples if len(answers) > 1 else samples[:0])

    @property
    def agreement(self) -> float | None:
        """Rank correlation over heads of mean I = |S| and the mean |drop| when they are zeroed."""
        if self.drops_mln is None:
            return None
        return spearman(self.maps.absolute_ln, np.abs(self.drops_mln).mean(0))

    def document(self) -> dict[str, Any]:
        """See `Finding`."""
        intervals = {name: self.interval(values) for name, values in self.values().items()}
        return {
            "sets": {name: np.argwhere(mask).tolist() for name, mask in self.masks.items()},
            "enhanced": self.names[0],
            "attenuated": self.names[1],
            "alpha": self.settings.alpha,
            "beta": self.settings.beta,
            "scope": self.settings.scope,
            "quantities": {
                name: {"mean": one.value, "low": _plain(one.low), "high": _plain(one.high)}
                for name, one in intervals.items()
            },
            "signed": self.maps.signed_ln.tolist(),
            "absolute": self.maps.absolute_ln.tolist(),
            "share_of_layer": self.maps.by_layer().tolist(),
            "share_of_all": self.maps.overall().tolist(),
            "ranking": [list(head) for head in self.maps.ranking()],
            "absolute_of_mean": np.abs(self.maps.signed_ln).tolist(),
            "rank_correlation_with_ablation": self.agreement,
        }

    def tables(self) -> list[Table]:
        """See `Finding`."""
        rows = []
        for name, values in self.values().items():
            one = self.interval(values)
            ends = "-" if np.isnan(one.low) else f"[{one.low:+.4f}, {one.high:+.4f}]"
            rows.append([name, f"{one.value:+.4f}", ends, f"{100 * (values < 0).mean():.0f} %"])
        unlisted = self.interval(self.values()["U(unlisted)"])
        holds = "holds" if unlisted.low >= 0 else "fails" if unlisted.high < 0 else "is not told"
        mean_of, of_mean = self.maps.absolute_ln.mean(), np.abs(self.maps.signed_ln).mean()
        notes = [
            f"U: what a token takes from {self.names[0]} (enhanced), {self.names[1]} (attenuated) "
            "and all other heads, in nats to first order; Delta: what a policy should change, "
            f"alpha {self.settings.alpha:g}, beta {self.settings.beta:g}.",
            f"That unlisted heads do no harm, E[U(unlisted)] >= 0, {holds} here.",
            f"Of heads, E|S| is {mean_of / max(of_mean, 1e-30):.2f} times |E S|: signs change from "
            "token to token.",
        ]
        if self.agreement is not None:
            notes.append(f"E|S| and zeroing rank heads alike: correlation {self.agreement:.2f}.")
        policies = "; ".join(f"{name}: {line}" for name, line in POLICIES.items())
        headers = ["quantity", "mean", "95 % interval", "tokens below 0"]
        return [Table("Minimal editing", headers, rows, [*notes, policies])]


def run(subject: Subject, settings: EditingSettings) -> FoundEditing:
    """Has the model answer, and finds what its tokens take from heads.

    Raises:
        ConfigError: there are no sets of heads, or one that is needed is empty.
    """
    if not subject.heads:
        raise ConfigError(
            "editing needs the model's head sets; make a heads.json with --job=identify."
        )
    masks, names = _masks(resolve_heads(subject.heads, subject.config), settings.sets)
    ablation = HeadAblation(subject.config, settings.rows)
    signed, drops, owners = [], [], []
    read = read_answers(subject, settings.answers, settings.max_new_tokens)
    for index, (_, answer, batch, query_q) in enumerate(read):
        count = len(answer.tokens)
        targets = np.asarray(answer.tokens, np.int32)
        places = Places(np.zeros(count, np.int32), query_q.astype(np.int32), targets)
        params = subject.model().params
        signed.append(contributions(ablation, params, batch, places, settings.scope).signed_mln)
        if settings.ablate:
            drops.append(ablation.drops(params, batch, places, settings.scope))
        owners.append(np.full(count, index))
    return FoundEditing(
        Contributions(np.concatenate(signed)),
        np.concatenate(owners),
        np.concatenate(drops) if drops else None,
        masks,
        names,
        settings,
    )


def _masks(sets: HeadSets, which: str) -> tuple[dict[str, np.ndarray], tuple[str, str]]:
    first, second = _SETS[which]
    count = sets.count if which == "sensitivity" else None
    chosen = [getattr(sets, name)[:count] for name in (first, second)]
    for name, heads in zip((first, second), chosen):
        if not heads:
            raise ConfigError(f"{sets.name} lists no {name} heads, which sets={which!r} needs.")
    enhanced, attenuated = (mask_of(heads, sets.shape) for heads in chosen)
    unlisted = ~(enhanced | attenuated)
    masks = {"enhanced": enhanced, "attenuated": attenuated, "unlisted": unlisted}
    return masks, (f"{first} heads", f"{second} heads")


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


ANALYSIS = Analysis(
    "What answers take from sets of heads, and what policies A to D should do (minimal editing).",
    EditingSettings,
    run,
    asks=True,
)
