"""What an edit costs the language model: the loss of given text, beside the edit's controls.

Negative log-likelihood (NLL) in nats a token of passages of text files, read without images and
without a chat template. An edit that leaves the language model alone changes it no more than random
modes do.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from vlm_jax.analysis.likelihood import TokenLosses, passages
from vlm_jax.edits.qk import CONTROLS, QKEdit
from vlm_jax.errors import ConfigError
from vlm_jax.evals.statistics import Interval, RankTest, percentile_interval, rank_test
from vlm_jax.explaining.base import Analysis, Finding, Subject
from vlm_jax.foreign import read_bytes
from vlm_jax.progress import Progress
from vlm_jax.report.tables import Table
from vlm_jax.settings import listed, one_of, section, setting, text, whole
from vlm_jax.study.arms import RANDOM_CONTROLS, plan_edits

EDITED = "edited"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextNllSettings:
    """Settings of the analysis.

    Attributes:
        texts: files of UTF-8 text.
        length: of a passage, in tokens; the first is given, the others are predicted.
        passages: at most so many, spread evenly over the files.
        edit: what is compared, as `config.edit`.
        controls: of the edit.
        control_draws: seeds of a random control.
        rows: passages in a batch.
        draws, seed: of the resamples over passages behind intervals.
    """

    texts: tuple[str, ...] = setting((), listed, each=text)
    length: int = setting(128, whole, low=2, high=1 << 16)
    passages: int = setting(32, whole, low=1, high=1 << 20)
    edit: QKEdit = setting(QKEdit(), section, of=QKEdit)
    controls: tuple[str, ...] = setting(
        ("R1", "R3"), listed, each=one_of, known=[name for name in CONTROLS if name]
    )
    control_draws: int = setting(19, whole, low=1, high=10_000)
    rows: int = setting(4, whole, low=1, high=1 << 20)
    draws: int = setting(2000, whole, low=1, high=100_000)
    seed: int = setting(0, whole, low=0, high=2**32 - 1)


@dataclasses.dataclass(frozen=True, repr=False)
class FoundTextNll(Finding):
    """Losses of passages.

    Attributes:
        unedited_p: mean loss of each passage's tokens by the model as it is, in nats.
        arms: "edited", then the controls -> the same after the edit, [draws, passages].
        settings: of the analysis.
    """

    unedited_p: np.ndarray
    arms: Mapping[str, np.ndarray]
    settings: TextNllSettings

    def interval(self, values_p: np.ndarray) -> Interval:
        """Returns the mean over passages and its interval; equal resamples for all arms."""
        rng = np.random.default_rng(self.settings.seed)
        count = len(values_p)
        drawn = rng.integers(count, size=(self.settings.draws, count))
        samples = values_p[drawn].mean(1)
        return percentile_interval(values_p.mean(), samples if count > 1 else samples[:0])

    def changes(self) -> dict[str, np.ndarray]:
        """Returns by how much each arm raises the loss, [draws, passages]."""
        return {name: losses_np - self.unedited_p for name, losses_np in self.arms.items()}

    def ranks(self) -> dict[str, RankTest]:
        """Returns where the edit's change falls among the draws of each random control.

        A small p says that the edit costs the language model less than random modes do.
        """
        changes = self.changes()
        ours = float(changes[EDITED].mean())
        return {
            name: rank_test(ours, change_np.mean(1))
            for name, change_np in changes.items()
            if name in RANDOM_CONTROLS
        }

    def document(self) -> dict[str, Any]:
        """See `Finding`."""
        changes, ranks = self.changes(), self.ranks()
        ours_p = changes[EDITED][0]
        found: dict[str, Any] = {}
        for name, change_np in changes.items():
            found[name] = {
                "change": _json(self.interval(change_np.mean(0))),
                "change_by_draw": change_np.mean(1).tolist(),
            }
            if name != EDITED:
                found[name]["edited_minus_it"] = _json(self.interval(ours_p - change_np.mean(0)))
            if name in ranks:
                found[name]["rank_p"] = ranks[name].p
        return {
            "texts": list(self.settings.texts),
            "length": self.settings.length,
            "passages": len(self.unedited_p),
            "edit": dataclasses.asdict(self.settings.edit),
            "unedited": _json(self.interval(self.unedited_p)),
            "arms": found,
        }

    def tables(self) -> list[Table]:
        """See `Finding`."""
        plain = self.interval(self.unedited_p)
        rows = [["unedited", f"{plain.value:.4f}", "-", "-", "-", "-"]]
        changes, ranks = self.changes(), self.ranks()
        ours_p = changes[EDITED][0]
        for name, change_np in changes.items():
            mean_p = change_np.mean(0)
            by_draw_n = change_np.mean(1)
            many = len(change_np) > 1
            rows.append(
                [
                    f"{name} ({len(change_np)} draws)" if many else name,
                    f"{self.arms[name].mean():.4f}",
                    _shown(self.interval(mean_p)),
                    f"{by_draw_n.min():+.4f} to {by_draw_n.max():+.4f}" if many else "-",
                    "-" if name == EDITED else _shown(self.interval(ours_p - mean_p)),
                    f"{ranks[name].p:.2f}" if name in ranks else "-",
                ]
            )
        headers = ["arm", "NLL", "change", "draws from, to", "edited - it", "rank p"]
        notes = [
            f"Nats a token over {len(self.unedited_p)} passages of {self.settings.length} tokens "
            "of text, read without images; changes have 95 % intervals, paired over passages.",
            "rank p: (1 + draws that raise it no more than the edit) / (1 + draws).",
        ]
        return [Table("Loss of given text", headers, rows, notes)]


def run(subject: Subject, settings: TextNllSettings) -> FoundTextNll:
    """Reads passages with the model as it is, edited, and with every draw of the controls.

    Raises:
        ConfigError: no file is named, one cannot be read, or all are shorter than a passage.
    """
    if not settings.texts:
        raise ConfigError("text_nll reads text files; name some in its setting texts.")
    model = subject.model()
    encode = lambda content: model.processor.tokenizer.encode(content, add_special_tokens=False)
    ids = [encode(_content(path)) for path in settings.texts]
    tokens_pt = passages(ids, settings.length, settings.passages)
    if not len(tokens_pt):
        raise ConfigError(
            f"{', '.join(settings.texts)}: no text is as long as a passage of {settings.length} "
            "tokens; name longer ones, or set length."
        )
    specs = {EDITED: [settings.edit]}
    for control in settings.controls:
        count = settings.control_draws if control in RANDOM_CONTROLS else 1
        specs[control] = [
            dataclasses.replace(settings.edit, control=control, seed=settings.edit.seed + n)
            for n in range(count)
        ]
    every = [spec for group in specs.values() for spec in group]
    planned = plan_edits(model.source_folder("text_nll"), every)
    losses = TokenLosses(subject.config, settings.rows)
    read = lambda params: losses(params, tokens_pt).astype(np.float64).mean(1)
    unedited_p = read(model.params)
    found: dict[str, list[np.ndarray]] = {name: [] for name in specs}
    with Progress(len(every), "edits", label="text_nll") as progress:
        for name, group in specs.items():
            for spec in group:
                found[name].append(read(planned[spec].treatment.apply(model).params))
                progress.advance()
    arms = {name: np.stack(losses_np) for name, losses_np in found.items()}
    return FoundTextNll(unedited_p, arms, settings)


def _content(path: str) -> str:
    try:
        return read_bytes(pathlib.Path(path), error=ConfigError).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no UTF-8 text; name text files in texts.") from None


def _shown(one: Interval) -> str:
    ends = "" if np.isnan(one.low) else f" [{one.low:+.4f}, {one.high:+.4f}]"
    return f"{one.value:+.4f}{ends}"


def _json(one: Interval) -> dict[str, float | None]:
    plain = lambda value: float(value) if np.isfinite(value) else None
    return {"mean": one.value, "low": plain(one.low), "high": plain(one.high)}


ANALYSIS = Analysis(
    "What the query-key edit costs the language model: the loss of given text, beside controls.",
    TextNllSettings,
    run,
)
