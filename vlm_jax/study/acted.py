"""What attention methods did while they ran: rows reallocated, heads selected.

Each steered answer's line in `answers.jsonl` carries what happened in it, so that a run that goes
on after a kill knows it of the answers that were there already.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_jax.attention.steering import Steering
from vlm_jax.steering.calibration import REGIME

FIELD = "steering"
_FIELDS = ("fired", "perception", "reasoning")
_DIGITS = 4


def details(answer: Any) -> dict[str, Any]:
    """The fields of an answer's line: how many heads fired or were of a class, by layer and step.

    Args:
        answer: with `readings`, leaves [L, N], means over the answer's decode rows, and `counts`,
            leaves [steps, L].
    """
    heads = {name: np.asarray(getattr(answer.readings, f"{name}_bn")).sum(-1) for name in _FIELDS}
    by_layer = {name: np.round(h_l, _DIGITS).tolist() for name, h_l in heads.items()}
    counted = {name: getattr(answer.counts, name, None) for name in _FIELDS}
    by_step = {name: n_sl.sum(-1).tolist() for name, n_sl in counted.items() if n_sl is not None}
    return {FIELD: {**by_layer, "steps": by_step}}


def acted(steering: Steering, lines: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Sums up what a steering did, as JSON values.

    Args:
        steering: leaves [1, L, N].
        lines: benchmark -> lines of the answers that were made with it.

    Returns:
        `layers` and `heads` that it may act on; `trigger_rate`, the share of decode rows of
        reallocating heads that fired; `perception`, `reasoning`, mean heads of a class in a decode
        row, and `selected`, both as a share of all heads; each the mean over all answers, null
        where the steering has no such part. `by_layer` and `by_benchmark` split them. `regime` is
        the share above which selected heads are too many.
    """
    rows = {name: _rows(answers) for name, answers in lines.items()}
    joined = {key: np.concatenate([one[key] for one in rows.values()]) for key in _FIELDS}
    mask_ln = touched(steering)
    listed = _reallocating(steering)
    by_layer = {key: rows_al.mean(0).round(_DIGITS).tolist() for key, rows_al in joined.items()}
    return {
        "layers": [int(layer) for layer in np.flatnonzero(mask_ln.any(1))],
        "heads": int(mask_ln.sum()),
        "answers": len(joined["fired"]),
        **_rates(joined, listed, steering.visual_gains is not None, mask_ln.size),
        "by_layer": by_layer,
        "by_benchmark": {
            name: _rates(one, listed, steering.visual_gains is not None, mask_ln.size)
            for name, one in rows.items()
        },
        "regime": REGIME,
    }


def touched(steering: Steering) -> np.ndarray:
    """Returns a mask, bool [L, N], that is True at heads that a steering may act on.

    Vectors in the residual stream act on all heads of their layers. A steering of vectors alone
    gives one column, [L, 1]: True at the layers that they are added in.
    """
    masks = []
    for part in steering.parts.values():
        acts = np.asarray(part.acts())[0]
        masks.append(acts if part.attends else acts.any(axis=1, keepdims=True))
    return functools.reduce(np.logical_or, masks)


def _reallocates(steering: Steering) -> np.ndarray:
    part = steering.reallocation
    assert part is not None
    return np.isfinite(_leaf(part.threshold))


def _reallocating(steering: Steering) -> int:
    """How many heads reallocate."""
    return int(_reallocates(steering).sum()) if steering.reallocation else 0


def _rates(
    heads: Mapping[str, np.ndarray], listed: int, classifies: bool, total: int
) -> dict[str, float | None]:
    mean = {key: float(rows_al.sum(1).mean()) for key, rows_al in heads.items()}
    both = mean["perception"] + mean["reasoning"]
    return {
        "trigger_rate": mean["fired"] / listed if listed else None,
        "perception": mean["perception"] if classifies else None,
        "reasoning": mean["reasoning"] if classifies else None,
        "selected": both / total if classifies else None,
    }


def _rows(answers: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Heads by answer and layer, [answers, L] a field."""
    return {key: np.array([row[FIELD][key] for row in answers], np.float64) for key in _FIELDS}


def _leaf(values: Any) -> np.ndarray:
    return np.asarray(values)[0]
