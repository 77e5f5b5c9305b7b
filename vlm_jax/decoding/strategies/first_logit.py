"""First logit boosting (arXiv 2604.00455)."""

import jax
import jax.numpy as jnp

from vlm_jax.decoding.strategies.base import Step, Strategy, plausible
from vlm_jax.decoding.traced import traced
from vlm_jax.settings import number, one_of, setting, whole


@traced
class FirstLogit(Strategy):
    """Adds the logits of the first token to later ones, more and more: l + a (1 - e^(-d t)) l_1.

    t counts the tokens that are there. That the weight grows is the paper's; how it grows, and the
    strengths, are a reading of ours.

    Attributes:
        alpha: the strength that later tokens reach; 0 is none.
        decay: how fast they do, by token.
        beta: least probability of a token, as a share of the likeliest one's.
        control: "random" adds the first token's logits in a random order of the vocabulary.
        seed: of the random order.
    """

    width = 1
    needs_image = False
    needs_first = True

    alpha: float = setting(0.3, number, low=0)
    decay: float = setting(0.05, number, low=0)
    beta: float = setting(0.1, number, low=0, high=1)
    control: str = setting("", one_of, known=("", "random"))
    seed: int = setting(0, whole, low=0)

    def scores(self, logits_bwv, step: Step):
        """See `Strategy.scores`."""
        own_bv, first_bv = logits_bwv[:, 0], step.first_bwv[:, 0]
        if self.control:
            first_bv = jax.random.permutation(jax.random.key(self.seed), first_bv, axis=1)
        weight = self.alpha * (1 - jnp.exp(-self.decay * step.count))
        return plausible(own_bv + weight * first_bv, own_bv, self.beta)
