"""How well attention tells what is there from what is not: the area under an ROC curve.

The evidence of an object word is the mass on the image at the step that named it: exp(lse of the
image's logits - lse of all), exact at any length (`rows.AttentionRows.masses_qlnc`).
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from vlm_jax.evals.statistics import Interval, percentile_interval


def area(values_m: Float[np.ndarray, " m"], grounded_m: Bool[np.ndarray, " m"]) -> float:
    """Returns the probability that a grounded word has more evidence than a hallucinated one.

    Ties count half; 0.5 tells nothing, and NaN is given where one kind is missing.

        area([0.9, 0.4, 0.4], [True, True, False])    # 0.75: one pair is won, one is a tie
    """
    values_m, grounded_m = np.asarray(values_m, np.float64), np.asarray(grounded_m, bool)
    right, wrong = values_m[grounded_m], np.sort(values_m[~grounded_m])
    if not len(right) or not len(wrong):
        return float("nan")
    below = np.searchsorted(wrong, right, "left") + np.searchsorted(wrong, right, "right")
    return float(below.sum() / (2 * len(right) * len(wrong)))


def area_interval(
    values_m: Float[np.ndarray, " m"],
    grounded_m: Bool[np.ndarray, " m"],
    answer_m: Int[np.ndarray, " m"],
    *,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """Returns `area` with an interval; answers are resampled, with all of their words.

    Args:
        values_m, grounded_m: see `area`.
        answer_m: which answer each word is of.
        draws: resamples; those without one kind of word are left out.
        seed: of the resamples.
    """
    words = [np.flatnonzero(answer_m == one) for one in np.unique(answer_m)]
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(draws if len(words) > 1 else 0):
        picked = np.concatenate([words[n] for n in rng.integers(len(words), size=len(words))])
        samples.append(area(values_m[picked], grounded_m[picked]))
    kept = np.asarray(samples)[~np.isnan(samples)] if samples else np.empty(0)
    return percentile_interval(area(values_m, grounded_m), kept)
