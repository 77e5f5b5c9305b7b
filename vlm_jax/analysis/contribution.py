"""Contribution maps: how the loss of a token answers to a gate on every head.

Gates multiply the heads' outputs before the output projection, at all rows: after it channels of
heads are mixed. S = dLoss/dgate at gates of 1, with Loss = -log P(token); a negative S supports the
token, and I = |S| (arXiv 2510.10285, appendix, after Michel et al. 2019).
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from vlm_jax.analysis.ablation import HeadAblation, Places
from vlm_jax.analysis.effects import ranking
from vlm_jax.batch import Batch
from vlm_jax.models import Params
from vlm_jax.steering.heads import Head


@dataclasses.dataclass(frozen=True)
class Contributions:
    """Gate gradients of m tokens.

    Attributes:
        signed_mln: S of each token.
    """

    signed_mln: Float[np.ndarray, "m L N"]

    @property
    def signed_ln(self) -> Float[np.ndarray, "L N"]:
        """The mean of S over tokens: what the gradient of their mean loss is."""
        return self.signed_mln.mean(0)

    @property
    def absolute_ln(self) -> Float[np.ndarray, "L N"]:
        """The mean of I over tokens, which is at least |`signed_ln`|."""
        return np.abs(self.signed_mln).mean(0)

    def by_layer(self) -> Float[np.ndarray, "L N"]:
        """Shares of `absolute_ln` in their layer's sum."""
        return _shares(self.absolute_ln, axis=1)

    def overall(self) -> Float[np.ndarray, "L N"]:
        """Shares of `absolute_ln` in the sum over all layers."""
        return _shares(self.absolute_ln, axis=None)

    def ranking(self) -> tuple[Head, ...]:
        """All heads, the greatest mean I first."""
        return ranking(self.absolute_ln)


def contributions(
    heads: HeadAblation, params: Params, batch: Batch, places: Places, scope: str = "all"
) -> Contributions:
    """Returns the contributions of heads to tokens, one backward pass a token for all heads.

    Args:
        heads: for the model's architecture.
        params: the model.
        batch: prompts with their answers.
        places: the tokens.
        scope: "all" gates all rows, as the paper does; "row" the predicting row alone, its keys
            and values as they were read.
    """
    slopes = heads.first_order(params, batch, places, scope, log=True)
    return Contributions(-slopes.astype(np.float64))


def _shares(values: np.ndarray, axis: int | None) -> np.ndarray:
    total = values.sum(axis=axis, keepdims=True)
    return np.divide(values, total, out=np.zeros_like(values), where=total > 0)
