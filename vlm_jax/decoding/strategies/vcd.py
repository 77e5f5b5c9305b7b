"""Visual contrastive decoding (arXiv 2311.16922)."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from vlm_jax.decoding.strategies.base import Step, Strategy, View, plausible
from vlm_jax.decoding.traced import traced
from vlm_jax.settings import number, one_of, setting, switch, whole

STEPS = 1000


def schedule(step: int) -> tuple[float, float]:
    """Returns the factors of image and noise at a step of the diffusion, from 0 to 999.

    Half of it: `schedule(500)` is (0.86302, 0.50517).
    """
    betas = 1 / (1 + np.exp(-np.linspace(-6, 6, STEPS))) * (0.5e-2 - 1e-5) + 1e-5
    kept = np.cumprod(1 - betas)[step]
    return float(np.sqrt(kept)), float(np.sqrt(1 - kept))


@traced
class VCD(Strategy):
    """Takes away what the model says of a noisy image: (1 + alpha) l - alpha l'.

    The noisy view has a cache of its own.

    Attributes:
        alpha: strength of the contrast; 0 is none.
        beta: least probability of a token, as a share of the likeliest one's.
        noise_step: how noisy, of 1000 steps of a diffusion.
        control: "clean" contrasts with a second copy of the clean image: nothing is left of it but
            the plausibility constraint.
        repo_bug: reads the noisy image for the first token alone, as the released code did until
            July 2024: later tokens came from the clean image's cache.
    """

    alpha: float = setting(1.0, number, low=0)
    beta: float = setting(0.1, number, low=0, high=1)
    noise_step: int = setting(500, whole, low=0, high=STEPS - 1)
    control: str = setting("", one_of, known=("", "clean"))
    repo_bug: bool = setting(False, switch)

    def views(self, images: Sequence[Any], prompt: Any) -> Sequence[View]:
        """Returns the noisy view; see `Strategy.views`."""
        return [View(pixels=None if self.control else self._distort)]

    def _distort(self, pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """One jump of the diffusion; frames of a still image share their noise."""
        image, noise = schedule(self.noise_step)
        patches, channels, _, size = pixels.shape
        drawn = random.standard_normal((patches, channels, 1, size), np.float32)
        return np.float32(image) * pixels + np.float32(noise) * drawn

    def scores(self, logits_bwv, step: Step):
        """See `Strategy.scores`."""
        clean_bv, noisy_bv = logits_bwv[:, 0], logits_bwv[:, 1]
        if self.repo_bug:
            noisy_bv = jnp.where(step.count > 0, clean_bv, noisy_bv)
        return plausible((1 + self.alpha) * clean_bv - self.alpha * noisy_bv, clean_bv, self.beta)
