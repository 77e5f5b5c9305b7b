"""Multi-modal mutual information decoding (arXiv 2403.14003)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vlm_jax.decoding.strategies.base import Step, Strategy, View, plausible
from vlm_jax.decoding.traced import traced
from vlm_jax.settings import number, one_of, setting


@traced
class M3ID(Strategy):
    """Adds what the image tells, more at each token: log p + (1 - g) / g (log p - log p').

    p' is without the image, g is exp(-decay t) at the t-th token, the first being 1. Where the
    model is sure, its own distribution is kept.

    Attributes:
        decay: forgetting rate (lambda in the paper); 0 is none.
        alpha: rows whose likeliest token has at least this probability are left alone; 1 leaves
            none, as in the implementations that compare with it.
        beta: least probability of a token, as a share of the likeliest one's; 0 keeps all, as in
            the paper, 0.1 is that of the implementations that compare with it.
        control: "same" keeps the image in the second view: nothing is added.
    """

    decay: float = setting(0.02, number, low=0)
    alpha: float = setting(0.3, number, low=0, high=1)
    beta: float = setting(0.0, number, low=0, high=1)
    control: str = setting("", one_of, known=("", "same"))

    def views(self, images: Sequence[Any], prompt: Any) -> Sequence[View]:
        """Returns the view without images; see `Strategy.views`."""
        return [View() if self.control else View(images=())]

    def scores(self, logits_bwv, step: Step):
        """See `Strategy.scores`."""
        own_bv, blind_bv = (jax.nn.log_softmax(logits_bwv[:, view]) for view in (0, 1))
        kept = jnp.exp(-self.decay * (step.count + 1))
        added_bv = (1 - kept) / kept * (own_bv - blind_bv)
        unsure_b1 = jnp.max(own_bv, axis=-1, keepdims=True) < jnp.log(self.alpha)
        return plausible(own_bv + jnp.where(unsure_b1, added_bv, 0.0), own_bv, self.beta)
