"""What steering's readings say over many answers: classes by majority, and how often it acted."""

import dataclasses
import logging
from collections.abc import Iterable

import numpy as np

from vlm_jax.attention.steering import Readings
from vlm_jax.steering.heads import Head

REGIME = 0.18
"""Share of selected heads above which functional heads left the regime of their paper (its best
settings select about 6 %)."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Readings of a set of answers, float64 [L, N].

    Attributes:
        answers: how many.
        image_ln, text_ln, system_ln: mean masses over answers.
        fired_ln: share of decode rows that were reallocated.
        perception_ln, reasoning_ln: share of decode rows in which a head was classified so.
        perception_votes_ln, reasoning_votes_ln: share of answers in most of whose rows it was.
    """

    answers: int
    image_ln: np.ndarray
    text_ln: np.ndarray
    system_ln: np.ndarray
    fired_ln: np.ndarray
    perception_ln: np.ndarray
    reasoning_ln: np.ndarray
    perception_votes_ln: np.ndarray
    reasoning_votes_ln: np.ndarray

    @property
    def perception(self) -> tuple[Head, ...]:
        """Heads that are perception heads in most answers."""
        return _heads(self.perception_votes_ln > 0.5)

    @property
    def reasoning(self) -> tuple[Head, ...]:
        """Heads that are reasoning heads in most answers."""
        return _heads(self.reasoning_votes_ln > 0.5)

    @property
    def selected(self) -> float:
        """Mean share of all heads that are in a class."""
        return float(np.mean(self.perception_ln + self.reasoning_ln))

    def log(self) -> None:
        """Logs selected heads and reallocated rows by layer; warns when very many are selected."""
        for layer in range(len(self.image_ln)):
            _log.info(
                "layer %d: %.2f perception and %.2f reasoning heads a row; %.1f %% of rows "
                "reallocated",
                layer,
                self.perception_ln[layer].sum(),
                self.reasoning_ln[layer].sum(),
                100 * self.fired_ln[layer].mean(),
            )
        if self.selected > REGIME:
            _log.warning(
                "functional heads select %.1f %% of all heads; above %.0f %% they left the regime "
                "of their paper: raise perception_from or lower reasoning_to",
                100 * self.selected,
                100 * REGIME,
            )


def calibrate(readings: Iterable[Readings]) -> Calibration:
    """Sums up readings.

    Args:
        readings: one an answer, leaves [L, N], each the mean over the answer's decode rows
            (`Answer.readings`).

    Raises:
        ValueError: there are none.
    """
    listed = list(readings)
    if not listed:
        raise ValueError("a calibration needs at least one answer made with steering.")
    gather = lambda name: np.stack([np.asarray(getattr(r, name), np.float64) for r in listed])
    perception, reasoning = gather("perception_bn"), gather("reasoning_bn")
    return Calibration(
        len(listed),
        image_ln=gather("image_bn").mean(0),
        text_ln=gather("text_bn").mean(0),
        system_ln=gather("system_bn").mean(0),
        fired_ln=gather("fired_bn").mean(0),
        perception_ln=perception.mean(0),
        reasoning_ln=reasoning.mean(0),
        perception_votes_ln=(perception > 0.5).mean(0),
        reasoning_votes_ln=(reasoning > 0.5).mean(0),
    )


def _heads(mask_ln: np.ndarray) -> tuple[Head, ...]:
    return tuple((int(layer), int(head)) for layer, head in np.argwhere(mask_ln))
