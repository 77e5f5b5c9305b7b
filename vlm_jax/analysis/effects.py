"""Hallucination effect sizes of heads, from what zeroing each does to the words that name objects.

With dP = P(token) - P(token without the head), S = mean dP over hallucinated tokens - mean dP over
grounded ones, and E = S / sqrt(var + var), population variances of both sets (arXiv 2603.24058,
supplement A.1). S alone is the contrastive influence of AD-HH.
"""

import dataclasses
from typing import Any

import numpy as np

from vlm_jax.steering.heads import Head

_TINY = 1e-12


@dataclasses.dataclass(frozen=True)
class Effects:
    """What heads do to hallucinated against grounded tokens; float64 [L, N].

    Attributes:
        contrast_ln: S, in probability.
        size_ln: E.
        hallucinated, grounded: how many tokens.
    """

    contrast_ln: np.ndarray
    size_ln: np.ndarray
    hallucinated: int
    grounded: int


def effect_sizes(drop_mln: np.ndarray, hallucinated_m: np.ndarray) -> Effects:
    """Returns the effects of all heads.

    Args:
        drop_mln: by how much the probability of each of m tokens falls without each head.
        hallucinated_m: bool, which of them name what is not there.

    Raises:
        ValueError: one of the two sets of tokens is empty.
    """
    wrong, right = (drop_mln[mask].astype(np.float64) for mask in (hallucinated_m, ~hallucinated_m))
    if not len(wrong) or not len(right):
        raise ValueError(
            f"effect sizes need tokens of both kinds, not {len(wrong)} hallucinated and "
            f"{len(right)} grounded."
        )
    contrast_ln = wrong.mean(0) - right.mean(0)
    size_ln = contrast_ln / np.sqrt(wrong.var(0) + right.var(0) + _TINY)
    return Effects(contrast_ln, size_ln, len(wrong), len(right))


def ranking(values_ln: np.ndarray) -> tuple[Head, ...]:
    """Returns all heads, the greatest value first; of equal ones the first layer and head."""
    order = np.argsort(-values_ln, axis=None, kind="stable")
    pairs = np.stack(np.unravel_index(order, values_ln.shape), axis=1)
    return tuple((int(layer), int(head)) for layer, head in pairs)


def jaccard(one: Any, other: Any) -> float:
    """Returns the share of two sets' union that both have; 1 for two empty sets."""
    one, other = set(one), set(other)
    return len(one & other) / len(one | other) if one | other else 1.0


def stability(
    drop_mln: np.ndarray, hallucinated_m: np.ndarray, sample_m: np.ndarray, count: int
) -> float | None:
    """Returns the Jaccard index of the top heads by E on both halves of the samples.

    Halves are the samples of even and of odd rank. None where a half lacks one kind of token.

    Args:
        drop_mln, hallucinated_m: see `effect_sizes`.
        sample_m: which sample each token is of.
        count: how many heads make the top.
    """
    rank_m = np.unique(sample_m, return_inverse=True)[1]
    tops = []
    for half in (0, 1):
        chosen = rank_m % 2 == half
        kinds = hallucinated_m[chosen]
        if not kinds.any() or kinds.all():
            return None
        tops.append(ranking(effect_sizes(drop_mln[chosen], kinds).size_ln)[:count])
    return jaccard(*tops)


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the rank correlation of two arrays of one shape, ties at their mean rank."""
    a, b = (_ranks(np.asarray(values, np.float64).ravel()) for values in (one, other))
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / max(np.sqrt((a @ a) * (b @ b)), _TINY))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
