"""Paying attention to the image (arXiv 2407.21771)."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from vlm_jax.attention.steering import ImageBoost, Steering
from vlm_jax.config import VLMConfig
from vlm_jax.decoding.strategies.base import Step, Strategy, View, plausible
from vlm_jax.decoding.traced import traced
from vlm_jax.errors import ConfigError
from vlm_jax.settings import number, one_of, setting, whole


@traced
class PAI(Strategy):
    """Raises the image's logits of attention, and takes away what the model says without an image.

    Attention: s + alpha |s| on image keys, in the rows that predict tokens, in layers from
    `first_layer` on. Tokens: gamma (log p - log p') + log p', p' of the prompt without its images.

    Attributes:
        alpha: of attention; 0 is none. 0.5 as released for LLaVA-1.5 (0.2 to 0.6 elsewhere).
        gamma: of the contrast; 1 is none.
        beta: least probability of a token, as a share of the likeliest one's.
        first_layer: the first whose attention is raised, 2 as released.
        control: "same" keeps the images in the second view and leaves attention alone: nothing is
            left of it but the plausibility constraint.
    """

    alpha: float = setting(0.5, number, low=0)
    gamma: float = setting(1.1, number, low=0)
    beta: float = setting(0.1, number, low=0, high=1)
    first_layer: int = setting(2, whole, low=0)
    control: str = setting("", one_of, known=("", "same"))

    def views(self, images: Sequence[Any], prompt: Any) -> Sequence[View]:
        """Returns the view without images; see `Strategy.views`."""
        return [View() if self.control else View(images=())]

    def steering(self, config: VLMConfig) -> Steering | None:
        """See `Strategy.steering`.

        Raises:
            ConfigError: the model has no layer `first_layer`.
        """
        layers, heads = config.decoder.num_layers, config.decoder.num_heads
        if self.first_layer >= layers:
            raise ConfigError(
                f"method 'pai': first_layer is {self.first_layer}, but the model has layers 0 to "
                f"{layers - 1}."
            )
        if self.control or not self.alpha:
            return None
        strength = np.zeros((1, layers, heads), np.float32)
        strength[:, self.first_layer :] = self.alpha
        return Steering(image_boost=ImageBoost(strength))

    def scores(self, logits_bwv, step: Step):
        """See `Strategy.scores`."""
        own_bv, blind_bv = (jax.nn.log_softmax(logits_bwv[:, view]) for view in (0, 1))
        return plausible(self.gamma * (own_bv - blind_bv) + blind_bv, own_bv, self.beta)
