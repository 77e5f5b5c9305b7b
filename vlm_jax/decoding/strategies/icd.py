"""Instruction contrastive decoding (arXiv 2403.18715)."""

from collections.abc import Sequence
from typing import Any

from vlm_jax.decoding.strategies.base import Step, Strategy, View, plausible
from vlm_jax.decoding.traced import traced
from vlm_jax.settings import number, one_of, setting, text

DISTURBANCE = "You are a confused object detector."


@traced
class ICD(Strategy):
    """Takes away what a disturbing instruction makes the model say: (1 + alpha) l - alpha l'.

    Attributes:
        alpha: strength of the contrast; 0 is none.
        beta: least probability of a token, as a share of the likeliest one's.
        prefix: put before the prompt of the second view.
        control: "same" leaves the second prompt as it is.
    """

    needs_image = False

    alpha: float = setting(1.0, number, low=0)
    beta: float = setting(0.1, number, low=0, high=1)
    prefix: str = setting(DISTURBANCE, text)
    control: str = setting("", one_of, known=("", "same"))

    def views(self, images: Sequence[Any], prompt: Any) -> Sequence[View]:
        """Returns the disturbed view; see `Strategy.views`."""
        if self.control:
            return [View()]
        if isinstance(prompt, str):
            return [View(prompt=f"{self.prefix} {prompt}")]
        return [View(prompt=[f"{self.prefix} {prompt[0]}", *prompt[1:]])]

    def scores(self, logits_bwv, step: Step):
        """See `Strategy.scores`."""
        own_bv, disturbed_bv = logits_bwv[:, 0], logits_bwv[:, 1]
        return plausible((1 + self.alpha) * own_bv - self.alpha * disturbed_bv, own_bv, self.beta)
